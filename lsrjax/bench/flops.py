"""Floating point operations by formula, and what chips can do.

A product of [n, k] and [k, m] counts as 2 n k m; everything else (softmax, LayerNorm,
embeddings, scores, optimizer) is left out, being small beside the products. Texts are
counted with their padding, which the device computes as well.
"""

import dataclasses
import re
from collections.abc import Sequence

from lsrjax.models.retriever import RetrieverSpec
from lsrjax.plan import forward_operations

# Texts and tokens of a part.
Part = tuple[int, int]

# Dense peaks in TFLOP/s: products of bfloat16, and of float32 at JAX's default
# precision, which is TF32 where a GPU has it, and bfloat16 on a TPU. None: the chip has
# no units for it. From the vendors' data sheets, which for GPUs since A100 also print
# twice as much, for 2:4 sparse weights. More special names come first.
PEAKS: tuple[tuple[str, float | None, float | None], ...] = (
    ("A100", 312, 156),
    ("H100 PCIe", 756, 378),
    ("H100 NVL", 835, 418),
    ("H100", 989, 495),
    ("H200", 989, 495),
    ("GH200", 989, 495),
    ("L40S", 362, 183),
    ("L40", 181, 90.5),
    ("L4", 121, 60.5),
    ("T4", None, 8.1),
    ("V100-PCIE", None, 14.0),
    ("V100", None, 15.7),
    ("TPU v4 lite", 138, 138),
    ("TPU v4", 275, 275),
    ("TPU v5 lite", 197, 197),
    ("TPU v5e", 197, 197),
    ("TPU v5p", 459, 459),
    ("TPU v5", 459, 459),
    ("TPU v6 lite", 918, 918),
    ("TPU v6e", 918, 918),
)


def peak(device_kind: str, dtype: str) -> float | None:
    """Dense peak of a device in FLOP/s; None if it is not known.

    Args:
      device_kind: of a `jax.Device`.
      dtype: "bfloat16" or "float32".
    """
    for name, bfloat16, float32 in PEAKS:
        # As a word: an L4 is not an L40, and a T4 no T400.
        if re.search(rf"\b{name}\b", device_kind, re.IGNORECASE):
            tera = {"bfloat16": bfloat16, "float32": float32}[dtype]
            return None if tera is None else tera * 1e12
    return None


def pool_flops(tokens: int, dim: int, vocab: int) -> int:
    """Forward pass of the vocabulary projection."""
    return 2 * tokens * dim * vocab


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
      remat: what the backward pass computes again, see `lsrjax.models.encoder`.
      chunked: texts are encoded some at a time, and again in the backward pass.
    """
    times = 4 if chunked else 3
    products = times + (remat == "layer")
    attention = times + (remat in ("layer", "dots"))
    return _times(spec, parts, products, attention, times)


def _times(spec, parts, products: int, attention: int, head: int) -> Flops:
    """Each kind of product so many times: the encoder's with parameters, its others."""
    encoder = spec.encoder
    total = Flops(0, 0)
    for texts, length in parts:
        once, pooled = map(int, forward_operations(spec, texts, length))
        # Of queries with keys, and of weights with values.
        width = encoder.num_layers * encoder.hidden_size
        attending = 2 * 2 * texts * length * length * width
        total += Flops(
            products * (once - attending) + attention * attending, head * pooled
        )
    return total
