"""Reads what a run, or an evaluation, has left in its folder."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lsrjax import json_files
from lsrjax.checkpoint import names_on_disk
from lsrjax.checkpoint.results_file import CONFIG_FILE
from lsrjax.config import fields
from lsrjax.errors import InputError
from lsrjax.retrieval import results_file
from lsrjax.retrieval.results_file import RESULTS_FILE
from lsrjax.training import language_counts, lines_file
from lsrjax.training.evaluate_run import EXAMPLES_FILE, SPEED_FILE
from lsrjax.training.trackers import METRICS_FILE

_ADVICE = "Put back the file that was written there, or remove it."
_DAMAGED = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    ZeroDivisionError,
)
_Numbers = Mapping[str, Sequence[tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class Record:
    """A run, finished or not, or the folder of `lsrjax evaluate --out`.

    Attributes:
      stages: of each stage that has begun, its numbers by name: (step, value).
      done: the steps of finished stages.
      config: empty of an evaluation.
      tasks: by name, what `task_tables.described` says.
      examples: as of `evaluate_run`.
      speed: documents a second that each stage's model encodes.
      languages: of each stage, as `language_counts.write` writes them.
    """

    name: str
    stages: Mapping[str, _Numbers]
    done: Mapping[str, int]
    config: Mapping[str, Any]
    tasks: Mapping[str, Any]
    examples: Sequence[Mapping[str, Any]]
    speed: Mapping[str, float]
    languages: Mapping[str, Sequence[tuple[str, ...]]]


def read(folders: Sequence[pathlib.Path]) -> list[Record]:
    """The records of some folders, each with a name of its own.

    Raises:
      InputError: a folder is of no run, or one of its files is damaged.
    """
    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    return [_read(*each) for each in zip(folders, names, strict=True)]


def _read(folder: pathlib.Path, name: str) -> Record:
    config = _object(folder / CONFIG_FILE)
    tasks = results_file.read(folder / RESULTS_FILE)["tasks"]
    if not config and not (folder / RESULTS_FILE).is_file():
        raise InputError(
            f"{folder} has neither {CONFIG_FILE} nor {RESULTS_FILE}: it is no folder of"
            " a run, or of lsrjax evaluate --out. Name one."
        )
    stages = _checked(folder / CONFIG_FILE, lambda: [*(config.get("stages") or {})])
    stages = stages or [fields.ONLY_STAGE]
    numbers = {stage: _numbers(folder / stage / METRICS_FILE) for stage in stages}
    done = {
        stage: _object(folder / stage / names_on_disk.DONE_FILE).get("steps", 0)
        for stage in stages
    }
    return Record(
        name=name,
        stages={stage: found for stage, found in numbers.items() if found},
        done={stage: steps for stage, steps in done.items() if steps},
        config=config,
        tasks=tasks,
        examples=_examples(folder / EXAMPLES_FILE),
        speed=_checked(
            folder / SPEED_FILE,
            lambda: {
                system: float(value)
                for system, value in _object(folder / SPEED_FILE).items()
            },
        ),
        languages={stage: _languages(folder / stage) for stage in stages},
    )


def _languages(folder: pathlib.Path) -> list[tuple[str, ...]]:
    path = folder / language_counts.FILE
    return _checked(path, lambda: [*language_counts.rows(_object(path))])


def _object(path: pathlib.Path) -> dict[str, Any]:
    return json_files.read_json(path, _ADVICE) if path.is_file() else {}


def _checked(path: pathlib.Path, read) -> Any:
    """What `read` gives; an `InputError` for values of another shape."""
    try:
        return read()
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged ({error!r}). {_ADVICE}") from error


def _examples(path: pathlib.Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    return _checked(
        path,
        lambda: [
            {
                "query": str(one["query"]),
                "lang": str(one["lang"]),
                "terms": {
                    view: [(str(term), float(weight)) for term, weight in terms]
                    for view, terms in one["terms"].items()
                },
                "found": [
                    (int(rank), str(title), bool(right))
                    for rank, title, right in one["found"]
                ],
                "because": [
                    (str(term), str(view), float(part))
                    for term, view, part in one.get("because", ())
                ],
            }
            for one in json.loads(path.read_text(encoding="utf-8"))
        ],
    )


def _numbers(path: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
    """The finite numbers of a stage; a run that is under way has an unfinished line."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in lines_file.read(path):
        step = float(record.pop("step"))
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((step, float(value)))
    return found
