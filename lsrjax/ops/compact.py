"""The terms of sparse vectors that are not zero, taken out on the device.

Axes: B texts, V vocabulary, K kept terms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Compact(NamedTuple):
    """What is not zero in each row of [B, V].

    Attributes:
      ids_BK: columns, ascending; V where a row has fewer than K.
      weights_BK: their values; meaningless there.
      counts_B: how many there are in the whole row, also if they are more than K.
    """

    ids_BK: jax.Array
    weights_BK: jax.Array
    counts_B: jax.Array


def compact(weights_BV: jax.Array, most: int) -> Compact:
    """The first `most` columns of each row that are not zero."""
    B, V = weights_BV.shape
    before_BV = jnp.cumsum(weights_BV != 0, axis=1, dtype=jnp.int32)
    # The k-th is the first column up to which there are k.
    numbers_K = jnp.arange(1, min(most, V) + 1, dtype=jnp.int32)
    ids_BK = jax.vmap(jnp.searchsorted, (0, None))(before_BV, numbers_K)
    weights_BK = jnp.take_along_axis(weights_BV, jnp.minimum(ids_BK, V - 1), axis=1)
    return Compact(ids_BK, weights_BK, before_BV[:, -1])
