"""A retriever on benchmarks: with its views, feedback and fusion, beside BM25."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console

from lsrjax.errors import InputError
from lsrjax.options import Chosen
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval import prune_curve, rank, task_results, task_tables
from lsrjax.retrieval.feedback import Rocchio
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.rank import Ranking, Searcher, Way
from lsrjax.retrieval.task_results import Other, PartResults
from lsrjax.retrieval.tasks.table import loaded
from lsrjax.retrieval.tasks.task import Task

_RUN_DEPTH = 1000  # of TREC runs
SYSTEM, BM25 = "model", "bm25"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
      ways: of searching, by name; one of them is `SYSTEM`, the whole model.
      shown: those that are rows of the tables; others are only fused.
      lowercase: encode texts in lower case.
      metrics: by default those of each task.
      curve: budgets of documents whose quality is measured.
      fused: names of what `fusion` fuses: `SYSTEM`, `BM25`, views of the model.
      compare: whose values the model's are tested against.
      out: the folder for TREC runs.
    """

    searcher: Searcher
    ways: Mapping[str, Way]
    shown: Collection[str]
    lowercase: bool = False
    with_bm25: bool = True
    metrics: tuple[str, ...] = ()
    curve: tuple[Pruning, ...] = ()
    fusion: Chosen | None = None
    fused: tuple[str, ...] = ()
    feedback: Rocchio | None = None
    compare: Other | None = None
    out: pathlib.Path | None = None

    def metrics_of(self, task: Task) -> list[str]:
        """The metrics that are asked for, or the task's."""
        return list(self.metrics or task.metrics)


def evaluate_tasks(
    tasks: Sequence[Chosen], setup: Evaluation, console: Console
) -> tuple[dict[str, Any], dict[str, list[PartResults]]]:
    """Evaluates a model on tasks, and prints tables.

    All tasks are read before the first text is encoded.

    Args:
      tasks: what `options.resolve(TASKS, …)` gives.

    Returns:
      What `task_tables.described` says of each task, with `prune_curve` and `compared`
      if they are asked for; and the values of each query.

    Raises:
      InputError: a task, or a metric, that cannot be used.
    """
    names = _names(tasks)
    for name, task in zip(names, tasks, strict=True):
        for one in loaded(task):
            _check(one, setup)
            facts = f"{len(one.corpus):,} documents, {len(one.queries):,} queries"
            console.print(f"{name}: {one.name}, {facts}", highlight=False)
    results: dict[str, Any] = {}
    parts: dict[str, list[PartResults]] = {}
    for name, task in zip(names, tasks, strict=True):
        results[name], parts[name] = _evaluate_task(name, task, setup, console)
    return results, parts


def _names(tasks: Sequence[Chosen]) -> list[str]:
    """The names of tasks; of several with one name, numbered."""
    found: list[str] = []
    for task in tasks:
        again = sum(task.name == other.name for other in tasks) > 1
        number = 1 + sum(name.startswith(f"{task.name} ") for name in found)
        found.append(f"{task.name} {number}" if again else task.name)
    return found


def _check(task: Task, setup: Evaluation) -> None:
    """Refuses what would fail only after texts are encoded."""
    try:
        measures.required_depth(setup.metrics_of(task))
    except ValueError as error:
        raise InputError(f"--metrics: {error}") from error
    if setup.compare is not None:
        setup.compare.values(task, setup.metrics_of(task))


def _evaluate_task(
    name: str, chosen: Chosen, setup: Evaluation, console: Console
) -> tuple[dict[str, Any], list[PartResults]]:
    parts: list[PartResults] = []
    others, curves = [], []
    for task in loaded(chosen):
        part = PartResults.of(task, setup.metrics_of(task))
        depth = measures.required_depth(part.metrics)
        depth = max(depth, _RUN_DEPTH) if setup.out else depth
        if setup.fusion is not None:
            depth = max(depth, setup.fusion.options.candidates)
        ways = {**setup.ways} | prune_curve.ways(setup.curve, setup.ways[SYSTEM])
        found = rank.rank(task, setup.searcher, ways, depth, lowercase=setup.lowercase)
        if setup.curve:
            curves.append(prune_curve.measured(task, part.metrics[0], found))
        systems = _systems(task, setup, found, depth)
        for system, ranking in systems.items():
            part.add(system, task, ranking)
        if setup.out is not None:
            task_results.write_runs(setup.out / task_results.RUNS_FOLDER, task, systems)
        if setup.compare is not None:
            others.append(setup.compare.values(task, part.metrics))
        parts.append(part)
        console.print(f"{name}: {task.name} is evaluated", highlight=False)
    made = task_tables.described(chosen, parts)
    task_tables.show(name, made, console)
    if setup.curve:
        made["prune_curve"] = prune_curve.curve(curves)
        prune_curve.show(made["prune_curve"], console)
    if setup.compare is not None:
        made["compared"] = task_results.compared(parts, others, SYSTEM)
        _print_compared(made["compared"], setup.compare, console)
    return made, parts


def _systems(
    task: Task, setup: Evaluation, found: Mapping[str, Ranking], depth: int
) -> dict[str, Ranking]:
    """The rows of the tables: the model, its views, feedback, BM25 and their fusion."""
    systems = {name: found[name] for name in setup.ways if name in setup.shown}
    if setup.feedback is not None:
        systems[f"{SYSTEM} feedback"] = rank.feed_back(
            task,
            setup.searcher,
            setup.ways[SYSTEM],
            found[SYSTEM],
            setup.feedback,
            lowercase=setup.lowercase,
        )
    by_words = None
    if setup.with_bm25 or BM25 in setup.fused:
        by_words = rank.bm25(task, depth)
    if setup.with_bm25 and by_words:
        systems[BM25] = by_words
    if setup.fusion is not None:
        runs = [
            (one.hits, one.scores)
            for name in setup.fused
            for one in [by_words if name == BM25 else found[way_of(name)]]
            if one is not None
        ]
        fused = setup.fusion.entry.fuse(runs, depth, setup.fusion.options)
        systems[setup.fusion.name] = Ranking(*fused)
    return systems


def way_of(name: str) -> str:
    """The way of searching by a model or one of its views, as `fused` names it."""
    return name if name == SYSTEM else f"{SYSTEM} {name}"


def _print_compared(compared, other: Other, console: Console) -> None:
    for metric, by_language in compared.items():
        console.print(f"\n{metric}: {SYSTEM} - {other.path}", highlight=False)
        for language, test in by_language.items():
            console.print(
                f"  {language:8} {test['difference']:+.4f}  better {test['wins']:,},"
                f" worse {test['losses']:,} of {test['queries']:,}; p ="
                f" {test['t_test']:.4f} (paired t), {test['randomisation']:.4f}"
                " (randomisation)",
                highlight=False,
                markup=False,
            )
