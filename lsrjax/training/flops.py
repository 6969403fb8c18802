"""Floating-point operations by formula.

A product of [n, k] and [k, m] counts as 2 n k m. The rest (softmax, LayerNorm,
embeddings, scores, optimizer) is small in comparison and not counted. Padding counts,
since the device computes it.
"""

import dataclasses
from collections.abc import Sequence

from lsrjax.models.retriever import RetrieverSpec

# (texts, tokens of each).
Part = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations in the encoders and in the heads."""

    encoder: int
    head: int

    @property
    def both(self) -> int:
        """The sum."""
        return self.encoder + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.encoder + other.encoder, self.head + other.head)


def forward(spec: RetrieverSpec, parts: Sequence[Part]) -> Flops:
    """Operations to encode texts once."""
    return _times(spec, parts, 1, 1, 1)


def training(
    spec: RetrieverSpec, parts: Sequence[Part], *, remat: str, chunked: bool
) -> Flops:
    """Operations to encode texts and to compute the gradients of all parameters.

    Each product of the forward pass has two in the backward pass, and one more each
    time it is recomputed.

    Args:
      remat: what the backward pass recomputes, see `lsrjax.models.backbones.encoder`.
      chunked: texts are encoded in chunks, and again in the backward pass.
    """
    times = 4 if chunked else 3
    products = times + (remat == "layer")
    attention = times + (remat in ("layer", "dots"))
    return _times(spec, parts, products, attention, times)


def _times(spec, parts, products: int, attention: int, head: int) -> Flops:
    """Operations of these numbers of passes over products, attention and the head."""
    encoder = spec.encoder
    D = encoder.hidden_size
    inner = getattr(spec.options, "pivot_hidden_size", 0)
    width = inner or D
    before = inner * inner or encoder.head_products
    layer = encoder.layer_products
    connector = D * inner
    terms = spec.views.get("pivot", encoder.vocab_size)
    total = Flops(0, 0)
    for texts, length in parts:
        tokens = texts * length
        # Queries times keys, and weights times values.
        attending = 2 * length * encoder.num_heads * encoder.head_width
        total += Flops(
            2
            * tokens
            * encoder.num_layers
            * (products * layer + attention * attending),
            2 * tokens * head * (connector + before + width * terms),
        )
    return total
