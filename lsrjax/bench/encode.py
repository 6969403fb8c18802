"""`encode`: encoding texts, compared with SparseEncoder of sentence-transformers."""

import argparse
import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from rich.table import Table
from scipy import sparse

from lsrjax.bench import encode_pipeline, measure
from lsrjax.bench.sizes import add_flags, positive, resolve, share, size
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.cli import encode_job
from lsrjax.cli.encode_job import Request
from lsrjax.convert import open_model, targets
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.heads import MilcoHead
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.vector_formats.table import FORMATS

HEADS = ("splade", "milco")
# The export target from which SparseEncoder loads each head.
_TARGETS = {"splade": "splade", "csr": "csr", "milco": "milco-sparse-encoder"}
OURS, THEIRS = "lsrjax", "SparseEncoder"
_CALIBRATION_TEXTS = 32

_DESCRIPTION = """\
Encodes documents of the embedded data twice: by lsrjax.encode, from opening the model
and compiling it to the finished file, and by SparseEncoder.encode of
sentence-transformers, from the loaded model to the tensor. Both read one folder, which
the model is exported to, on the device that each of them takes by itself. Later rounds
open the model again and find what the first has compiled.

With --pipeline, compares the model alone with all of lsrjax encode: reading, tokenizing
and writing, which run beside it.
"""


@dataclasses.dataclass(frozen=True)
class EncodeSizes:
    """Sizes of the texts' batches, and of a random model."""

    texts: int = size(10_000, "documents")
    batch: int = size(64, "documents encoded at once")
    length: int = size(256, "most tokens of a document")
    layers: int = size(4, "layers of a random model")
    dim: int = size(256, "its width")
    heads: int = size(4, "its attention heads")
    inner: int = size(1024, "its inner width")
    dtype: str = size("float32", "of both", choices=("float32", "bfloat16"))


def add_command(commands) -> None:
    """Adds `encode` to the program's commands."""
    parser = commands.add_parser(
        "encode",
        help="encoding texts, against sentence-transformers",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, EncodeSizes, {})
    parser.add_argument(
        "--model",
        default="",
        help="a run's or stage's folder, a folder or a hub id; without, random weights",
    )
    parser.add_argument(
        "--head", choices=HEADS, default="splade", help="of a random model (splade)"
    )
    parser.add_argument(
        "--active",
        type=share,
        default=0.01,
        help="share of the terms that a random model makes active (default: 0.01)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=1, help="rounds, in turn (default: 1)"
    )
    parser.add_argument(
        "--pipeline",
        nargs="*",
        choices=FORMATS,
        metavar="FORMAT",
        help="compare with the model alone, writing these formats (npz jsonl)",
    )
    parser.set_defaults(run=run, preset=None)


def run(args: argparse.Namespace) -> None:
    """Measures and prints the table."""
    pipeline = args.pipeline is not None
    if not pipeline:
        _sparse_encoder()  # a mistake shows before a model is made
    (sizes,) = resolve(args, EncodeSizes(), {}, "encode").values()
    texts = documents(sizes.texts)
    if args.model:
        model = open_model.open_portable(args.model)
        length = min(sizes.length, model.spec.encoder.max_length)
        model = dataclasses.replace(model, document_length=length)
    else:
        model = random_model(args.head, sizes, args.active, texts)
    if pipeline:
        formats = args.pipeline or ["npz", "jsonl"]
        table = encode_pipeline.table(model, texts, sizes.batch, args.repeats, formats)
        Console().print(measure.machine(), table, sep="\n", highlight=False)
        return
    device, figures = compared(model, texts, sizes, args.repeats)
    Console().print(
        f"{measure.machine()}; {device} for theirs",
        _table(model, sizes, figures),
        sep="\n",
        highlight=False,
    )


def compared(
    model: SavedModel, texts: list[str], sizes: EncodeSizes, repeats: int
) -> tuple[str, dict[str, float]]:
    """Their device; seconds of each program by round, and how much vectors differ.

    Raises:
      InputError: sentence-transformers is missing, or has no place for the model.
    """
    sparse_encoder = _sparse_encoder()
    target = _TARGETS.get(model.spec.head)
    if target is None or not model.spec.encodes_queries:
        raise InputError(
            f"{model.name}: SparseEncoder has no place for its head"
            f" {model.spec.head!r}. Those it has one for: {', '.join(_TARGETS)}, with"
            " queries that are encoded."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        targets.TARGETS[target].write(model, _made(folder / "model"))
        theirs = sparse_encoder(str(folder / "model"), trust_remote_code=True)
        if sizes.dtype == "bfloat16":
            theirs = theirs.bfloat16()
        programs: dict[str, Callable[[], sparse.csr_matrix]] = {
            OURS: _Ours(folder, texts, sizes),
            THEIRS: lambda: _theirs(theirs, texts, sizes.batch),
        }
        vectors = {}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        with _compiled_in(folder / "compiled"):
            for _ in range(repeats):
                for name, encode in programs.items():
                    started = time.perf_counter()
                    vectors[name] = encode()
                    seconds[name].append(time.perf_counter() - started)
    found = {f"{name}, first round": of[0] for name, of in seconds.items()}
    if repeats > 1:
        later = {name: float(np.median(of[1:])) for name, of in seconds.items()}
        found |= {f"{name}, later": of for name, of in later.items()}
    wanted = vectors[THEIRS]
    return str(theirs.device), found | {
        "active terms of a document": wanted.nnz / wanted.shape[0],
        "largest difference": float(abs(vectors[OURS] - wanted).max()),
        "… of a text's largest weight": difference(vectors[OURS], wanted),
    }


@contextlib.contextmanager
def _compiled_in(folder: pathlib.Path):
    """Keeps what is compiled for the rounds after the first, which compile anew."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def documents(count: int) -> list[str]:
    """`count` embedded documents, evenly from all languages; InputError if too many."""
    texts = embedded.load("train").rows["text"]
    if count > len(texts):
        raise InputError(f"--texts {count}, but there are {len(texts):,}.")
    return [texts[i * len(texts) // count] for i in range(count)]


def random_model(head: str, sizes: EncodeSizes, active: float, texts) -> SavedModel:
    """A model whose vectors have about the wanted share of active terms.

    "splade" or "milco" with LexEcho; the share is of MILCO's pivot vocabulary.
    """
    tokenizer = TextTokenizer(embedded.MULTILINGUAL_TOKENIZER)
    encoder = BertConfig(
        family="xlm-roberta",
        vocab_size=tokenizer.vocab_size,
        hidden_size=sizes.dim,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        intermediate_size=sizes.inner,
        max_positions=sizes.length + tokenizer.pad_id + 1,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_id,
        layer_norm_eps=1e-5,
    )
    options: dict[str, Any] = {}
    pivot = None
    if head == "milco":
        pivot = pathlib.Path(embedded.ENGLISH_TOKENIZER)
        terms = TextTokenizer(pivot).vocab_size
        options = {MilcoHead.source_option: True, "pivot_vocab_size": terms}
        options["pivot_hidden_size"] = sizes.dim
    spec = RetrieverSpec.of(head, encoder, special_ids=tokenizer.special_ids, **options)
    params = jax.tree.map(np.array, retriever.init_params(spec, 0))
    # Far above 0, so that all terms are active and show their logits.
    bias = params["head"]["mlm"]["bias"]
    bias += 100
    some = texts[:_CALIBRATION_TEXTS]
    view = next(iter(spec.views))
    encoder_of_some = TextEncoder(spec, tokenizer, batch_size=16)
    matrix = encoder_of_some.encode(params, some, sizes.length)[view]
    assert isinstance(matrix, sparse.csr_matrix)
    seen = matrix.toarray()
    bias -= np.quantile(np.expm1(seen), 1 - active)
    folder = pathlib.Path(embedded.MULTILINGUAL_TOKENIZER)
    return SavedModel(
        spec, params, folder, pivot, f"random {head}", sizes.length, sizes.length
    )


def _sparse_encoder():
    try:
        from sentence_transformers import SparseEncoder
    except ImportError as error:
        raise InputError(
            "encode compares with sentence-transformers, which is not installed here:"
            " pip install 'sentence-transformers>=6.2'."
        ) from error
    return SparseEncoder


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder


class _Ours:
    """Encodes a file of texts with the model next to it, from scratch on each call."""

    def __init__(self, folder: pathlib.Path, texts: list[str], sizes: EncodeSizes):
        self._folder, self._sizes = folder, sizes
        with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
            for i, text in enumerate(texts):
                file.write(json.dumps({"id": str(i), "text": text}) + "\n")

    def __call__(self) -> sparse.csr_matrix:
        out = self._folder / "vectors.npz"
        out.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):  # its progress
            encode_job.encode(
                Request(
                    str(self._folder / "model"),
                    str(self._folder / "texts.jsonl"),
                    str(out),
                    batch_size=self._sizes.batch,
                    dtype=self._sizes.dtype,
                )
            )
        return sparse.load_npz(out)


def _theirs(model, texts: list[str], batch: int) -> sparse.csr_matrix:
    found = model.encode_document(texts, batch_size=batch, save_to_cpu=True).coalesce()
    places = found.indices().numpy()
    values = found.values().float().numpy()
    return sparse.csr_matrix((values, places), shape=found.shape)


def difference(found: sparse.csr_matrix, wanted: sparse.csr_matrix) -> float:
    """The largest difference of rows, as a share of the wanted row's largest weight."""
    largest = np.maximum(wanted.max(axis=1).toarray()[:, 0], 1e-30)
    return float((abs(found - wanted).max(axis=1).toarray()[:, 0] / largest).max())


def _table(model: SavedModel, sizes: EncodeSizes, figures: dict[str, float]) -> Table:
    table = Table(
        title=f"{model.name}: {sizes.texts:,} documents, batches of {sizes.batch},"
        f" {sizes.dtype}"
    )
    table.add_column("program")
    for column in ("seconds", "texts/s", "speed-up"):
        table.add_column(column, justify="right")
    for name, one in figures.items():
        program, _, when = name.partition(", ")
        if program in (OURS, THEIRS):
            rate = f"{sizes.texts / one:,.0f}"
            gain = f"{figures[f'{THEIRS}, {when}'] / one:.2f}x"
            table.add_row(name, measure.figure(one), rate, gain)
        else:
            table.add_row(name, measure.figure(one))
    return table
