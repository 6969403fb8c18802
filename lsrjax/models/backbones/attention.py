"""Self-attention, of any family.

In array names T is all tokens of a batch, C the width of one attention head and M a
second token axis, the attended one; P is kinds of distances.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.models.backbones import local_attention
from lsrjax.models.layers import DType, Products, dropout, linear
from lsrjax.models.texts import Texts
from lsrjax.ops import hardware

# The cosines and sines of a part's positions, [L, C / 2] each; see `rotary_tables`.
Rotary = tuple[np.ndarray, np.ndarray]
# How far a token sees to the left and to the right; one number for both, None: all.
Window = int | tuple[int, int] | None


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
        biases: Sequence[jax.Array] | None = None,
        keys_T: jax.Array | None = None,
    ) -> jax.Array:
        """Mixes the hidden states of each text; returns [T, D].

        Args:
          seen: for each part, the tokens that others attend to, [B, L] bool; or the
            length of each text, [B] int32, for cuDNN's attention.
          rotary: for each part, how queries and keys turn with their position (RoPE).
          window: how far a token sees to either side; None: all of the text.
          biases: for each part, what is added to the scaled products of queries and
            keys, [H, L, L]; not with cuDNN's attention.
          keys_T: a random key for each token; None: no dropout.
        """
        rate = self.config.attention_dropout
        keys: Sequence[jax.Array | None] = [None] * len(seen)
        if keys_T is not None and rate > 0.0:
            keys = texts.split(keys_T)
        turns = [None] * len(seen) if rotary is None else rotary
        added = [None] * len(seen) if biases is None else biases
        parts = []
        for *qkv, seen_by, keys_BL, turn, bias in zip(
            *map(texts.split, self.qkv(hidden_TD)),
            *(seen, keys, turns, added),
            strict=True,
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
                    q_BLHC, k_BMHC, v_BMHC, seen_by, rate, keys_BL, near, bias
                )
            else:
                mixed_BLHC = attend(
                    q_BLHC, k_BMHC, v_BMHC, seen_by, near, bias_HLM=bias
                )
            if near is not None:
                alone_BL = ~sees_some(seen_by, shape[1], near)
                mixed_BLHC = jnp.where(alone_BL[..., None, None], 0, mixed_BLHC)
            parts.append(mixed_BLHC.reshape(shape))
        return self.out(texts.join(parts))


def rotary_tables(
    length: int,
    width: int,
    theta: float,
    stretch: float = 1.0,
    rescaled: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Rotary:
    """Cosines and sines of RoPE's angles, float32.

    Position times theta^(-2 i / C) / stretch, for i < C / 2 (Su et al. 2021,
    arXiv:2104.09864), in float32 as in transformers. `rescaled` changes these speeds,
    [C / 2], otherwise.
    """
    places = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    speeds = np.float32(1) / np.power(np.float32(theta), places) / np.float32(stretch)
    if rescaled is not None:
        speeds = rescaled(speeds)
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


def sides(window: int | tuple[int, int]) -> tuple[int, int]:
    """A window as how far a token sees to the left and to the right."""
    return window if isinstance(window, tuple) else (window, window)


def attend(
    query_BLHC,
    key_BMHC,
    value_BMHC,
    seen,
    window: Window = None,
    scale=None,
    bias_HLM=None,
) -> jax.Array:
    """Attention without dropout; cuDNN, which stores no weights, if `seen` is [B].

    Keys and values may have fewer heads than queries. `scale` is the factor of their
    products; None: C^-1/2.
    """
    L = query_BLHC.shape[1]
    near = None if window is None else sides(window)
    causal = near is not None and near[1] == 0
    if near is not None and causal and near[0] >= L - 1:
        near = None
    if seen.ndim == 1 and near is not None and not causal:
        # cuDNN has no window to the right.
        seen = np.arange(L)[None] < seen[:, None]
    if seen.ndim == 2 and near is not None and local_attention.pays(L, near):
        return local_attention.local_attention(
            query_BLHC, key_BMHC, value_BMHC, seen, near, scale
        )
    if seen.ndim == 2:
        return jax.nn.dot_product_attention(
            query_BLHC,
            key_BMHC,
            value_BMHC,
            bias=None if bias_HLM is None else bias_HLM[None],
            mask=seen[:, None, None, :],
            is_causal=causal,
            local_window_size=near,
            scale=scale,
        )
    return jax.nn.dot_product_attention(
        query_BLHC,
        key_BMHC,
        value_BMHC,
        # All of them: a padded token may attend to others.
        query_seq_lengths=jnp.full_like(seen, L),
        key_value_seq_lengths=seen,
        is_causal=causal,
        local_window_size=near,
        scale=scale,
        implementation="cudnn",
    )


def sees_some(seen, length: int, window: int | tuple[int, int]) -> jax.Array:
    """Whether a token has any to attend to within its window, [B, L].

    Those behind a text may have none. Their states are zeros, as in PyTorch.
    """
    left, right = sides(window)
    places = np.arange(length)
    if seen.ndim == 1:  # lengths
        return (places - left)[None] < seen[:, None]
    counts_BL = jnp.cumsum(seen, axis=1, dtype=jnp.int32)
    counts_BL = jnp.pad(counts_BL, ((0, 0), (1, 0)))
    after = counts_BL[:, np.minimum(places + right + 1, length)]
    return after > counts_BL[:, np.maximum(places - left, 0)]


def lengths_of(mask_BM):
    """The length of each text, [B]: cuDNN takes no mask of tokens."""
    # At least 1, so that a text without a token gives numbers and not NaN.
    return jnp.maximum(mask_BM.sum(axis=1, dtype=jnp.int32), 1)


def attend_with_dropout(
    query_BLHC, key_BMHC, value_BMHC, mask_BM, rate, keys_BL, window=None, bias_HLM=None
):
    """Like `jax.nn.dot_product_attention`, which lacks dropout on the weights."""
    logits_BHLM = products(query_BLHC, key_BMHC) / query_BLHC.shape[-1] ** 0.5
    if bias_HLM is not None:
        logits_BHLM += bias_HLM[None]
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
    H, L = logits_BHLM.shape[1:3]
    # Finite, so that a text without a token gives numbers and not NaN.
    lowest = -0.7 * float(jnp.finfo(jnp.float32).max)
    mask = mask_BM[:, None, None, :]
    if window is not None:
        places = np.arange(L)
        left, right = sides(window)
        back_LM = places[:, None] - places[None]
        near_LM = (-right <= back_LM) & (back_LM <= left)
        mask = mask & near_LM[None, None]
    weights_BHLM = jax.nn.softmax(jnp.where(mask, logits_BHLM, lowest), axis=-1)
    if keys_BL is not None and rate > 0.0:
        # Counted so that a text's dropout does not depend on its padding.
        of_key_1M = H * jnp.arange(weights_BHLM.shape[3])[None]
        places_HM = jnp.arange(H)[:, None] + of_key_1M
        weights_BHLM = dropout(
            weights_BHLM, rate, keys_BL[:, None, :, None], places_HM[None, :, None]
        )
    return jnp.einsum(
        "bhlm,bmhc->blhc", weights_BHLM.astype(value_BMHC.dtype), value_BMHC
    )


def log_buckets(
    length: int, size: int, far: int, *, most: int | None = None
) -> np.ndarray:
    """The bucket of the distance of each query and key, [L, L], 0 at the same place.

    Distances below half of the size have buckets of their own, longer ones those of
    their logarithm (He et al., 2021, arXiv:2006.03654), in float32 as in PyTorch.

    Args:
      size: of the buckets to one side; `far` less one falls into the last of them.
      most: the distance that longer ones count as; None: they have buckets further on.
    """
    near = size // 2
    delta = np.arange(length)[:, None] - np.arange(length)[None]
    a = np.where(np.abs(delta) < near, near - 1, np.abs(delta))
    a = a if most is None else np.minimum(a, most)
    logarithm = np.log((np.maximum(a, 1) / near).astype(np.float32))
    steps = logarithm / np.log(np.float32((far - 1) / near)) * np.float32(near - 1)
    beyond = np.sign(delta) * (np.ceil(steps) + near)
    return np.where(a <= near, delta, beyond).astype(np.int64)


def attend_to_distances(
    qkv: Sequence[jax.Array],
    texts: Texts,
    seen: tuple[jax.Array, ...],
    *,
    key_PAC: jax.Array | None,
    query_PAC: jax.Array | None,
    index_of: Callable[[int], np.ndarray],
    rate: float,
    keys_T: jax.Array | None,
) -> jax.Array:
    """Attention to keys and to distances, [T, D] (He et al., 2021, arXiv:2006.03654).

    The logit of a query and a key is the sum of their product and of those of either
    with the distance's own key or query, over (C times the number of products)^0.5.

    Args:
      qkv: queries, keys and values, [T, D] each.
      seen: for each part, the tokens that others attend to, [B, L] bool.
      key_PAC: the keys of distances, by attention head; None: no such product.
      query_PAC: their queries; or None.
      index_of: gives the row of P for each query and key of texts of a length, [L, L].
      rate: of dropout on the weights.
      keys_T: a random key for each token; None: no dropout.
    """
    keys: Sequence[jax.Array | None] = [None] * len(seen)
    if keys_T is not None and rate > 0.0:
        keys = texts.split(keys_T)
    of_distances = [x for x in (key_PAC, query_PAC) if x is not None]
    num_heads, width = of_distances[0].shape[1:]
    scale = ((1 + len(of_distances)) * width) ** 0.5
    parts = []
    for *three, mask_BM, keys_BL in zip(
        *map(texts.split, qkv), seen, keys, strict=True
    ):
        shape = three[0].shape
        heads = (*shape[:2], num_heads, width)
        q_BLHC, k_BMHC, v_BMHC = (x.reshape(heads) for x in three)
        index_LM = jnp.asarray(index_of(shape[1]))
        logits_BHLM = products(q_BLHC, k_BMHC)
        if key_PAC is not None:
            logits_BHLM += _at(products(q_BLHC, key_PAC[None]), index_LM)
        if query_PAC is not None:
            towards_BHML = _at(products(k_BMHC, query_PAC[None]), index_LM.T)
            logits_BHLM += towards_BHML.swapaxes(2, 3)
        mixed_BLHC = weighed(logits_BHLM / scale, v_BMHC, mask_BM, rate, keys_BL)
        parts.append(mixed_BLHC.reshape(shape))
    return texts.join(parts)


def _at(products_BHLP: jax.Array, index_LM: jax.Array) -> jax.Array:
    """The products with each pair's distance, [B, H, L, M]."""
    return jnp.take_along_axis(products_BHLP, index_LM[None, None], axis=3)
