"""Vocabulary projection fused with the logarithm of the softmax's denominator.

Axes: T tokens, D hidden, V vocabulary (or one shard of it), P terms of a block, N
blocks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsrjax.ops import hardware
from lsrjax.ops.vocab_pool import ceil_div

# Numbers in a block's logits, see `vocab_sum`.
_TILE = {"cpu": 2**20}
_LARGE_TILE = 2**24
# The bias of terms that do not count; finite, so that it gives numbers and not NaN.
SILENT = -1e9


def vocab_logsumexp(
    h_TD: jax.Array,
    w_VD: jax.Array,
    b_V: jax.Array,
    mask_T: jax.Array,
    *,
    block: int | None = None,
    squash: Callable[[jax.Array], jax.Array] = lambda logits: logits,
) -> jax.Array:
    """`logsumexp(squash(h @ w.T + b))` over the vocabulary.

    The logits of all tokens and terms never exist at once: each block of terms is
    computed on its own, and again in the backward pass; a running maximum keeps the
    exponentials in range.

    Args:
      h_TD: states; their dtype is that of the matrix products.
      b_V: bias of each term, added in float32; terms of the bias `SILENT` do not count.
      mask_T: false or zero at states that may hold anything, even NaN.
      block: terms at a time; need not divide V.
      squash: an increasing function of logits, elementwise.

    Returns:
      [T, 1] float32: one column, so that those of several shards stand side by side.
    """
    (T, D), V = h_TD.shape, len(b_V)
    if block is None:
        tile = _TILE.get(hardware.device().platform, _LARGE_TILE)
        block = min(max(tile // T // 128 * 128, 128), V)
    blocks = ceil_div(V, block)
    extra = blocks * block - V
    w_NPD = jnp.pad(w_VD, ((0, extra), (0, 0))).reshape(blocks, block, D)
    b_NP = jnp.pad(b_V, (0, extra), constant_values=SILENT).reshape(blocks, block)
    h_TD = jnp.where((mask_T != 0)[:, None], h_TD, jnp.zeros((), h_TD.dtype))

    @jax.checkpoint
    def one_block(carry, terms):
        w_PD, b_P = terms
        largest_T, sum_T = carry
        logits_TP = jnp.einsum(
            "td,pd->tp",
            h_TD,
            w_PD.astype(h_TD.dtype),
            preferred_element_type=jnp.float32,
        )
        b_1P = b_P.astype(jnp.float32)[None]
        logits_TP = jnp.where(b_1P > SILENT, squash(logits_TP + b_1P), SILENT)
        # Whatever is taken off and added again has no gradient.
        top_T = jax.lax.stop_gradient(logits_TP.max(axis=1))
        new_T = jnp.maximum(largest_T, top_T)
        added_T = jnp.exp(logits_TP - new_T[:, None]).sum(axis=1)
        return (new_T, sum_T * jnp.exp(largest_T - new_T) + added_T), None

    start = jnp.full(T, -jnp.inf), jnp.zeros(T)
    (largest_T, sum_T), _ = jax.lax.scan(one_block, start, (w_NPD, b_NP))
    return (largest_T + jnp.log(sum_T))[:, None]
