"""Self-attention in both directions, of any family.

In array names T is all tokens of a batch, C the width of one attention head and M a
second token axis, the attended one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.models.layers import DType, Products, dropout, linear
from lsrjax.models.texts import Texts
from lsrjax.ops import hardware

# The cosines and sines of a part's positions, [L, C / 2] each; see `rotary_tables`.
Rotary = tuple[np.ndarray, np.ndarray]


class Attention(nnx.Module):
    """Multi-head self-attention; `qkv` and `out` are its parameters."""

    def __init__(
        self,
        config,
        *,
        use_bias: bool = True,
        out_range: float | None = None,
        dtype: DType,
        rngs: nnx.Rngs,
    ):
        """`out_range` is the deviation of the new `out`; None: `initializer_range`."""
        self.config = config
        size, spread = config.hidden_size, config.initializer_range
        self.qkv = Products(
            3,
            size,
            size,
            initializer_range=spread,
            use_bias=use_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.out = linear(
            size,
            size,
            initializer_range=spread if out_range is None else out_range,
            use_bias=use_bias,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        hidden_TD: jax.Array,
        texts: Texts,
        seen: tuple[jax.Array, ...],
        *,
        rotary: Sequence[Rotary] | None = None,
        window: int | None = None,
        keys_T: jax.Array | None = None,
    ) -> jax.Array:
        """Mixes the hidden states of each text; returns [T, D].

        Args:
          seen: for each part, the tokens that others attend to, [B, L] bool; or the
            length of each text, [B] int32, for cuDNN's attention.
          rotary: for each part, how queries and keys turn with their position (RoPE).
          window: how far a token sees to either side; None: all of the text.
          keys_T: a random key for each token; None: no dropout.
        """
        rate = self.config.attention_dropout
        keys: Sequence[jax.Array | None] = [None] * len(seen)
        if keys_T is not None and rate > 0.0:
            keys = texts.split(keys_T)
        turns = [None] * len(seen) if rotary is None else rotary
        parts = []
        for *qkv, seen_by, keys_BL, turn in zip(
            *map(texts.split, self.qkv(hidden_TD)), seen, keys, turns, strict=True
        ):
            shape = qkv[0].shape
            heads = (*shape[:2], self.config.num_heads, -1)
            q_BLHC, k_BMHC, v_BMHC = (x.reshape(heads) for x in qkv)
            if turn is not None:
                q_BLHC, k_BMHC = turned(q_BLHC, turn), turned(k_BMHC, turn)
            # A window as wide as the texts hides nothing.
            near = window if window is not None and window < shape[1] - 1 else None
            if keys_BL is not None:
                mixed_BLHC = attend_with_dropout(
                    q_BLHC, k_BMHC, v_BMHC, seen_by, rate, keys_BL, near
                )
            else:
                mixed_BLHC = attend(q_BLHC, k_BMHC, v_BMHC, seen_by, near)
            if near is not None:
                alone_BL = ~sees_some(seen_by, shape[1], near)
                mixed_BLHC = jnp.where(alone_BL[..., None, None], 0, mixed_BLHC)
            parts.append(mixed_BLHC.reshape(shape))
        return self.out(texts.join(parts))


def rotary_tables(
    length: int, width: int, theta: float, stretch: float = 1.0
) -> Rotary:
    """Cosines and sines of RoPE's angles, float32.

    Position times theta^(-2 i / C) / stretch, for i < C / 2 (Su et al. 2021,
    arXiv:2104.09864), in float32 as in transformers.
    """
    places = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    speeds = np.float32(1) / np.power(np.float32(theta), places) / np.float32(stretch)
    angles = np.arange(length, dtype=np.float32)[:, None] * speeds[None]
    return np.cos(angles), np.sin(angles)


def turned(x_BLHC: jax.Array, tables: Rotary) -> jax.Array:
    """Queries or keys, whose halves turn against each other by their positions."""
    cos, sin = (jnp.asarray(table)[None, :, None] for table in tables)
    a, b = jnp.split(x_BLHC.astype(jnp.float32), 2, axis=-1)
    both = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return both.astype(x_BLHC.dtype)


def suits_cudnn(device, dtype: DType, width: int) -> bool:
    """Whether cuDNN has a fused attention for a device and the width of a head."""
    return (
        # JAX cannot ask cuDNN for its version on an abstract device.
        hasattr(device, "client")
        and hardware.is_cuda(device, 8.0)
        and dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
    )


def attend(query_BLHC, key_BMHC, value_BMHC, seen, window=None):
    """Attention without dropout; cuDNN, which stores no weights, if `seen` is [B]."""
    near = None if window is None else (window, window)
    if seen.ndim == 2:
        return jax.nn.dot_product_attention(
            query_BLHC,
            key_BMHC,
            value_BMHC,
            mask=seen[:, None, None, :],
            local_window_size=near,
        )
    return jax.nn.dot_product_attention(
        query_BLHC,
        key_BMHC,
        value_BMHC,
        # All of them: a padded token may attend to others.
        query_seq_lengths=jnp.full_like(seen, query_BLHC.shape[1]),
        key_value_seq_lengths=seen,
        local_window_size=near,
        implementation="cudnn",
    )


def sees_some(seen, length: int, window: int) -> jax.Array:
    """Whether a token has any to attend to within its window, [B, L].

    Those behind a text have not. Their states are zeros, as in PyTorch.
    """
    places = np.arange(length)
    if seen.ndim == 1:  # lengths
        return (places - window)[None] < seen[:, None]
    counts_BL = jnp.cumsum(seen, axis=1, dtype=jnp.int32)
    counts_BL = jnp.pad(counts_BL, ((0, 0), (1, 0)))
    after = counts_BL[:, np.minimum(places + window + 1, length)]
    return after > counts_BL[:, np.maximum(places - window, 0)]


def lengths_of(mask_BM):
    """The length of each text, [B]: cuDNN takes no mask of tokens."""
    # At least 1, so that a text without a token gives numbers and not NaN.
    return jnp.maximum(mask_BM.sum(axis=1, dtype=jnp.int32), 1)


def attend_with_dropout(
    query_BLHC, key_BMHC, value_BMHC, mask_BM, rate, keys_BL, window=None
):
    """Like `jax.nn.dot_product_attention`, which lacks dropout on the weights."""
    logits_BHLM = products(query_BLHC, key_BMHC) / query_BLHC.shape[-1] ** 0.5
    return weighed(logits_BHLM, value_BMHC, mask_BM, rate, keys_BL, window)


def products(query_BLHC, key_BMHC) -> jax.Array:
    """Of queries and keys, [B, H, L, M] float32."""
    return jnp.einsum(
        "blhc,bmhc->bhlm", query_BLHC, key_BMHC, preferred_element_type=jnp.float32
    )


def weighed(logits_BHLM, value_BMHC, mask_BM, rate=0.0, keys_BL=None, window=None):
    """The values weighed by the softmax of logits, [B, L, H, C].

    `rate` is that of dropout on the weights, with a random key for each token.
    """
    B, H, L, _ = logits_BHLM.shape
    # Finite, so that a text without a token gives numbers and not NaN.
    lowest = -0.7 * float(jnp.finfo(jnp.float32).max)
    mask = mask_BM[:, None, None, :]
    if window is not None:
        places = np.arange(L)
        near_LM = np.abs(places[:, None] - places[None]) <= window
        mask = mask & near_LM[None, None]
    weights_BHLM = jax.nn.softmax(jnp.where(mask, logits_BHLM, lowest), axis=-1)
    if keys_BL is not None and rate > 0.0:
        # Drawn token by token, so that a text's dropout does not depend on its padding.
        weights_BLMH = dropout(
            weights_BHLM.transpose(0, 2, 3, 1).reshape(B * L, L, H),
            rate,
            keys_BL.reshape(B * L),
        ).reshape(B, L, L, H)
        weights_BHLM = weights_BLMH.transpose(0, 3, 1, 2)
    return jnp.einsum(
        "bhlm,bmhc->blhc", weights_BHLM.astype(value_BMHC.dtype), value_BMHC
    )
