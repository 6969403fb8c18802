"""Heads of cross-encoders, which families share: states of pairs become scores.

A head is made from the encoder's config; it maps hidden states [B, L, D] and the mask
[B, L] to the scores [B], float32. Its parameters are at `classifier/...`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.layers import DType, linear


class FirstToken(nnx.Module):
    """Dense layer, activation, and a linear layer with one output, on the first token.

    As in `BertForSequenceClassification` and `XLMRobertaForSequenceClassification` of
    Hugging Face transformers, with one label. Parameters: `{dense,out}/{kernel,bias}`.

    Attributes:
      activation: of the dense layer.
    """

    activation = staticmethod(jnp.tanh)

    def __init__(
        self, config: EncoderConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        size = config.hidden_size
        self.dense = linear(size, size, dtype=dtype, rngs=rngs)
        self.out = linear(size, 1, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """The scores [B]."""
        hidden_BD = self.activation(self.dense(hidden_BLD[:, 0]))
        return self.out(hidden_BD)[:, 0].astype(jnp.float32)


class LastToken(nnx.Module):
    """A linear layer with one output and without bias, on the last token.

    As in `Qwen3ForSequenceClassification` and its like in Hugging Face transformers,
    with one label. Parameters: `out/kernel`.
    """

    def __init__(
        self, config: EncoderConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        size = config.hidden_size
        self.out = linear(size, 1, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """The scores [B]."""
        state_BD = last_of_tokens(hidden_BLD, mask_BL)
        return self.out(state_BD)[:, 0].astype(jnp.float32)


class Answers(nnx.Module):
    """A language model's logit of one answer to a prompt, maybe less that of another.

    Of the token after the last one, as Qwen3-Reranker (Zhang et al. 2025, arXiv
    2506.05176) and BGE's rerankers of decoders have it. Parameters: `answers` [K, D],
    the rows of the answers in the head's decoder.
    """

    def __init__(
        self,
        config: EncoderConfig,
        count: int,
        *,
        dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Adds the parameters of `count` answers, one or two."""
        del dtype, rngs
        self.answers = nnx.Param(jnp.zeros((count, config.hidden_size)))
        self.cap = getattr(config, "logit_cap", 0.0)

    def __call__(self, hidden_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """The scores [B]."""
        state_BD = last_of_tokens(hidden_BLD, mask_BL).astype(jnp.float32)
        logits_BK = jnp.matmul(
            state_BD, self.answers[...].T, precision=jax.lax.Precision.HIGHEST
        )
        if self.cap:
            logits_BK = self.cap * jnp.tanh(logits_BK / self.cap)
        return logits_BK[:, 0] - logits_BK[:, 1:].sum(axis=1)


def last_of_tokens(hidden_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """The state of a text's last token [B, D], wherever the padding is.

    Without tokens, that of the last place.
    """
    L = mask_BL.shape[1]
    last_B = L - 1 - jnp.argmax(mask_BL[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]


def mean_of_tokens(hidden_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """The mean of the states of a text's tokens [B, D], summed in float32."""
    kept_BL1 = mask_BL.astype(jnp.float32)[..., None]
    sum_BD = (hidden_BLD.astype(jnp.float32) * kept_BL1).sum(axis=1)
    mean_BD = sum_BD / jnp.maximum(kept_BL1.sum(axis=1), 1)
    return mean_BD.astype(hidden_BLD.dtype)
