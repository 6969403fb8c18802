"""Results of systems on tasks: by language, by query, compared, and as files."""

import dataclasses
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.errors import InputError
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval import results_file, significance
from lsrjax.retrieval.rank import Ranking
from lsrjax.retrieval.results_file import RESULTS_FILE
from lsrjax.retrieval.runs import read_run, unfit, write_run
from lsrjax.retrieval.tasks.task import Task

QUERIES_FILE = "per_query.jsonl.gz"
RUNS_FOLDER = "runs"
# Whose values are not of a query: costs.
_DOCUMENT_COSTS = ("document_terms", "index_bytes")

# system -> column -> metric -> value
Table = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass
class PartResults:
    """Systems on one corpus.

    `values` has, of each system and metric, the value [Q] of each query, or one number
    for the cost of a document.
    """

    name: str
    query_ids: Sequence[str]
    languages: Sequence[str]
    metrics: Sequence[str]
    data: Mapping[str, Any]
    apart: Sequence[str]
    values: dict[str, dict[str, np.ndarray | float]] = dataclasses.field(
        default_factory=dict
    )

    @classmethod
    def of(cls, task: Task, metrics: Sequence[str]) -> "PartResults":
        """Of no system yet."""
        ids = task.query_ids or [str(i) for i in range(len(task.queries))]
        return cls(task.name, ids, task.languages, metrics, task.data, task.apart)

    def add(self, system: str, task: Task, found: Ranking) -> None:
        """Measures what a system found."""
        values: dict[str, np.ndarray | float] = {
            **measures.per_query(found.hits, task.judged(found.hits), self.metrics)
        }
        if found.query_terms is not None:
            values["query_terms"] = np.asarray(found.query_terms, np.float64)
            values["document_terms"] = found.document_terms
            values["index_bytes"] = found.index_bytes
        self.values[system] = values

    def to_json(self) -> dict[str, Any]:
        """All of it, exactly, as `from_json` reads it."""
        values = {
            system: {metric: np.asarray(value).tolist() for metric, value in of.items()}
            for system, of in self.values.items()
        }
        return {**vars(self), "values": values}

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> "PartResults":
        """What `to_json` gave."""
        values = {
            system: {
                metric: np.asarray(value) if isinstance(value, list) else value
                for metric, value in of.items()
            }
            for system, of in read["values"].items()
        }
        return cls(**{**read, "values": values})

    def means(self, system: str) -> dict[str, dict[str, float]]:
        """The mean of each metric over the queries of each language."""
        languages = np.array(self.languages)
        return {
            language: {
                metric: float(np.mean(np.asarray(value)[languages == language]))
                if np.ndim(value)
                else float(value)
                for metric, value in self.values[system].items()
            }
            for language in dict.fromkeys(self.languages)
        }


def table(parts: Sequence[PartResults]) -> Table:
    """Systems by language: the mean over a language's parts; `mean` and `worst` last.

    Parts of a single language, such as BEIR's, are columns of their own.
    """
    languages = dict.fromkeys(one for part in parts for one in part.languages)
    by_part = len(languages) == 1 and len(parts) > 1
    made: Table = {}
    for system in parts[0].values:
        cells: dict[str, list[dict[str, float]]] = {}
        for part in parts:
            for language, values in part.means(system).items():
                column = part.name.split("/")[-1] if by_part else language
                cells.setdefault(column, []).append(values)
        made[system] = {
            column: _means(values, list(values[0])) for column, values in cells.items()
        }
        made[system] |= _summary(made[system], parts[0].apart)
    return made


def _means(
    values: Sequence[Mapping[str, float]], metrics: Sequence[str]
) -> dict[str, float]:
    return {m: float(np.mean([one[m] for one in values])) for m in metrics}


def _summary(columns: Mapping[str, Mapping[str, float]], apart: Sequence[str]):
    """The mean and the lowest value over the columns; none of a single column."""
    counted = [values for name, values in columns.items() if name not in apart]
    if len(counted) < 2:
        return {}
    ranked = [m for m in counted[0] if m not in ("query_terms", *_DOCUMENT_COSTS)]
    worst = {m: min(values[m] for values in counted) for m in ranked}
    return {"mean": _means(counted, list(counted[0])), "worst": worst}


def write_queries(path: pathlib.Path, parts: Mapping[str, Sequence[PartResults]]):
    """Writes the values of each query by task, as JSON lines, whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with gzip.open(temporary, "wt", encoding="utf-8") as file:
            for row in _rows(parts):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(parts: Mapping[str, Sequence[PartResults]]) -> Iterator[dict[str, Any]]:
    for task, of in parts.items():
        for part in of:
            for system, values in part.values.items():
                ranked = {m: np.asarray(v) for m, v in values.items() if np.ndim(v)}
                for i, key in enumerate(part.query_ids):
                    yield {
                        "task": task,
                        "part": part.name,
                        "system": system,
                        "language": part.languages[i],
                        "query": key,
                        **{metric: float(value[i]) for metric, value in ranked.items()},
                    }


def run_name(part: str, system: str) -> str:
    """The name of a run file."""
    return re.sub(r"[^\w.+-]+", "-", f"{part}.{system}") + ".trec.gz"


def unfit_id(task: Task) -> str | None:
    """An id of a task because of which it has no TREC runs."""
    return unfit([*task.query_ids, *task.document_ids])


def write_runs(
    folder: pathlib.Path, task: Task, found: Mapping[str, Ranking]
) -> list[str]:
    """Writes a TREC run of each system, if the task has ids; returns their names."""
    if not task.query_ids or not task.document_ids or unfit_id(task) is not None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for system, ranking in found.items():
        path = folder / run_name(task.name, system)
        ids = task.query_ids, task.document_ids
        write_run(path, *ids, ranking.hits, ranking.scores, system)
    return [run_name(task.name, system) for system in found]


class Other:
    """What `--compare` names: a TREC run, or the folder of an earlier evaluation."""

    def __init__(self, path: pathlib.Path):
        """Reads it; InputError if it is neither."""
        self.path = path
        self._run: dict[str, dict[str, float]] | None = None
        if not path.is_dir():
            self._run = read_run(path)
            return
        try:
            self._system = results_file.read(path / RESULTS_FILE)["system"]
            with gzip.open(path / QUERIES_FILE, "rt", encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            self._rows = {
                (row["part"], row["query"]): row
                for row in rows
                if row["system"] == self._system
            }
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            zlib.error,
        ) as error:
            raise InputError(
                f"--compare {path} is no folder that `lsrjax evaluate --out` wrote"
                f" ({type(error).__name__}: {error}). Name one, or a TREC run."
            ) from error

    def values(self, task: Task, metrics: Sequence[str]) -> dict[str, np.ndarray]:
        """The values [Q] of each metric; a query that a run lacks counts as 0.

        Raises:
          InputError: the evaluation lacks a query or a metric, or the run has none of
            the queries.
        """
        if self._run is not None:
            return self._measured(task, metrics)
        try:
            rows = [self._rows[task.name, key] for key in task.query_ids]
            return {m: np.array([row[m] for row in rows], np.float64) for m in metrics}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--compare {self.path} has no value for {error} of {task.name}."
                " Compare evaluations of the same tasks and metrics."
            ) from error

    def _measured(self, task: Task, metrics: Sequence[str]) -> dict[str, np.ndarray]:
        run = self._run or {}
        if not any(key in run for key in task.query_ids):
            raise InputError(
                f"--compare {self.path} has none of the {len(task.query_ids):,} queries"
                f" of {task.name}, such as {task.query_ids[0]!r}. Name its run."
            )
        depth = measures.required_depth(metrics)
        places = {key: place for place, key in enumerate(task.document_ids)}
        named = [key for query in task.query_ids for key in run.get(query, ())]
        if not any(key in places for key in named):
            raise InputError(
                f"--compare {self.path} has none of the documents of {task.name}, but"
                f" {named[0]!r} for one. Name a run over the same corpus."
            )
        hits = np.full((len(task.query_ids), depth + 1), -1, np.int32)
        for row, query in enumerate(task.query_ids):
            # As trec_eval: of equal scores, the later id first.
            order = sorted(run.get(query, {}).items(), key=lambda x: x[::-1])[::-1]
            kept = [key for key, _ in order if not (task.own_ids and key == query)]
            for rank, key in enumerate(kept[:depth]):
                # A document that the corpus lacks is not relevant, but takes its rank.
                hits[row, rank] = places.setdefault(key, len(places))
        hits = hits[:, :depth]
        relevant = task.relevant
        if task.judge is not None:
            known = np.where(hits < len(task.document_ids), hits, -1)
            relevant = task.judged(known)
        return measures.per_query(hits, relevant, metrics)


def compared(
    parts: Sequence[PartResults],
    others: Sequence[Mapping[str, np.ndarray]],
    system: str,
) -> dict[str, dict[str, dict[str, float]]]:
    """A system and another one by language and over all queries: metric to test."""
    languages = np.concatenate([np.array(part.languages) for part in parts])
    made: dict[str, dict[str, dict[str, float]]] = {}
    for metric in parts[0].metrics:
        ours = np.concatenate([part.values[system][metric] for part in parts])
        theirs = np.concatenate([other[metric] for other in others])
        chosen = {one: languages == one for one in dict.fromkeys(languages.tolist())}
        if len(chosen) > 1:
            chosen["all"] = np.ones(len(languages), bool)
        made[metric] = {
            name: dataclasses.asdict(significance.compare(ours[rows], theirs[rows]))
            for name, rows in chosen.items()
        }
    return made
