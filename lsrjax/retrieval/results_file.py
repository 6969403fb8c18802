"""`results.json`, in which a finished run and `lsrjax evaluate --out` leave results.

    {"lsrjax": "0.2.0", …, "tasks": {"beir": {"options", "metrics", "data", "results"}}}

Each task is what `task_tables.described` says, with results by system, language and
metric; facts about the model may stand beside the tasks.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import lsrjax
from lsrjax import json_files

RESULTS_FILE = "results.json"
# The embedded texts, by the language of the documents: English, or one of theirs each.
ENGLISH_TEXTS, MIXED_TEXTS = "debian/english", "debian/mixed"
_ADVICE = "Put back the file that was written there, or remove it."


def write(path: pathlib.Path, tasks: Mapping[str, Any], **facts: Any) -> None:
    """Writes results, and facts about them, in their order and as a whole.

    Raises:
        ValueError: if a value is not finite.
    """
    for name, task in tasks.items():
        for system, languages in task["results"].items():
            for language, values in languages.items():
                for metric, value in values.items():
                    if not math.isfinite(value):
                        raise ValueError(
                            f"{name}: {metric} of {system} in {language} is not finite,"
                            f" {path} is not written; find out why the evaluation gave"
                            " it."
                        )
    version = {"lsrjax": lsrjax.__version__}
    json_files.write_json(path, version | facts | {"tasks": tasks})


def read(path: pathlib.Path) -> dict[str, Any]:
    """What `write` wrote; of no file, a dict without tasks.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return {"tasks": {}}
    return json_files.read_json(path, _ADVICE, _parsed)


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    tasks = _object("tasks", values.get("tasks", {}))
    if "lsrjax" not in values:  # lsrjax 0.1: systems on the embedded texts, by name
        systems = {name: one for name, one in values.items() if name != "tasks"}
        columns = [v for of in _table(systems).values() for v in of.values()]
        metrics = dict.fromkeys(m for v in columns for m in v if "@" in m)
        own = {"metrics": [*metrics], "data": {}, "results": systems}
        tasks = ({ENGLISH_TEXTS: own} if systems else {}) | tasks
        values = {}
    return {**values, "tasks": {name: _task(name, one) for name, one in tasks.items()}}


def _task(name: str, values: Any) -> dict[str, Any]:
    task = _object(name, values)
    data = _object("data", task["data"])
    made = {
        "metrics": [str(metric) for metric in task["metrics"]],
        "data": {part: _object(part, facts) for part, facts in data.items()},
        "results": _table(task["results"]),
    }
    if "prune_curve" in task:
        made["prune_curve"] = _curve(task["prune_curve"])
    return task | made


def _table(values: Any) -> dict[str, dict[str, dict[str, float]]]:
    return {
        system: {
            language: {m: float(value) for m, value in _object(language, of).items()}
            for language, of in _object(system, languages).items()
        }
        for system, languages in _object("results", values).items()
    }


def _curve(values: Any) -> dict[str, Any]:
    budgets = [
        {
            **one,
            "budget": str(one["budget"]),
            "terms": float(one["terms"]),
            "values": {key: float(value) for key, value in one["values"].items()},
        }
        for one in values["budgets"]
    ]
    return {**values, "metric": str(values["metric"]), "budgets": budgets}


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r:.80}, which has to be an object")
    return value
