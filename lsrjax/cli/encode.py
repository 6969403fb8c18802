"""Encodes a file of texts with a trained retriever.

    python -m lsrjax.encode --model runs/demo/distill --texts docs.jsonl --out docs.npz

The model is a run's or a stage's folder, or anything that `lsrjax.convert` reads or
writes except ONNX. Texts are lines of a .txt file, or .jsonl, .tsv, .csv or .parquet
with an id and a text. Vectors go to .npz, a scipy CSR matrix with a row per text and a
column per term (for MILCO, English terms, then the encoder's own), or to .jsonl, a line
per text with its id and the weights of its terms by name. Embeddings go to the same
files, as arrays and lists: see docs/formats.md. Memory does not grow with the number of
texts. The same command resumes a program that was stopped.
"""

import argparse
import hashlib
import itertools
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import sparse

from lsrjax import paths
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.open_model import open_portable
from lsrjax.data.reading.texts import read_texts
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import preemption, processes, safe_output
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.models.heads import own_head
from lsrjax.retrieval import terms
from lsrjax.retrieval.encode_texts import TextEncoder, joined
from lsrjax.retrieval.vector_formats import table
from lsrjax.retrieval.vector_formats.vectors import DENSE, SPARSE, TOKENS, About
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles

# Texts are sorted by length within 64 batches: little padding, bounded memory.
_WINDOW_BATCHES = 64
_REPORT_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    args = _parser().parse_args(argv)
    try:
        processes.check_devices()
        if args.head:
            own_head(args.head, "--head")
        encode_file(
            args.model,
            args.texts,
            args.out,
            role=args.role,
            max_length=args.max_length,
            batch_size=args.batch_size,
            dtype=args.dtype,
        )
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def encode_file(
    reference: str,
    texts: pathlib.Path,
    out: pathlib.Path,
    *,
    role: str = "document",
    max_length: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
) -> None:
    """Encodes a file of texts into a file of vectors.

    Args:
      reference: of the model; a run's folder stands for its last stage.
      texts: .txt, or another file of texts that `data.corpus` accepts.
      out: .npz or .jsonl.
      role: "query" or "document".
      max_length: tokens kept of a text; 0: as in training, else 64 of a query and 256
        of a document, or the tokenizer's limit if lower.
      batch_size: texts encoded at once.
      dtype: of matrix products, "float32" or "bfloat16".

    Raises:
      InputError: a model, file or option that cannot be used.
    """
    texts = pathlib.Path(paths.local(texts, "--texts"))
    out = pathlib.Path(paths.local(out, "--out"))
    _, chosen = table.format_of("", out)
    if batch_size < 1:
        raise InputError(f"--batch_size is {batch_size}; it has to be at least 1.")
    model = open_portable(reference)
    spec = model.spec
    if not spec.sparse and len(spec.views) > 1:
        raise InputError(
            f"{model.name}: its head {spec.head!r} gives {', '.join(spec.views)}, which"
            " no single file holds. Encode with a model of one of them."
        )
    limit = spec.encoder.max_length
    trained = model.query_length if role == "query" else model.document_length
    length = max_length or trained
    if not 2 < length <= limit:
        raise InputError(f"--max_length is {length}; the model takes 3 to {limit}.")
    rows = read_texts(texts)
    stat = texts.stat()
    made_of = {
        "model": model.name,
        "weights": _digest(model.params),
        "texts": str(texts.absolute()),
        "size": stat.st_size,
        "changed": stat.st_mtime_ns,
        "role": role,
        "max_length": length,
        "dtype": dtype,
    }
    encoder = TextEncoder(
        spec, TextTokenizer(model.tokenizer), batch_size=batch_size, dtype=dtype
    )
    params = jax.device_put(model.params)
    about = _about(model, made_of)
    folder = out.with_name(f"{out.name}.partial")
    file = VectorFiles(folder, {"": Target(out, chosen, about)}, made_of)
    try:
        _encode(file, rows, encoder, params, length, role, batch_size)
        file.finish()
    finally:
        file.close()
    print(f"{file.rows:,} vectors in {out}", flush=True)


def _encode(file: VectorFiles, rows, encoder, params, length, role, batch_size) -> None:
    """Encodes all rows that the file lacks."""
    if file.rows:
        print(f"{file.rows:,} texts are encoded already.", flush=True)
    first = file.rows
    started = reported = time.monotonic()
    for some in _windows(itertools.islice(rows, first, None), batch_size):
        ids, texts = zip(*some, strict=True)
        matrix = joined(encoder.encode(params, texts, length, role, ids))
        if isinstance(matrix, sparse.csr_matrix):
            matrix.sort_indices()
        file.add({"": matrix}, ids)
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            speed = (file.rows - first) / (reported - started)
            print(f"{file.rows:,} texts, {speed:,.0f} a second", flush=True)


def _digest(params: Mapping[str, Any]) -> str:
    """Distinguishes weights: a resumed run has new ones under the same name."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _windows(rows: Iterator, batch_size: int) -> Iterator[list[tuple[str, str]]]:
    while some := list(itertools.islice(rows, _WINDOW_BATCHES * batch_size)):
        yield some


def _about(model: SavedModel, made_of: dict) -> About:
    columns = sum(model.spec.views.values())
    if not model.spec.sparse:
        tokens = "tokens" in model.spec.views
        return About(TOKENS if tokens else DENSE, columns, None, made_of)
    folder = model.pivot_tokenizer
    pivot = TextTokenizer(folder) if folder else None
    names = terms.names_of(model.spec, TextTokenizer(model.tokenizer), pivot)
    return About(SPARSE, columns, names, made_of)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsrjax encode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="a run's or stage's folder, a folder, a hub id")
    add(
        "--texts",
        required=True,
        type=pathlib.Path,
        help=".txt .jsonl .tsv .csv .parquet, maybe .gz or .zst",
    )
    add("--out", required=True, type=pathlib.Path, help=".npz or .jsonl")
    add("--role", choices=("document", "query"), default="document")
    add(
        "--max_length",
        type=int,
        default=0,
        help="tokens a text is cut to; by default as the model was trained",
    )
    add("--head", help="the dotted name of your own head, if the model has one")
    add("--batch_size", type=int, default=64, help="texts encoded at once (64)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command does the rest.
    preemption.Guard(Progress()).start()
    main()
