"""A stage to measure: sizes, models of random weights, batches of random tokens."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from lsrjax.bench.sizes import not_negative, share, size
from lsrjax.config.fields import get_default
from lsrjax.convert.read import presets
from lsrjax.data.batching import loader
from lsrjax.data.batching.drawing import Drawn, Encoded
from lsrjax.data.batching.orders import Order
from lsrjax.errors import InputError
from lsrjax.losses import objective
from lsrjax.losses.table import LOSSES
from lsrjax.models import heads, term_weights
from lsrjax.models.backbones.encoder import REMAT
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import BACKBONES, backbone
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.optimizers import OPTIMIZERS
from lsrjax.training import train_step

TEACHER = "teacher"
# The losses of a MILCO or SPLADE head over texts of one language; the others need
# another head, or each query in several languages.
TASKS = ("alignment", "kl", "margin_mse", "infonce")


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """Sizes of a training step."""

    task: str = size(
        "kl",
        "loss",
        choices=TASKS,
        metavar="{" + ",".join(TASKS) + "}",
    )
    checkpoint: str = size(
        "",
        "whose encoder's other fields, such as windows, are taken; a preset names it",
        choices=("", *presets.PRESETS),
        metavar="ID",
    )
    family: str = size(
        "xlm-roberta",
        "of the encoder",
        choices=tuple(BACKBONES),
        metavar="{" + ",".join(BACKBONES) + "}",
    )
    layers: int = size(2, "of the encoder")
    dim: int = size(128, "hidden size")
    heads: int = size(4, "attention heads")
    inner: int = size(512, "width of the feed-forward blocks")
    vocab: int = size(8192, "tokens of the encoder's vocabulary")
    pivot_vocab: int = size(
        8192,
        "terms of an English vocabulary: a MILCO head, with LexEcho where there are "
        "queries. 0: a SPLADE head over the encoder's own vocabulary, tied",
        type=not_negative,
    )
    pivot_dim: int = size(
        0, "MILCO: width of the English head; 0: as --dim", type=not_negative
    )
    teacher_layers: int = size(
        0,
        "alignment: of the English SPLADE, a BERT as wide as --pivot-dim; 0: as "
        "--layers",
        type=not_negative,
    )
    batch: int = size(8, "queries or pairs for each device of --mesh-data")
    group: int = size(4, "documents of a query; without effect in alignment")
    length: int = size(64, "most tokens of a document, or of a pair's texts")
    query_length: int = size(32, "most tokens of a query")
    fill: float = size(
        0.75,
        "mean length of the texts as a share of the most; lengths are uniform around "
        "it, and 1 makes all texts full",
        type=share,
    )
    parts: int = size(4, "parts that a device's texts are cut into by length")
    dtype: str = size("float32", "of the products", choices=("float32", "bfloat16"))
    remat: str = size(
        "none",
        "what a layer's backward pass computes again",
        choices=tuple(REMAT),
    )
    optimizer: str = size(
        "adamw", "with its defaults", choices=tuple(OPTIMIZERS), metavar="NAME"
    )
    encode_chunk: int = size(
        0,
        "texts a device encodes at a time, and again in the backward pass; 0: all at "
        "once",
        type=not_negative,
    )

    @property
    def milco(self) -> bool:
        """A MILCO head, not a SPLADE head."""
        return self.pivot_vocab > 0

    @property
    def pairs(self) -> bool:
        """Aligns pairs; otherwise ranks the documents of queries."""
        return self.task == "alignment"

    @property
    def texts(self) -> int:
        """Number of texts that the student encodes, per device of --mesh-data."""
        return self.batch * (2 if self.pairs else 1 + self.group)

    def check(self) -> None:
        """Raises InputError for inconsistent sizes."""
        if self.dim % self.heads:
            raise InputError(
                f"--dim {self.dim} does not divide over --heads {self.heads}."
            )
        if self.pairs and not self.milco:
            raise InputError("alignment needs an English vocabulary: --pivot-vocab.")
        if self.pairs and (self.pivot_dim or self.dim) % (self.dim // self.heads):
            raise InputError(
                f"--pivot-dim {self.pivot_dim} does not divide into heads of"
                f" {self.dim // self.heads}, the width of the student's."
            )
        if "scores" in LOSSES[self.task].targets and self.group < 2:
            raise InputError(
                f"{self.task} compares a query's documents: --group 2 or more."
            )
        vocab = min(self.vocab, self.pivot_vocab or self.vocab)
        if vocab <= _FIRST_ID:
            raise InputError(
                f"A vocabulary of {vocab} holds nothing but special tokens; take at"
                f" least {_FIRST_ID + 1}."
            )


def model_sizes(name: str) -> dict:
    """Sizes of a checkpoint that `presets.PRESETS` knows."""
    encoder, _ = presets.PRESETS[name]
    return {
        "checkpoint": name,
        "family": encoder.family,
        "layers": encoder.num_layers,
        "dim": encoder.hidden_size,
        "heads": encoder.num_heads,
        "inner": encoder.intermediate_size,
        "vocab": encoder.vocab_size,
    }


def _splade(name: str) -> StepSizes:
    """SPLADE over a checkpoint's own terms."""
    return StepSizes(
        task="infonce",
        pivot_vocab=0,
        batch=8,
        group=1,
        length=256,
        query_length=64,
        dtype="bfloat16",
        **model_sizes(name),
    )


_TEACHER = model_sizes("naver/splade-v3")
_MILCO = {
    **model_sizes("BAAI/bge-m3-unsupervised"),
    "pivot_vocab": _TEACHER["vocab"],
    "pivot_dim": _TEACHER["dim"],
    "length": 256,
    "query_length": 64,
    "dtype": "bfloat16",
    "encode_chunk": 32,
}
PRESETS: dict[str, dict[str, StepSizes]] = {
    "splade-v3": {
        "splade-v3": StepSizes(
            pivot_vocab=0,
            batch=32,
            group=9,
            length=512,
            query_length=64,
            dtype="bfloat16",
            **_TEACHER,
        )
    },
    "xlmr-base-250k": {"xlmr-base-250k": _splade("FacebookAI/xlm-roberta-base")},
    "milco": {
        "stage 1": StepSizes(
            task="alignment",
            batch=1024,
            group=1,
            teacher_layers=_TEACHER["layers"],
            **_MILCO,
        ),
        "stage 2": StepSizes(task="kl", batch=128, group=8, **_MILCO),
    },
    **{name: {name: _splade(name)} for name in presets.PRESETS},
}


def config_of(sizes: StepSizes, total_steps: int):
    """The config of a stage of these sizes."""
    c = get_default()
    c.loss = {sizes.task: {}}
    c.model.dtype = sizes.dtype
    c.model.dropout = 0.0
    c.optim.optimizer = sizes.optimizer
    c.memory.remat = sizes.remat
    c.memory.encode_chunk = sizes.encode_chunk
    c.steps = total_steps
    if not sizes.pairs:
        c.data.group_size = sizes.group
        # Those of configs/distill.py.
        c.regularizer.query, c.regularizer.document = 1e-3, 1e-5
    return c


def student_of(sizes: StepSizes) -> RetrieverSpec:
    """The trained retriever."""
    encoder = _encoder(
        sizes,
        family=sizes.family,
        checkpoint=sizes.checkpoint,
        vocab_size=sizes.vocab,
        hidden_size=sizes.dim,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        intermediate_size=sizes.inner,
    )
    if not sizes.milco:
        return RetrieverSpec.of("splade", encoder, tied=True)
    return RetrieverSpec.of(
        "milco",
        encoder,
        pivot_vocab_size=sizes.pivot_vocab,
        pivot_hidden_size=sizes.pivot_dim or sizes.dim,
    ).replaced(**{heads.MilcoHead.source_option: not sizes.pairs})


def teacher_of(sizes: StepSizes) -> RetrieverSpec | None:
    """The English SPLADE of alignment; otherwise None."""
    if not sizes.pairs:
        return None
    width = sizes.pivot_dim or sizes.dim
    encoder = _encoder(
        sizes,
        family="bert",
        vocab_size=sizes.pivot_vocab,
        hidden_size=width,
        num_layers=sizes.teacher_layers or sizes.layers,
        # Heads and blocks in BERT's proportions; heads as wide as the student's.
        num_heads=width // (sizes.dim // sizes.heads),
        intermediate_size=4 * width,
    )
    return RetrieverSpec.of("splade", encoder, tied=True)


_PAD_ID = 1
_FIRST_ID = _PAD_ID + 1


def _encoder(
    sizes: StepSizes, *, family: str, checkpoint: str = "", **fields
) -> EncoderConfig:
    """An encoder of these sizes, and of a checkpoint's other fields."""
    longest = max(sizes.length, sizes.query_length)
    known, _ = presets.PRESETS.get(checkpoint, (None, False))
    if known is None or known.family != family:
        return backbone(family).config.fresh(family, _PAD_ID, longest, **fields)
    if known.max_length < longest:
        fields["max_positions"] = known.max_positions + longest - known.max_length
    return dataclasses.replace(known, **fields)


def least_bytes(sizes: StepSizes, devices: int) -> tuple[int, int]:
    """Lower bounds of a step's memory on the host and on the devices, in bytes.

    Computed before anything is allocated, so that impossible sizes are refused and not
    tried; the compiler's count comes later.
    """
    D, E = sizes.dim, sizes.pivot_dim or sizes.dim
    layers = sizes.layers * student_of(sizes).encoder.layer_products
    params = sizes.vocab * D + layers + sizes.pivot_vocab * E
    texts = sizes.texts * devices
    weights = texts * (sizes.pivot_vocab or sizes.vocab)
    # Tokens of the batches that the shapes are fitted to; parameters and gradients;
    # terms' weights and their gradients.
    samples = 4 * 16 * texts * max(sizes.length, sizes.query_length)
    return samples, 2 * 4 * params + 2 * 4 * weights


def batches(sizes: StepSizes, devices: int) -> loader.Batches:
    """Batches of random texts, cut into parts as in training."""
    count = sizes.batch * devices
    return loader.Batches(
        range(count),
        Order(count, count, seed=0),
        _RandomTexts(sizes),
        devices=devices,
        parts=sizes.parts,
        chunk=sizes.encode_chunk,
    )


@dataclasses.dataclass(frozen=True)
class _RandomTexts:
    """Stands in for `loader.PairBatches` or `GroupBatches`."""

    sizes: StepSizes
    repeats = 1  # of an example in a batch

    @property
    def encoded(self) -> dict[str, Encoded]:
        sizes = self.sizes
        pad = student_of(sizes).encoder.pad_token_id
        if sizes.pairs:
            return {
                "student": Encoded(("translation", "english"), sizes.length, pad),
                TEACHER: Encoded((TEACHER,), sizes.length, _PAD_ID),
            }
        longest = max(sizes.length, sizes.query_length)
        return {"student": Encoded(("query", "document"), longest, pad)}

    def draw(
        self, examples: Sequence[int], rngs: Sequence[np.random.Generator]
    ) -> list[Drawn]:
        loss = objective.of(config_of(self.sizes, 1).loss)
        arrays = loss.arrays(1, self.sizes.group)
        return [self._draw(rng, arrays) for rng in rngs]

    def _draw(self, rng: np.random.Generator, arrays) -> Drawn:
        sizes = self.sizes
        if sizes.pairs:
            vocabularies = {
                "translation": sizes.vocab,
                "english": sizes.vocab,
                TEACHER: sizes.pivot_vocab,
            }
            return Drawn(
                {
                    name: [self._text(rng, sizes.length, vocab)]
                    for name, vocab in vocabularies.items()
                }
            )
        texts = {
            "query": [self._text(rng, sizes.query_length, sizes.vocab)],
            "document": [
                self._text(rng, sizes.length, sizes.vocab) for _ in range(sizes.group)
            ],
        }
        targets = {}
        for name, array in arrays.items():
            _, *shape = array.shape
            if name == "scores":
                targets[name] = rng.standard_normal(shape, array.dtype)
            else:
                targets[name] = rng.integers(2**31, size=shape, dtype=array.dtype)
        return Drawn(texts, targets)

    def _text(self, rng: np.random.Generator, most: int, vocab: int) -> np.ndarray:
        shortest, longest = lengths_around(self.sizes.fill, most)
        tokens = rng.integers(shortest, longest, endpoint=True)
        return rng.integers(_FIRST_ID, vocab, size=tokens, dtype=np.int32)


def lengths_around(fill: float, most: int) -> tuple[int, int]:
    """The range of uniformly distributed lengths with mean `fill * most`."""
    spread = min(fill, 1 - fill)
    shortest = max(round((fill - spread) * most), 1)
    return shortest, max(round((fill + spread) * most), shortest)


@contextlib.contextmanager
def pooling(impl: str) -> Iterator[None]:
    """Within it, heads are traced with one implementation of `vocab_pool`.

    For benchmarks only: in training, `vocab_pool` itself takes the fastest one for the
    backend. Only functions traced within it, not those in JAX's cache, are affected.
    """
    original = term_weights.vocab_pool
    term_weights.vocab_pool = functools.partial(original, impl=impl)
    try:
        yield
    finally:
        term_weights.vocab_pool = original


def step_of(sizes: StepSizes, total_steps: int) -> train_step.Step:
    """The training step of a stage of these sizes."""
    config = config_of(sizes, total_steps)
    return train_step.make_step(
        config, total_steps, student_of(sizes), teacher_of(sizes)
    )
