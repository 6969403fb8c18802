"""Which of a stage's numbers are drawn together."""

import re
from collections.abc import Iterator, Mapping, Sequence

from lsrjax.training.report import charts
from lsrjax.training.report.charts import Line
from lsrjax.training.report.elements import Element
from lsrjax.training.report.records import Record

# The first pattern that a number's name matches decides; the last one is for parts of
# the loss, which may have any name.
_GROUPS = (
    ("Dev metrics", r"dev_"),
    ("Active terms", r"active_"),
    ("Lambdas", r"lambda_"),
    ("Learning rate", r"lr$"),
    ("Gradient norm", r"grad_norm$"),
    ("Tokens per second", r"tokens_per_s$"),
    ("Examples per second", r"examples_per_s$"),
    ("Share of padding", r"padding$"),
    ("Peak memory, GB", r"memory_gb$"),
    ("Terms that are not in the text, or unused", r"(expansion|unused|empty)"),
    ("Regularizers", r".+_(query|document)(_|$)"),
    ("Loss and its parts", r""),
)
_ORDER = (
    *("Loss and its parts", "Dev metrics", "Active terms", "Regularizers", "Lambdas"),
    *("Terms that are not in the text, or unused", "Gradient norm", "Learning rate"),
    *("Tokens per second", "Examples per second", "Share of padding"),
    "Peak memory, GB",
)

# Titles that do not say which number a chart with one line has.
_KINDS = (
    *("Dev metrics", "Active terms", "Regularizers", "Lambdas"),
    "Terms that are not in the text, or unused",
)
_FAR = ("Loss and its parts", "Regularizers")


def of_stage(stage: str, runs: Sequence[Record]) -> list[Element]:
    """The charts of a stage.

    Of one run, numbers of a kind are drawn together; of several, each number is, with a
    line for each run. What is logged by language has a chart for each run.
    """
    found: dict[str, dict[str, list[Line]]] = {}
    for run in runs:
        for name, points in run.stages.get(stage, {}).items():
            several = len(runs) > 1
            for title, line in [_placed(run.name, name, several)]:
                lines = found.setdefault(_group(name), {}).setdefault(title, [])
                lines.append(Line(line, points))
    return [
        charts.chart(
            _titled(title, lines), sorted(lines, key=_first), far=group in _FAR
        )
        for group in _ORDER
        for title, lines in found.get(group, {}).items()
    ]


def _group(name: str) -> str:
    return next(title for title, pattern in _GROUPS if re.match(pattern, name))


def _placed(run: str, name: str, several: bool) -> tuple[str, str]:
    """The title of the chart that a number is in, and the name of its line."""
    kind, _, language = name.partition("/")
    if language:
        shown = f"{kind.replace('_', ' ')} by language"
        return (f"{shown}: {run}" if several else shown), language
    if several:
        return name.removeprefix("dev_").replace("_", " "), run
    group = _group(name)
    short = re.sub(r"^(dev|active|lambda)_", "", name)
    return group, short.replace("_", " ")


def _titled(title: str, lines: Sequence[Line]) -> str:
    """The title of a chart; without a legend it has to say which number it is."""
    named = title in _KINDS and len(lines) == 1
    return f"{title}: {lines[0].name}" if named else title


def _first(line: Line) -> bool:
    return line.name != "loss"


def pruning(name: str, curve: Mapping) -> Element:
    """A metric by the terms that a document keeps."""
    points = sorted(curve["budgets"], key=lambda one: one["terms"])
    columns = list(points[0]["values"])
    shown = [one for one in ("mean", "worst") if one in columns] or columns
    lines = [
        Line(
            column,
            [(one["terms"], one["values"][column]) for one in points],
            [f"{one['budget']}, {one['values'][column]:.3f}" for one in points],
        )
        for column in shown
    ]
    knee = f", knee at {curve['knee']}" if "knee" in curve else ""
    title = f"{name}: {curve['metric']} by terms of a document{knee}"
    return charts.chart(title, lines, "terms")


def of_tasks(runs: Sequence[Record]) -> Iterator[Element]:
    """The curves of pruning that were recorded."""
    for run in runs:
        for task, made in run.tasks.items():
            if made.get("prune_curve"):
                label = f"{run.name}, {task}" if len(runs) > 1 else task
                yield pruning(label, made["prune_curve"])
