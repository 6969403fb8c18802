"""A retriever on benchmarks: with its views, feedback and fusion, beside BM25."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import Chosen
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval import prune_curve, rank, task_results, task_tables
from lsrjax.retrieval.feedback import Rocchio
from lsrjax.retrieval.kept import Kept, KeptFile, file_digest, texts_of
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
      kept: with `out`, where unfinished work is kept; it is made of the model.
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
    kept: Kept | None = None

    def facts(self) -> dict[str, Any]:
        """What results depend on, beside the model and the texts."""
        return {
            "query_length": self.searcher.query_length,
            "document_length": self.searcher.document_length,
            "ways": {name: str(way) for name, way in self.ways.items()},
            "shown": sorted(self.shown),
            "lowercase": self.lowercase,
            "bm25": self.with_bm25,
            "metrics": self.metrics,
            "curve": [str(one) for one in self.curve],
            "fusion": self.fusion and options.plain(self.fusion),
            "fused": self.fused,
            "feedback": self.feedback and dataclasses.asdict(self.feedback),
        }

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
    facts = setup.facts()
    work = {
        name: _Work(
            task, setup, setup.kept and setup.kept.of(task=options.plain(task), **facts)
        )
        for name, task in zip(_names(tasks), tasks, strict=True)
    }
    for name, one in work.items():
        one.look(name, console)
    results = {name: one.evaluate(name, console) for name, one in work.items()}
    return results, {name: one.parts for name, one in work.items()}


def _names(tasks: Sequence[Chosen]) -> list[str]:
    """The names of tasks; of several with one name, numbered."""
    found: list[str] = []
    for task in tasks:
        again = sum(task.name == other.name for other in tasks) > 1
        number = 1 + sum(name.startswith(f"{task.name} ") for name in found)
        found.append(f"{task.name} {number}" if again else task.name)
    return found


@dataclasses.dataclass
class _Work:
    """A task, and what is found on its corpora.

    Attributes:
      kept: where what is found survives a stop.
      others: the values of `--compare` on each corpus.
      texts: a digest of each corpus with its queries, if `kept`.
    """

    chosen: Chosen
    setup: Evaluation
    kept: Kept | None
    parts: list[PartResults] = dataclasses.field(default_factory=list)
    others: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)

    def look(self, name: str, console: Console) -> None:
        """Reads all corpora; refuses what would fail only after texts are encoded."""
        for task in loaded(self.chosen):
            metrics = self.setup.metrics_of(task)
            self.setup.searcher.check(task)
            try:
                measures.required_depth(metrics)
            except ValueError as error:
                raise InputError(f"--metrics: {error}") from error
            if self.setup.compare is not None:
                self.others.append(self.setup.compare.values(task, metrics))
            facts = f"{len(task.corpus):,} documents, {len(task.queries):,} queries"
            console.print(f"{name}: {task.name}, {facts}", highlight=False)
            if self.kept:
                self.texts.append(texts_of(task))
                if (key := task_results.unfit_id(task)) is not None:
                    text = f"has no TREC runs, which cannot hold its id {key!r}"
                    console.print(f"{name}: {task.name} {text}", highlight=False)

    def evaluate(self, name: str, console: Console) -> dict[str, Any]:
        """Evaluates all corpora, prints tables, and returns a file's facts on them."""
        curves: list[PartResults] = []
        for place, given in enumerate(self.chosen.entry.parts(self.chosen.options)):
            part, curve = self._part(name, place, given, console)
            self.parts.append(part)
            curves.append(curve)
        setup = self.setup
        made = task_tables.described(self.chosen, self.parts)
        task_tables.show(name, made, console)
        if setup.curve:
            made["prune_curve"] = prune_curve.curve(curves)
            prune_curve.show(made["prune_curve"], console)
        if setup.compare is not None:
            made["compared"] = task_results.compared(self.parts, self.others, SYSTEM)
            _print_compared(made["compared"], setup.compare, console)
        return made

    def _part(
        self, name: str, place: int, given: Any, console: Console
    ) -> tuple[PartResults, PartResults]:
        """The results on a corpus, and its curve: found here, or before a stop."""
        load = self.chosen.entry.load
        if self.kept is None or self.setup.out is None:
            task = load(given)
            part, curve, _ = _evaluate_part(task, self.setup, None)
            console.print(f"{name}: {task.name} is evaluated", highlight=False)
            return part, curve
        own = self.kept.of(texts=self.texts[place])
        file = own.file(f"{name}.{place}.json")
        runs = self.setup.out / task_results.RUNS_FOLDER
        if content := file.read():
            read = json.loads(content)
            done = PartResults.from_json(read["part"])
            if _run_files(runs, read["runs"]) == read["runs"]:
                text = f"{name}: {done.name} was evaluated before the stop"
                console.print(text, highlight=False)
                return done, PartResults.from_json(read["curve"])
            self.kept.say(f"{done.name}: its TREC runs have changed; it is made anew.")
        task = load(given)
        part, curve, systems = _evaluate_part(
            task, self.setup, lambda what: own.file(f"{name}.{place}.{what}")
        )
        written = task_results.write_runs(runs, task, systems)
        made = {
            "part": part.to_json(),
            "curve": curve.to_json(),
            "runs": _run_files(runs, written),
        }
        file.write(json.dumps(made).encode())
        console.print(f"{name}: {task.name} is evaluated", highlight=False)
        return part, curve


def _run_files(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """Digests of those of some run files that are there."""
    there = [name for name in names if (folder / name).is_file()]
    return {name: file_digest(folder / name) for name in there}


def _evaluate_part(
    task: Task, setup: Evaluation, kept: Callable[[str], KeptFile] | None
) -> tuple[PartResults, PartResults, dict[str, Ranking]]:
    """The results on a corpus, those of the curve's budgets, and what was found."""
    part = PartResults.of(task, setup.metrics_of(task))
    depth = measures.required_depth(part.metrics)
    depth = max(depth, _RUN_DEPTH) if setup.out else depth
    if setup.fusion is not None:
        depth = max(depth, setup.fusion.options.candidates)
    ways = {**setup.ways} | prune_curve.ways(setup.curve, setup.ways[SYSTEM])
    found = rank.rank(
        task,
        setup.searcher,
        ways,
        depth,
        lowercase=setup.lowercase,
        kept=kept and kept("search"),
    )
    systems = _systems(task, setup, found, depth, kept and kept("feedback"))
    for system, ranking in systems.items():
        part.add(system, task, ranking)
    return part, prune_curve.measured(task, part.metrics[0], found), systems


def _systems(
    task: Task,
    setup: Evaluation,
    found: Mapping[str, Ranking],
    depth: int,
    kept: KeptFile | None,
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
            kept=kept,
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
                f" worse {test['losses']:,} of {test['queries']:,};"
                f" {_p(test['t_test'])} (paired t),"
                f" {_p(test['randomisation'])} (randomisation)",
                highlight=False,
                markup=False,
            )


def _p(value: float) -> str:
    return f"p = {value:.4f}" if value >= 5e-5 else "p < 0.0001"
