"""Cross-encoders: an encoder over a pair of texts, and a head with one score.

`BertForSequenceClassification` and `XLMRobertaForSequenceClassification` of Hugging
Face transformers, with one label (Nogueira and Cho, 2019, arXiv:1901.04085).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.models.layers import DType, linear


@dataclasses.dataclass(frozen=True)
class CrossEncoderSpec:
    """Defines a cross-encoder; used in place of a `RetrieverSpec`."""

    encoder: EncoderConfig
    head: ClassVar[str] = "cross-encoder"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("classifier/(dense|out)/kernel", (None, None)),
        Rule("classifier/(dense|out)/bias", (None,)),
    )


class Classifier(nnx.Module):
    """Dense layer, tanh, and a linear layer with one output, on the first token."""

    def __init__(self, size: int, *, dtype: DType = jnp.float32, rngs: nnx.Rngs):
        self.dense = linear(size, size, dtype=dtype, rngs=rngs)
        self.out = linear(size, 1, dtype=dtype, rngs=rngs)

    def __call__(self, first_BD: jax.Array) -> jax.Array:
        """The scores [B], float32."""
        hidden_BD = jnp.tanh(self.dense(first_BD))
        return self.out(hidden_BD)[:, 0].astype(jnp.float32)


class CrossEncoder(nnx.Module):
    """Scores pairs of texts. Parameters: `encoder/...`, `classifier/{dense,out}`."""

    def __init__(
        self, spec: CrossEncoderSpec, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        encoder = backbone(spec.encoder.family).encoder
        self.encoder = encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(spec.encoder.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, ids_BL, mask_BL, types_BL=None) -> jax.Array:
        """The scores [B] of B pairs, as logits.

        Args:
          mask_BL: 1 at tokens, 0 at padding.
          types_BL: 1 at tokens of the second text; None: all are 0.
        """
        hidden_BLD = self.encoder(ids_BL, mask_BL, types_BL=types_BL)
        return self.classifier(hidden_BLD[:, 0])
