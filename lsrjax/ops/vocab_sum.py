"""Vocabulary projection fused with SPLADE's sum over tokens.

Axes: B texts, L tokens, D hidden, V vocabulary (or one shard of it), P terms of a
block, N blocks.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lsrjax.ops import hardware
from lsrjax.ops.parts import by_part

# Numbers in a block's logits: as many as fit in a processor's cache or fill an
# accelerator.
_TILE = {"cpu": 2**20}
_LARGE_TILE = 2**24


def vocab_sum(
    h: jax.Array,
    w_VD: jax.Array,
    b_V: jax.Array,
    mask: jax.Array | Sequence[jax.Array],
    *,
    block: int | None = None,
    twice: bool = False,
) -> jax.Array:
    """Sum over tokens of `log1p(relu(h @ w.T + b))` (SPLADE, Formal et al. 2021).

    The logits of all tokens and terms never exist at once: each block of terms is
    computed on its own, and again in the backward pass.

    Args:
      h: hidden states, [B, L, D], or of all parts end to end, [T, D]; their dtype is
        that of the matrix products.
      b_V: bias of each term, added in float32.
      mask: non-zero at tokens, zero at padding, which adds nothing: [B, L], or one such
        array for each part.
      block: terms at a time; need not divide V.
      twice: apply log1p twice to each (OpenSearch's `log1p_relu`).

    Returns:
      The sums, [B, V] float32, of the texts of all parts end to end.
    """

    def one_part(h_BLD, mask_BL):
        return _one_part(h_BLD, w_VD, b_V, mask_BL, block, twice)

    return by_part(one_part, h, mask)


def _one_part(h_BLD, w_VD, b_V, mask_BL, block, twice):
    B, L, D = h_BLD.shape
    V = len(b_V)
    if block is None:
        tile = _TILE.get(hardware.device().platform, _LARGE_TILE)
        block = min(max(tile // (B * L) // 128 * 128, 128), V)
    blocks = -(-V // block)
    w_NPD = jnp.pad(w_VD, ((0, blocks * block - V), (0, 0))).reshape(blocks, block, D)
    b_NP = jnp.pad(b_V, (0, blocks * block - V)).reshape(blocks, block)
    mask_BL1 = (mask_BL != 0)[:, :, None]
    # A padded state may hold anything, even NaN, which a mask applied later would not
    # remove from the gradient.
    h_BLD = jnp.where(mask_BL1, h_BLD, jnp.zeros((), h_BLD.dtype))

    @jax.checkpoint
    def one_block(terms):
        w_PD, b_P = terms
        logits_BLP = jnp.einsum(
            "bld,pd->blp",
            h_BLD,
            w_PD.astype(h_BLD.dtype),
            preferred_element_type=jnp.float32,
        ) + b_P.astype(jnp.float32)
        weights_BLP = jnp.log1p(jax.nn.relu(logits_BLP))
        if twice:
            weights_BLP = jnp.log1p(weights_BLP)
        return jnp.where(mask_BL1, weights_BLP, 0.0).sum(axis=1)

    sums_NBP = jax.lax.map(one_block, (w_NPD, b_NP))
    return sums_NBP.swapaxes(0, 1).reshape(B, -1)[:, :V]
