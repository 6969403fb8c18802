"""Cross-encoders: an encoder over a pair of texts, and a head with one score.

Sequence classifiers of Hugging Face transformers with one label (Nogueira and Cho,
2019, arXiv:1901.04085), whose head the family of the encoder has; and decoders that
answer a question about the pair, whose head is rows of the language model's.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.models.backbones.classifiers import Answers
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.models.layers import DType
from lsrjax.options import Options, option

_RULES = (
    Rule("classifier/(dense|out)/kernel", (None, None)),
    Rule("classifier/(dense|out)/bias", (None,)),
    Rule("classifier/answers", (None, None)),
)

# Where a prompt has the texts of a pair.
QUERY, DOCUMENT = "{query}", "{document}"


def bad_prompt(prompt: str) -> str | None:
    """What is wrong with a prompt; an empty one is none."""
    if not prompt or prompt.count(QUERY) == prompt.count(DOCUMENT) == 1:
        return None
    return f"it needs {QUERY} and {DOCUMENT}, each once"


@dataclasses.dataclass(frozen=True)
class Question(Options):
    """Of a decoder as a cross-encoder."""

    prompt: str = option(
        "",
        "a decoder's question about a pair, with {query} and {document}; a language"
        " model's score is the logit of its answer",
        problem=bad_prompt,
        when="scoring teacher",
    )
    yes: str = option("yes", "the answer, a single token", when="prompt")
    no: str = option(
        "no",
        "another answer, whose logit is subtracted; empty: none",
        when="prompt",
    )


@dataclasses.dataclass(frozen=True)
class CrossEncoderSpec:
    """Defines a cross-encoder; used in place of a `RetrieverSpec`.

    Attributes:
      prompt: of `Question`; empty: texts are joined as the tokenizer joins pairs.
      answers: of a decoder, how many answers' logits make the score, 1 or 2; 0: the
        family's classifier makes it.
    """

    encoder: EncoderConfig
    prompt: str = ""
    answers: int = 0
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
        make = family.classifier
        if spec.answers:
            make = functools.partial(Answers, count=spec.answers)
        assert make  # else it is refused as it is read
        self.encoder = family.encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.classifier = make(spec.encoder, dtype=dtype, rngs=rngs)

    def __call__(self, ids_BL, mask_BL, types_BL=None) -> jax.Array:
        """The scores [B] of B pairs, as logits.

        Args:
          mask_BL: 1 at tokens, 0 at padding.
          types_BL: 1 at tokens of the second text; None: all are 0.
        """
        hidden_BLD = self.encoder(ids_BL, mask_BL, types_BL=types_BL)
        return self.classifier(hidden_BLD, mask_BL)
