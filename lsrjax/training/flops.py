"""Floating point operations by formula.

A product of [n, k] and [k, m] counts as 2 n k m; everything else (softmax, LayerNorm,
embeddings, scores, optimizer) is left out, being small beside the products. Texts are
counted with their padding, which the device computes as well.
"""

import dataclasses
from collections.abc import Sequence

from lsrjax.models.retriever import RetrieverSpec

# Texts and tokens of a part.
Part = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of a computation.

    Attributes:
      encoder: in the encoders.
      head: in the heads.
    """

    encoder: int
    head: int

    @property
    def both(self) -> int:
        """The sum."""
        return self.encoder + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.encoder + other.encoder, self.head + other.head)


def forward(spec: RetrieverSpec, parts: Sequence[Part]) -> Flops:
    """Encodes texts once."""
    return _times(spec, parts, 1, 1, 1)


def training(
    spec: RetrieverSpec, parts: Sequence[Part], *, remat: str, chunked: bool
) -> Flops:
    """Encodes texts, with the gradients of all parameters.

    Every product of the forward pass has two in the backward pass, and one more each
    time it is computed again.

    Args:
      spec: of the model.
      parts: of the texts.
      remat: what the backward pass computes again, see `lsrjax.models.backbones.bert`.
      chunked: texts are encoded some at a time, and again in the backward pass.
    """
    times = 4 if chunked else 3
    products = times + (remat == "layer")
    attention = times + (remat in ("layer", "dots"))
    return _times(spec, parts, products, attention, times)


def _times(spec, parts, products: int, attention: int, head: int) -> Flops:
    """FLOPs with a number of passes each: products with parameters, attention, head."""
    encoder = spec.encoder
    D = encoder.hidden_size
    inner = getattr(spec.options, "pivot_hidden_size", 0)
    width = inner or D
    layer = 4 * D * D + 2 * D * encoder.intermediate_size
    connector = D * inner
    terms = spec.views.get("pivot", encoder.vocab_size)
    total = Flops(0, 0)
    for texts, length in parts:
        tokens = texts * length
        # Of queries with keys, and of weights with values.
        attending = 2 * length * D
        total += Flops(
            2
            * tokens
            * encoder.num_layers
            * (products * layer + attention * attending),
            2 * tokens * head * (connector + width * width + width * terms),
        )
    return total
