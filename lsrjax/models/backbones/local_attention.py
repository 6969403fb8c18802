"""Attention within a window, in blocks: what the window hides is not computed.

Queries stand in blocks of S tokens, each with the W keys of the blocks that a window
reaches: L W products instead of L L. In array names N is the blocks of a text, S the
tokens of one, W the keys that it is compared with; K is the heads of keys and values,
G those of queries that share one, and E the width of values.
"""

import jax
import jax.numpy as jnp
import numpy as np

# The fewest tokens of a block: smaller products are slow.
_LEAST = 64


def block_size(window: tuple[int, int]) -> int:
    """Tokens of a block, for a window's reach to the left and to the right."""
    return max(_LEAST, (max(window) + 1) // 2)


def keys_of_block(window: tuple[int, int]) -> int:
    """Keys that the queries of a block are compared with."""
    size = block_size(window)
    return size * (1 + sum(-(-side // size) for side in window))


def pays(length: int, window: tuple[int, int]) -> bool:
    """Whether blocks are faster than a mask; see docs/performance.md."""
    return length >= 2 * keys_of_block(window)


def local_attention(
    query_BLHC, key_BLKC, value_BLKE, seen_BL, window: tuple[int, int], scale=None
) -> jax.Array:
    """Attention within a window, without dropout, [B, L, H, E].

    Gives numbers, and no NaN, where no key is within the window.

    Args:
      seen_BL: the tokens that others attend to, bool.
      window: how many tokens a token sees to the left and to the right.
      scale: the factor of the products of queries and keys; None: C^-1/2.
    """
    B, L, H, C = query_BLHC.shape
    E, size = value_BLKE.shape[-1], block_size(window)
    count = -(-L // size)
    before, after = (-(-side // size) for side in window)

    def blocks(x_BL, ahead: int, behind: int):
        """[B, L, ...] as [B, blocks, S, ...], with empty blocks around."""
        fill = count * size - L + behind * size
        padding = [(0, 0), (ahead * size, fill)] + [(0, 0)] * (x_BL.ndim - 2)
        return jnp.pad(x_BL, padding).reshape(B, -1, size, *x_BL.shape[2:])

    def reached(x_BL):
        """[B, N, W, ...]: for each block, those that its windows reach."""
        x_BNS = blocks(x_BL, before, after)
        # Slices, whose gradients are sums; those of look-ups are scattered.
        near = [x_BNS[:, i : i + count] for i in range(before + after + 1)]
        return jnp.concatenate(near, axis=2)

    places_S, places_W = np.arange(size), np.arange(keys_of_block(window))
    ahead_SW = places_W[None] - before * size - places_S[:, None]
    near_SW = (-window[0] <= ahead_SW) & (ahead_SW <= window[1])
    mask_BNSW = reached(seen_BL)[:, :, None] & near_SW[None, None]
    key_BNWKC = reached(key_BLKC)
    groups = (B, count, size, key_BNWKC.shape[3], -1, C)
    logits_BNKGSW = jnp.einsum(
        "bnskgc,bnwkc->bnkgsw",
        blocks(query_BLHC, 0, 0).reshape(groups),
        key_BNWKC,
        preferred_element_type=jnp.float32,
    )
    logits_BNKGSW *= C**-0.5 if scale is None else scale
    lowest = -0.7 * float(jnp.finfo(jnp.float32).max)
    logits_BNKGSW = jnp.where(mask_BNSW[:, :, None, None], logits_BNKGSW, lowest)
    weights_BNKGSW = jax.nn.softmax(logits_BNKGSW, axis=-1).astype(value_BLKE.dtype)
    mixed = jnp.einsum("bnkgsw,bnwke->bnskge", weights_BNKGSW, reached(value_BLKE))
    return mixed.reshape(B, count * size, H, E)[:, :L]
