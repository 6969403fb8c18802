"""Texts in parts, each padded to one length; their tokens are stored end to end.

A part is [B, L, ...], with B and L its own; all parts together are [T, ...].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Parts = tuple[tuple[int, ...], ...]  # (texts, length) of each


def end_to_end(parts) -> jax.Array:
    """[B, L, ...] of each part as [T, ...]."""
    rows = [x.reshape(-1, *x.shape[2:]) for x in parts]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows)


def apart(x_T, parts: Parts) -> list[jax.Array]:
    """The inverse of `end_to_end`."""
    sizes = [texts * length for texts, length in parts]
    return [
        x.reshape(*part, *x_T.shape[1:])
        for x, part in zip(lax.split(x_T, sizes), parts, strict=True)
    ]


def per_text(x_T, parts: Parts, reduce) -> jax.Array:
    """`reduce` over the tokens of each text, [B, ...]."""
    found = [reduce(x_BL, axis=1) for x_BL in apart(x_T, parts)]
    return found[0] if len(found) == 1 else jnp.concatenate(found)


def starts_of(parts: Parts) -> np.ndarray:
    """The first token of each text among all, [B] int32."""
    lengths = np.repeat([length for _, length in parts], [texts for texts, _ in parts])
    return (np.cumsum(lengths) - lengths).astype(np.int32)


def by_part(op, h: jax.Array, mask: jax.Array | Sequence[jax.Array]):
    """`op(h_BLD, mask_BL)` of each part; the results [B, ...] end to end.

    `h` is [B, L, D] with a mask [B, L], or [T, D] with a mask for each part.
    """
    if not isinstance(mask, Sequence):
        return op(h, mask)
    parts = apart(h, tuple(mask_BL.shape for mask_BL in mask))
    return jnp.concatenate([op(*part) for part in zip(parts, mask, strict=True)])
