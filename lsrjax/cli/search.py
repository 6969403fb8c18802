r"""Searches an index: a file of queries to a TREC run, one query, or at a prompt.

    lsrjax search --index docs.index --model runs/demo/contrast
    lsrjax search --index docs.index --model runs/demo/contrast --query "boot loader"
    lsrjax search --index docs.index --model runs/demo/contrast \
        --queries queries.tsv --out run.trec --depth 1000

At the prompt, and of a single query, it shows the documents with the terms that
matched: the weight in the query times that in the document, by view. Without a
terminal, queries are the lines of the standard input.

Several rankings become one: --rank model --rank bm25 (also a view of the model, such as
pivot, or a file run.trec), by --fusion rrf or weighted. --feedback expands queries with
terms of the documents that they find. --fusion.FIELD=VALUE and --feedback.FIELD=VALUE
set their options, and --engine.FIELD=VALUE those of the index that concern searches;
docs/search.md lists them.
"""

import argparse
import contextlib
import itertools
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lsrjax import options, paths
from lsrjax.api.search import open_search
from lsrjax.cli import entry_flags, exits, own_entries
from lsrjax.cli.parsing import Parser
from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.distributed import processes, safe_output
from lsrjax.errors import InputError
from lsrjax.retrieval.feedback import Rocchio
from lsrjax.retrieval.fusion import FUSIONS
from lsrjax.retrieval.index_folder import Index
from lsrjax.retrieval.matches import Match
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.runs import check_ids, read_run, write_run
from lsrjax.retrieval.text_search import MODEL, Found, Hit, Plan, TextSearch

_SHOWN = 200  # characters of a document's text
_TERMS = 8  # terms shown of each view
_RUN_DEPTH, _SHOWN_DEPTH = 100, 10
_RUN_FILES = (".trec", ".trec.gz")


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    given = sys.argv[1:] if argv is None else argv
    values, rest = entry_flags.take(given, "engine", "fusion", "feedback")
    _run(_parser().parse_args(rest), values)


def _run(args: argparse.Namespace, values: Mapping[str, dict]) -> None:
    out = _out(args)
    if args.query is not None and not args.query.strip():
        raise InputError("--query is empty. Give it words to search for.")
    if args.depth is not None and args.depth < 1:
        raise InputError(f"--depth is {args.depth}; it has to be at least 1.")
    with opened(args, values, batch_size=64 if out else 1) as session:
        if out:
            _write_run(session, args.queries, out, args.depth or _RUN_DEPTH)
            return
        depth = args.depth or _SHOWN_DEPTH
        asked = iter([args.query] if args.query is not None else _typed(session.index))
        for first in itertools.islice(asked, 1):
            session.ranked([first], depth)  # compiles, which would be timed
            _show(session, first, depth)
        for query in asked:
            _show(session, query, depth)


@contextlib.contextmanager
def opened(
    args: argparse.Namespace, values: Mapping[str, dict], *, batch_size: int
) -> Iterator[TextSearch]:
    """The index and the model that the flags of `add_shared` name."""
    processes.check_devices()
    own_entries.of(args).load()
    session = open_search(
        args.index,
        args.model,
        plan_of(args, values),
        max_length=args.max_length,
        batch_size=batch_size,
        language=args.language,
        engine=values["engine"],
        verify=not args.no_verify,
    )
    with session.index:
        yield session


def _out(args: argparse.Namespace) -> pathlib.Path | None:
    """The run to write, if any."""
    if (args.queries is None) != (args.out is None):
        raise InputError("--queries FILE and --out RUN belong together.")
    if args.queries and args.query is not None:
        raise InputError("Give --query for one query, or --queries for a file of them.")
    if args.out is None:
        return None
    out = pathlib.Path(paths.local(args.out, "--out"))
    if out.exists():
        raise InputError(f"{out} exists. Remove it, or name another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def plan_of(args: argparse.Namespace, values: Mapping[str, dict]) -> Plan:
    """What `add_ranking` has added, and the options of `--fusion` and `--feedback`."""
    ranks = args.rank or [MODEL]
    files = [rank for rank in ranks if rank.endswith(_RUN_FILES)]
    if files and args.queries is None:
        raise InputError(
            f"--rank {files[0]} ranks for queries by their ids: give --queries FILE"
            " to lsrjax search."
        )
    if (args.fusion or values["fusion"]) and len(ranks) == 1:
        raise InputError("--fusion needs several rankings: --rank model --rank bm25.")
    node = {"name": args.fusion or "rrf", **values["fusion"]}
    prune = args.prune_queries
    return Plan(
        [
            read_run(paths.local(rank, "--rank")) if rank in files else rank
            for rank in ranks
        ],
        options.resolve(FUSIONS, node, "--fusion"),
        Pruning.parse(prune, "--prune_queries") if prune else None,
        feedback_of(args.feedback, values["feedback"]),
    )


def feedback_of(wanted: bool, values: Mapping[str, Any]) -> Rocchio | None:
    """`--feedback` with its options; InputError for an unknown one, or without it."""
    if not wanted:
        if values:
            raise InputError("--feedback.… sets an option of --feedback; add it.")
        return None
    known = options.names(Rocchio)
    for field in values:
        if field not in known:
            raise InputError(
                f"--feedback.{field} is no option of it: {', '.join(known)}."
            )
    return options.checked(Rocchio, values, "--feedback")


def _write_run(session: TextSearch, queries: str, out: pathlib.Path, depth: int):
    rows = NumberedTexts(queries, "--queries", "query")
    keys, texts = rows.read(0, len(rows))
    check_ids(keys, "query")
    found = session.ranked(texts, depth, keys)
    write_run(out, keys, session.index.ids, found.hits, found.scores)
    # With the compilation, which a rate of few queries would mostly be.
    seconds = found.encoding + found.searching
    print(f"{_counted(len(keys), 'query', 'queries')} in {out}: {seconds:.1f} s")


def _typed(index: Index) -> Iterator[str]:
    """Queries from the terminal, or the lines of the standard input."""
    lines: Iterable[str]
    if sys.stdin.isatty():
        print(f"{len(index):,} documents in {index.name}. An empty line ends.")
        lines = itertools.takewhile(str.strip, _asked())
    else:
        lines = sys.stdin
    yield from (line.strip() for line in lines if line.strip())


def _asked() -> Iterator[str]:
    import readline  # noqa: F401  (input() then has a history)

    while True:
        try:
            yield input("query> ")
        except EOFError:
            print()
            return


def _show(session: TextSearch, query: str, depth: int) -> None:
    found = session.ranked([query], depth)
    (hits,) = session.described([query], found)
    count = _counted(len(hits), "document", "documents")
    print(f"{query!r}: {count}, {_times(found)}")
    for rank, hit in enumerate(hits, 1):
        print("\n".join(_lines(rank, hit)))
    sys.stdout.flush()


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _times(found: Found) -> str:
    encoding, searching = 1000 * found.encoding, 1000 * found.searching
    return f"encoded in {encoding:.1f} ms, searched in {searching:.1f} ms"


def _lines(rank: int, hit: Hit) -> Iterator[str]:
    yield f"{rank:3}  {hit.score:9.4f}  {hit.id}"
    if hit.text:
        yield f"     {textwrap.shorten(hit.text, _SHOWN, placeholder=' …')}"
    for view in dict.fromkeys(match.view for match in hit.matches):
        own = [match for match in hit.matches if match.view == view]
        total = sum(match.score for match in own)
        shown = ", ".join(map(_term, own[:_TERMS]))
        more = f", and {len(own) - _TERMS} more" * (len(own) > _TERMS)
        yield f"     {view} {total:.4g}: {shown}{more}"


def _term(match: Match) -> str:
    if match.document_term:
        return f"{match.term}~{match.document_term} {match.score:.3g}"
    product = f"{match.query:.3g} x {match.document:.3g}"
    return f"{match.term} {match.score:.3g} ({product})"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shared(parser)
    add = parser.add_argument
    add("--query", help="one query; without it and --queries, they are typed")
    add("--queries", metavar="FILE", help="ids and texts, as of lsrjax encode")
    add("--out", metavar="RUN", help="TREC run of --queries; packed if it ends in .gz")
    add(
        "--depth",
        type=int,
        help=f"documents of a query ({_RUN_DEPTH} in a run, else {_SHOWN_DEPTH})",
    )
    return parser


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of an index, its model, and how it is searched."""
    add = parser.add_argument
    add("--index", required=True, help="a folder that lsrjax index made")
    add("--model", required=True, help="the model that encoded its documents")
    add(
        "--rank",
        action="append",
        metavar="WHAT",
        help="model, bm25, a view of the model, or a .trec file; may be repeated",
    )
    add("--fusion", default="", help=f"of several --rank: {', '.join(FUSIONS)} (rrf)")
    add("--feedback", action="store_true", help="Rocchio: expand queries")
    add("--prune_queries", help="top:32, mass:0.9 or ratio:0.1: fewer terms")
    add("--max_length", type=int, default=0, help="tokens a query is cut to")
    add("--language", default="", help="of queries (X-MOD)")
    own_entries.add(parser)
    add("--no_verify", action="store_true", help="compare sizes of files, not digests")


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    main()
