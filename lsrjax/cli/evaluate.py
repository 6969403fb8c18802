"""Evaluates a retriever on benchmarks, or on data of your own.

    lsrjax evaluate --model runs/demo --task beir --task.path=my_data --out results
    lsrjax evaluate --model runs/demo --task miracl --task.languages=sw,yo --lowercase

The whole corpus is searched, exactly, and every judgement counts with its grade.
Results are by language, with their mean and the worst language, and BM25 beside them.
--out names a folder for them: results.json, per_query.jsonl.gz with the value of each
query, and a TREC run for each corpus; with it, the same command goes on with an
evaluation that was stopped. --compare tests the differences to one of those folders, or
to a TREC run, query by query. All tasks are read before the first text is encoded: what
is missing is said at once.
"""

import argparse
import dataclasses
import functools
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

import lsrjax
from lsrjax import options, paths
from lsrjax.cli import entry_flags, exits, own_entries, search, task_flags
from lsrjax.cli.parsing import Parser
from lsrjax.convert.open_model import open_portable
from lsrjax.distributed import preemption, processes, safe_output, trees
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import STATED
from lsrjax.options import Chosen
from lsrjax.retrieval import (
    prefixes,
    prune_curve,
    rank,
    results_file,
    task_results,
    tuned_weights,
)
from lsrjax.retrieval.evaluate_tasks import (
    BM25,
    SYSTEM,
    Evaluation,
    evaluate_tasks,
    way_of,
)
from lsrjax.retrieval.fusion import FUSIONS, check_weights
from lsrjax.retrieval.kept import Kept
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.rank import Searcher, Way
from lsrjax.retrieval.task_results import Other

_UNFINISHED = "unfinished"


@exits.on_input_error()
def main(
    argv: Sequence[str] | None = None, starts: Callable[[], object] = lambda: None
) -> None:
    """Runs the command with these arguments.

    `starts` is called if the work is kept when a signal ends it.
    """
    tasks, rest = task_flags.take(sys.argv[1:] if argv is None else argv)
    values, rest = entry_flags.take(rest, "fusion", "feedback")
    args = _parser().parse_args(rest)
    if args.out:
        starts()
    processes.check_devices()
    own_entries.of(args).load()
    if not tasks:
        raise InputError("No --task is named; --help lists them, with options.")
    evaluate(args, values, tasks, Console())


def evaluate(
    args, values: Mapping[str, dict], tasks: Sequence[Chosen], console: Console
) -> None:
    """Evaluates a model on tasks, prints tables, and writes what is asked for.

    Raises:
      InputError: a model, task or option that cannot be used.
    """
    model, setup = _setup(args, values, console)
    if args.tune_weights:
        weights, metric, value = tuned_weights.tuned(tasks, setup)
        named = ", ".join(map(str, setup.fused))
        console.print(
            f"{named}: --fusion.weights={weights} have the best {metric},"
            f" {value:.4f}. They are fitted to these tasks: measure them on others.",
            highlight=False,
            markup=False,
        )
        return
    results, parts = evaluate_tasks(tasks, setup, console)
    if setup.out is None or setup.kept is None:
        return
    task_results.write_queries(setup.out / task_results.QUERIES_FILE, parts)
    facts = {
        "model": model,
        "system": SYSTEM,
        "query_length": setup.searcher.query_length,
        "document_length": setup.searcher.document_length,
        "dtype": args.dtype,
        "lowercase": setup.lowercase,
        "language": args.language or None,
        "prune_queries": args.prune_queries or None,
        "prune_documents": args.prune_documents or None,
        "fusion": setup.fusion and {**options.plain(setup.fusion), "of": setup.fused},
        "feedback": setup.feedback and dataclasses.asdict(setup.feedback),
    }
    path = setup.out / results_file.RESULTS_FILE
    results_file.write(path, results, **facts)
    setup.kept.remove()
    console.print(f"Written to {path}", highlight=False)


def _setup(
    args, values: Mapping[str, dict], console: Console
) -> tuple[str, Evaluation]:
    """The name of the model, and what is evaluated."""
    prune = [
        Pruning.parse(text, f"--prune_{what}") if text else None
        for what, text in (
            ("queries", args.prune_queries),
            ("documents", args.prune_documents),
        )
    ]
    curve = tuple(
        Pruning.parse(text, "--prune_curve")
        for text in (args.prune_curve or "").split(",")
        if text
    )
    if curve and prune[1]:
        raise InputError("--prune_curve tries budgets; leave --prune_documents out.")
    compare = None
    if args.compare:
        compare = Other(pathlib.Path(paths.local(args.compare, "--compare")))
    out = pathlib.Path(paths.local(args.out, "--out")) if args.out else None
    model = open_portable(args.model)
    if args.language:
        model = model.in_language(args.language)
    searcher = Searcher.portable(
        model,
        batch_size=args.batch_size,
        dtype=args.dtype,
        query_length=args.query_length,
        document_length=args.document_length,
        stated=args.language == STATED,
    )
    pruned = Way(prune_queries=prune[0], prune_documents=prune[1])
    ways = {SYSTEM: pruned}
    views = {
        way_of(name): Way(of) for name, of in rank.views_of(searcher).items() if name
    }
    sizes = args.embedding_sizes
    for one in prefixes.of_sizes(model.spec, sizes, "--embedding_sizes"):
        ways[f"{SYSTEM} {one.size}"] = dataclasses.replace(pruned, prefix=one)
    fusion, fused = _fusion(args, values["fusion"], [SYSTEM, BM25, *views])
    shown = {*ways, *(views if args.views else ())}
    needed = {*shown, *map(way_of, fused)}
    ways |= {name: of for name, of in views.items() if name in needed}
    feedback = search.feedback_of(args.feedback, values["feedback"])
    kept = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        made_of = {
            "lsrjax": lsrjax.__version__,
            "weights": model.digest(),
            # What computes with them: pooling, prompts, attention.
            **trees.named({"model": model.spec.to_dict()}, ".", _is_list),
            "dtype": args.dtype,
            "batch_size": args.batch_size,
            "language": args.language,
        }
        say = functools.partial(console.print, highlight=False, markup=False)
        kept = Kept(out / _UNFINISHED, made_of, say)
    setup = Evaluation(
        searcher=searcher,
        ways=ways,
        lowercase=args.lowercase,
        with_bm25=not args.no_bm25,
        metrics=_metrics(args.metrics or ""),
        curve=curve,
        shown=shown,
        fusion=fusion,
        fused=fused,
        feedback=feedback,
        compare=compare,
        out=out,
        kept=kept,
    )
    return model.name, setup


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _fusion(
    args, values: Mapping[str, Any], known: Sequence[str]
) -> tuple[Chosen | None, tuple[str, ...]]:
    """The fusion that is asked for, and the names of what it fuses."""
    if not (args.fusion or values or args.rank):
        return None, ()
    node = {"name": args.fusion or "rrf", **values}
    fused = tuple(args.rank or (SYSTEM, BM25))
    for name in fused:
        if name != BM25 and way_of(name) not in known:
            names = ", ".join(one.removeprefix(f"{SYSTEM} ") for one in known)
            raise InputError(f"--rank is {name!r}; this model has {names}.")
    if len(fused) < 2:
        raise InputError("--fusion needs several rankings: --rank model --rank bm25.")
    fusion = options.resolve(FUSIONS, node, "--fusion")
    check_weights(fusion, len(fused))
    return fusion, fused


def _metrics(text: str) -> tuple[str, ...]:
    """Names with commas between, which may also have some in parentheses."""
    names = map(str.strip, re.split(r",(?![^()]*\))", text))
    return tuple(name for name in names if name)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise InputError(
            f"--embedding_sizes is {text!r}; give whole numbers, such as 64,128."
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax evaluate",
        description=f"{__doc__}\n{task_flags.HELP}\n\n{task_flags.described()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="a run's or stage's folder, a folder, a hub id")
    add("--out", help="a folder for results.json, per_query.jsonl.gz and runs/")
    add("--metrics", help="such as nDCG@10,R@100; by default those of the task's paper")
    add("--compare", help="a folder of --out, or a TREC run: tests the differences")
    add("--no_bm25", action="store_true", help="leaves the row of BM25 out")
    add("--views", action="store_true", help="also each view of the model alone")
    add(
        "--embedding_sizes",
        type=_sizes,
        default=(),
        metavar="N,N",
        help="also the first N numbers of each embedding (Matryoshka)",
    )
    add("--fusion", default="", help=f"a row of several --rank: {', '.join(FUSIONS)}")
    add(
        "--rank",
        action="append",
        help="what is fused: model, a view of it, bm25; by default model and bm25",
    )
    add(
        "--tune_weights",
        action="store_true",
        help="finds the weights of --fusion that are best on these (dev) tasks, and"
        " prints them",
    )
    add("--feedback", action="store_true", help="a row with expanded queries (Rocchio)")
    add("--lowercase", action="store_true", help="encodes texts in lower case")
    add(
        "--language",
        default="",
        help="of all texts, such as de, for an encoder with adapters for it (X-MOD);"
        " stated: each text's own, as the task states it",
    )
    add("--prune_queries", help="top:N, mass:SHARE or ratio:SHARE; see docs")
    add("--prune_documents", help="top:N, mass:SHARE or ratio:SHARE; see docs")
    add(
        "--prune_curve",
        nargs="?",
        const=prune_curve.BUDGETS,
        help=f"quality by terms of documents; without budgets {prune_curve.BUDGETS}",
    )
    add("--query_length", type=int, default=0, help="tokens; by default as trained")
    add("--document_length", type=int, default=0, help="tokens; by default as trained")
    own_entries.add(parser)
    add("--batch_size", type=int, default=64, help="texts encoded at once (64)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command does the rest.
    main(starts=preemption.Guard(Progress()).start)
