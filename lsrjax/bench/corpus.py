"""`corpus`: engines against exact search, and mining by BM25, on a synthetic corpus."""

import argparse
import dataclasses
import pathlib
import resource
import shutil
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import sparse

from lsrjax.bench import measure
from lsrjax.bench.sizes import add_flags, not_negative, positive, resolve, size
from lsrjax.bench.synthetic import SyntheticCorpus
from lsrjax.config.fields import literal
from lsrjax.errors import InputError
from lsrjax.retrieval import index_folder
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.vector_formats.vectors import SPARSE

_ONE_BY_ONE = 20  # queries that are searched one at a time

_DESCRIPTION = """\
Builds indexes of random sparse vectors, whose terms follow Zipf's law, and searches
them with queries that each take most of their terms from one document: by the engine
`exact`, and by the one that is compared with it. Then BM25 finds the best documents of
random texts, as mining does.
"""


@dataclasses.dataclass(frozen=True)
class CorpusSizes:
    """Sizes of the corpus and of its queries."""

    documents: int = size(100_000, "documents")
    terms: int = size(150, "terms of a document, drawn with repetition")
    vocabulary: int = size(30_522, "terms there are")
    queries: int = size(500, "queries")
    query_terms: int = size(30, "terms of a query")
    depth: int = size(100, "documents found for a query")
    mined: int = size(10_000, "queries that BM25 mines for; 0: none", type=not_negative)
    mined_terms: int = size(8, "words of such a query")


def add_command(commands) -> None:
    """Adds `corpus` to the program's commands."""
    parser = commands.add_parser(
        "corpus",
        help="engines against exact search, and mining by BM25",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, CorpusSizes, {})
    parser.add_argument("--engine", default="seismic", help="of those of lsrjax index")
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="FIELD=VALUE",
        default=(),
        help="of the engine, as --engine.FIELD=VALUE of lsrjax index",
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, help="timed rounds (default: 3)"
    )
    parser.set_defaults(run=run, preset=None)


def run(args: argparse.Namespace) -> None:
    """Measures and prints the tables."""
    values = dict(_option(text) for text in args.options)
    engines = {"exact": index_folder.choose(SPARSE, "exact")}
    engines[args.engine] = index_folder.choose(SPARSE, args.engine, values)
    (sizes,) = resolve(args, CorpusSizes(), {}, "corpus").values()
    corpus = SyntheticCorpus(sizes.documents, sizes.terms, sizes.vocabulary)
    queries = corpus.queries(sizes.queries, sizes.query_terms)
    console = Console()
    console.print(measure.machine(), highlight=False)
    with tempfile.TemporaryDirectory() as temporary:
        seconds, size_of = {}, {}
        for name, engine in engines.items():
            folder = pathlib.Path(temporary) / name
            started = time.perf_counter()
            index_folder.build_index(folder, corpus, engine)
            seconds[name] = time.perf_counter() - started
            size_of[name] = _bytes(folder)
        opened = {
            name: index_folder.open_index(pathlib.Path(temporary) / name)
            for name in engines
        }
        table = _searches(opened, queries, sizes, args.repeats)
        for name, index in opened.items():
            index.close()
            shutil.rmtree(pathlib.Path(temporary) / name)
    console.print(_table(sizes, seconds, size_of, table))
    if sizes.mined:
        console.print(_mining(corpus, sizes), highlight=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console.print(f"largest memory: {measure.gigabytes(peak)}", highlight=False)


def _option(text: str) -> tuple[str, object]:
    field, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--options {text} is not FIELD=VALUE.")
    return field, literal(value)


def _bytes(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@dataclasses.dataclass(frozen=True)
class _Search:
    """Seconds of a query among all of them and alone; share of the exact hits."""

    together: float
    alone: float
    recall: float


def _searches(opened, queries: sparse.csr_matrix, sizes, repeats: int):
    found = {name: index.search(queries, sizes.depth) for name, index in opened.items()}
    some = [queries[row] for row in range(min(_ONE_BY_ONE, sizes.queries))]

    def search(index, parts):
        return lambda: [index.search(part, sizes.depth) for part in parts]

    together, alone = (
        measure.interleaved_medians(
            {name: search(index, parts) for name, index in opened.items()}, rounds
        )
        for parts, rounds in (([queries], repeats), (some, 1))
    )
    return {
        name: _Search(
            together[name] / sizes.queries,
            alone[name] / len(some),
            recall(hits, found["exact"][0]),
        )
        for name, (hits, _) in found.items()
    }


def recall(hits: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the wanted hits [Q, depth] that was found; -1 is no hit."""
    shares = [
        len(np.intersect1d(found, best[best >= 0])) / max((best >= 0).sum(), 1)
        for found, best in zip(hits, wanted, strict=True)
    ]
    return float(np.mean(shares))


def _table(sizes: CorpusSizes, seconds, size_of, searches) -> Table:
    table = Table(
        title=f"{sizes.documents:,} documents of {sizes.terms} terms,"
        f" {sizes.queries:,} queries of {sizes.query_terms}"
    )
    table.add_column("engine")
    columns = ("documents/s", "MB", "ms/query", "speed-up", "ms alone")
    for column in (*columns, f"recall@{sizes.depth}"):
        table.add_column(column, justify="right")
    for name, one in searches.items():
        table.add_row(
            name,
            f"{sizes.documents / seconds[name]:,.0f}",
            measure.megabytes(size_of[name]),
            measure.figure(one.together * 1e3),
            f"{searches['exact'].together / one.together:.1f}x",
            measure.figure(one.alone * 1e3),
            f"{one.recall:.3f}",
        )
    return table


def _mining(corpus: SyntheticCorpus, sizes: CorpusSizes) -> str:
    texts = list(corpus.words(sizes.documents, sizes.terms, 0))
    queries = list(corpus.words(sizes.mined, sizes.mined_terms, 1))
    started = time.perf_counter()
    index = BM25(texts)
    indexed = time.perf_counter()
    index.search(queries, sizes.depth)
    ended = time.perf_counter()
    return (
        f"BM25, {sizes.depth} best documents of {sizes.mined:,} queries of"
        f" {sizes.mined_terms} words: {measure.figure(indexed - started)} s to index"
        f" {sizes.documents:,} texts of {sizes.terms} words,"
        f" {measure.figure(ended - indexed)} s to search"
    )
