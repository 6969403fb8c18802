"""Indexes vectors, or texts that it encodes first, for a search engine.

    lsrjax index --model runs/demo/contrast --texts docs.jsonl --out docs.index
    lsrjax index --vectors docs.npz --texts docs.jsonl --engine milvus --out docs.index

The engines are

  exact    reads all vectors for each search; for embeddings of texts the default
  seismic  an inverted index in memory, approximate and quick; the default for terms
  milvus   Milvus Lite in the index, or a server: --engine.uri=http://host:19530
  maxsim   exact late interaction on all devices; the default for tokens' embeddings

and --engine.FIELD=VALUE sets an option of one (docs/search.md lists them). The texts
are stored in the index, so that a search shows them and BM25 can take part, unless
--no_texts is given. The folder appears when it is complete. A build that was stopped
begins anew; what was encoded for it is kept, and encoding resumes.
"""

import argparse
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

from lsrjax import options, paths
from lsrjax.cli import encode_job, entry_flags, exits, own_entries
from lsrjax.cli.encode_job import Request
from lsrjax.cli.parsing import Parser
from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.distributed import preemption, processes, safe_output
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.retrieval.engines.table import ENGINES
from lsrjax.retrieval.index_folder import build_index, choose
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.several_views import open_views
from lsrjax.retrieval.vector_formats.vectors import SPARSE, About, Block, Vectors

_AT_ONCE = 8192  # texts read at once
# Flags of lsrjax encode, by default.
_ENCODING = {"max_length": 0, "language": "", "batch_size": 64, "dtype": "float32"}


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    given = sys.argv[1:] if argv is None else argv
    values, rest = entry_flags.take(given, "engine")
    _run(_parser().parse_args(rest), values["engine"])


def _run(args: argparse.Namespace, values: dict) -> None:
    if bool(args.model) == bool(args.vectors):
        raise InputError("Give either --vectors, or --model with --texts to encode.")
    unread = [name for name, value in _ENCODING.items() if vars(args)[name] != value]
    if args.vectors and unread:
        raise InputError(f"--{unread[0]} is for --model; --vectors are made already.")
    if args.model and not args.texts:
        raise InputError("--model needs --texts, the documents to encode.")
    out = pathlib.Path(paths.local(args.out, "--out"))
    if out.exists():
        raise InputError(f"{out} exists. Remove it, or name another --out.")
    if args.engine:  # a mistake shows before texts are encoded
        options.resolve(ENGINES, {"name": args.engine, **values}, "--engine")
    made = None
    if args.model:
        made = _encoded(args, out, values)
        vectors = open_views(made)
    else:
        vectors = open_views(args.vectors)
        if args.prune_documents:
            vectors = _Pruned(vectors, args.prune_documents)
    engine = choose(vectors.kind, args.engine, values)
    texts = None if args.no_texts or not args.texts else _texts(args.texts)
    started = time.monotonic()
    build_index(out, vectors, engine, texts)
    seconds = time.monotonic() - started
    if made:
        shutil.rmtree(made)
    print(f"{len(vectors):,} documents in {out}, {engine.name}: {seconds:.1f} s")
    model = args.model or str(vectors.made_of.get("model") or "MODEL")
    with_model = f"--index {shlex.quote(args.out)} --model {shlex.quote(model)}"
    print("What to do next:")
    print(f'  lsrjax search {with_model} --query "…"\n  lsrjax serve {with_model}')


def _encoded(args: argparse.Namespace, out: pathlib.Path, values: dict) -> pathlib.Path:
    """A folder of vectors for the index, which is removed after the build."""
    processes.check_devices()
    own_entries.of(args).load()
    # Without a dot, since an ending would name a format.
    made = out.with_name(f"{out.name.replace('.', '-')}-vectors")
    encode_job.encode(
        Request(
            args.model,
            args.texts,
            str(made),
            max_length=args.max_length,
            batch_size=args.batch_size,
            dtype=args.dtype,
            language=args.language,
            prune=args.prune_documents,
            for_index=lambda kind: choose(kind, args.engine, values),
        )
    )
    return made


def _texts(named: str) -> Iterator[tuple[str, str]]:
    """Ids and texts, as they are encoded."""
    texts = NumberedTexts(named, "--texts")
    for first in range(0, len(texts), _AT_ONCE):
        ids, found = texts.read(first, min(first + _AT_ONCE, len(texts)))
        yield from zip(ids, found, strict=True)


class _Pruned(Vectors):
    """Vectors with fewer terms."""

    def __init__(self, vectors: Vectors, budget: str):
        self._pruning = Pruning.parse(budget, "--prune_documents")
        if vectors.kind != SPARSE:
            raise InputError(
                f"--prune_documents is for sparse vectors; these are {vectors.kind}."
                " Leave it out."
            )
        made_of = {**vectors.made_of, "pruned_for_index": str(self._pruning)}
        about = About(SPARSE, vectors.columns, vectors.terms, made_of)
        super().__init__(vectors.name, about, len(vectors))
        self._vectors = vectors

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        for ids, matrix in self._vectors.blocks(rows):
            yield ids, self._pruning.apply(matrix)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--vectors", help="what lsrjax encode wrote: .npz .jsonl .parquet, a folder")
    add("--model", help="encodes --texts first: a run's or stage's folder, a hub id")
    add("--texts", help="the documents, as of lsrjax encode")
    add("--out", required=True, help="folder of the index")
    add("--engine", default="", help=f"{', '.join(ENGINES)}; by default as above")
    add(
        "--prune_documents",
        default="",
        metavar="BUDGET",
        help="top:128, mass:0.9 or ratio:0.1: fewer terms of a document",
    )
    add("--no_texts", action="store_true", help="leave the texts out of the index")
    more = parser.add_argument_group("with --model, as of lsrjax encode")
    add = more.add_argument
    add("--max_length", type=int, help="tokens a document is cut to")
    add("--language", help="of the documents, or stated (X-MOD)")
    own_entries.add(more)
    add("--batch_size", type=int, help="texts encoded at once (64)")
    add("--dtype", choices=("float32", "bfloat16"))
    parser.set_defaults(**_ENCODING)
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    preemption.Guard(Progress()).start()
    main()
