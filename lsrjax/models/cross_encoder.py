"""Cross-encoders: an encoder over a pair of texts, and a head with one score.

Sequence classifiers of Hugging Face transformers with one label (Nogueira and Cho,
2019, arXiv:1901.04085); the family of the encoder has the head.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.models.layers import DType

_RULES = (
    Rule("classifier/(dense|out)/kernel", (None, None)),
    Rule("classifier/(dense|out)/bias", (None,)),
)


@dataclasses.dataclass(frozen=True)
class CrossEncoderSpec:
    """Defines a cross-encoder; used in place of a `RetrieverSpec`."""

    encoder: EncoderConfig
    head: ClassVar[str] = "cross-encoder"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Partition rules of parameters that the table in `sharding` lacks."""
        return (*backbone(self.encoder.family).encoder.rules, *_RULES)


class CrossEncoder(nnx.Module):
    """Scores pairs of texts. Parameters: `encoder/...`, `classifier/...`."""

    def __init__(
        self, spec: CrossEncoderSpec, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        family = backbone(spec.encoder.family)
        assert family.classifier  # else it is refused as it is read
        self.encoder = family.encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.classifier = family.classifier(spec.encoder, dtype=dtype, rngs=rngs)

    def __call__(self, ids_BL, mask_BL, types_BL=None) -> jax.Array:
        """The scores [B] of B pairs, as logits.

        Args:
          mask_BL: 1 at tokens, 0 at padding.
          types_BL: 1 at tokens of the second text; None: all are 0.
        """
        hidden_BLD = self.encoder(ids_BL, mask_BL, types_BL=types_BL)
        return self.classifier(hidden_BLD, mask_BL)
