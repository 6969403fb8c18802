"""Vocabulary projection fused with a softmax of each token and the max over tokens.

Axes: B texts, L tokens, T all tokens, D hidden, V vocabulary (or one shard of it).
"""

import jax
import jax.numpy as jnp
from jax import lax

from lsrjax.ops.parts import apart


def vocab_softmax(
    h_TD: jax.Array,
    s_T: jax.Array,
    w_VD: jax.Array,
    b_V: jax.Array,
    masks: tuple[jax.Array, ...],
    *,
    axis: str | None = None,
) -> jax.Array:
    """Max over tokens of `s * softmax(h @ w.T + b)` (Aggretriever, Lin et al. 2023).

    The logits of one text exist at a time, and again in the backward pass.

    Args:
      h_TD: hidden states of all parts end to end; their dtype is that of the products.
      s_T: the weight of each token, of either sign.
      b_V: bias of each term, added in float32.
      masks: of each part, [B, L], non-zero at the tokens that count.
      axis: of the mesh, over which V is divided; None: it is whole.

    Returns:
      [B, V] float32 of the texts of all parts end to end; 0 in a text without tokens.
    """

    @jax.checkpoint
    def one_text(text):
        h_LD, s_L, mask_L = text
        keep_L1 = (mask_L != 0)[:, None]
        # A padded state may hold anything, even NaN.
        h_LD = jnp.where(keep_L1, h_LD, jnp.zeros((), h_LD.dtype))
        logits_LV = jnp.einsum(
            "ld,vd->lv",
            h_LD,
            w_VD.astype(h_LD.dtype),
            preferred_element_type=jnp.float32,
        ) + b_V.astype(jnp.float32)
        top_L1 = lax.stop_gradient(logits_LV).max(axis=1, keepdims=True)
        top_L1 = top_L1 if axis is None else lax.pmax(top_L1, axis)
        exp_LV = jnp.exp(logits_LV - top_L1)
        sum_L1 = exp_LV.sum(axis=1, keepdims=True)
        sum_L1 = sum_L1 if axis is None else lax.psum(sum_L1, axis)
        weighed_LV = s_L.astype(jnp.float32)[:, None] * (exp_LV / sum_L1)
        lowest = jnp.finfo(jnp.float32).min
        best_V = jnp.where(keep_L1, weighed_LV, lowest).max(axis=0)
        return jnp.where(keep_L1.any(), best_V, 0.0)

    parts = tuple(mask_BL.shape for mask_BL in masks)
    texts = zip(apart(h_TD, parts), apart(s_T, parts), masks, strict=True)
    return jnp.concatenate([lax.map(one_text, text) for text in texts])
