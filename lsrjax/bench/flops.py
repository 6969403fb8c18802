"""Floating point operations by formula, and what chips can do.

A product of [n, k] and [k, m] counts as 2 n k m; everything else (softmax, LayerNorm,
embeddings, scores, optimizer) is left out, being small beside the products. Texts are
counted with their padding, which the device computes as well.
"""

import dataclasses
import re
from collections.abc import Sequence

from lsrjax.models.encoder import EncoderConfig
from lsrjax.models.retriever import RetrieverSpec

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
    total = Flops(0, 0)
    for texts, length in parts:
        tokens = texts * length
        total += Flops(
            products * _products(spec.encoder, tokens)
            + attention * _attention(spec.encoder, tokens, length),
            head * _head(spec, tokens),
        )
    return total


def _products(config: EncoderConfig, tokens: int) -> int:
    """With parameters: query, key, value, output; the feed-forward block."""
    D, inner = config.hidden_size, config.intermediate_size
    return config.num_layers * 2 * tokens * (4 * D * D + 2 * D * inner)


def _attention(config: EncoderConfig, tokens: int, length: int) -> int:
    """Of queries with keys, and of weights with values."""
    return config.num_layers * 2 * 2 * tokens * length * config.hidden_size


def _head(spec: RetrieverSpec, tokens: int) -> int:
    D = E = spec.encoder.hidden_size
    vocab = spec.encoder.vocab_size
    connector = 0
    if spec.head == "milco":
        E, vocab = spec.pivot_hidden_size, spec.pivot_vocab_size
        connector = 2 * tokens * D * E
    return connector + 2 * tokens * E * E + pool_flops(tokens, E, vocab)
