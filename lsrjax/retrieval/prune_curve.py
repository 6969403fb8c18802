"""Quality of documents that keep fewer terms, and the budget where it falls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.rank import Ranking, Way
from lsrjax.retrieval.result_tables import rounded
from lsrjax.retrieval.task_results import PartResults, table
from lsrjax.retrieval.tasks.task import Task

BUDGETS = "top:8,top:16,top:32,top:64,top:128,top:256"
ALL = "all"
_SYSTEM = "documents "


def ways(budgets: Sequence[Pruning], way: Way) -> dict[str, Way]:
    """A way of searching for each budget of documents, and one without; by name."""
    pruned = {str(one): Way(way.views, way.prune_queries, one) for one in budgets}
    whole = {ALL: Way(way.views, way.prune_queries)} if budgets else {}
    return {f"{_SYSTEM}{name}": one for name, one in (pruned | whole).items()}


def measured(task: Task, metric: str, found: Mapping[str, Ranking]) -> PartResults:
    """The budgets' results on a corpus, of what was found in all ways."""
    part = PartResults.of(task, [metric])
    for system, ranking in found.items():
        if system.startswith(_SYSTEM):
            part.add(system.removeprefix(_SYSTEM), task, ranking)
    return part


def curve(parts: Sequence[PartResults]) -> dict[str, Any]:
    """Terms, bytes, and the metric by language of each budget, smallest first.

    Returns:
      `metric`; `budgets`, a list with `budget`, `terms`, `bytes` and `values`, the last
      one without pruning; and `knee`, the budget of `knee`.
    """
    metric = parts[0].metrics[0]
    points: list[dict[str, Any]] = []
    for budget, columns in table(parts).items():
        shown = columns.get("mean") or next(iter(columns.values()))
        numbers = {
            "terms": shown["document_terms"],
            "bytes": shown["index_bytes"],
            "values": {name: one[metric] for name, one in columns.items()},
        }
        points.append({"budget": budget, **rounded(numbers)})
    points.sort(key=lambda point: (point["budget"] == ALL, point["terms"]))
    quality = [_quality(point) for point in points]
    place = knee([point["terms"] for point in points], quality)
    return {"metric": metric, "budgets": points, "knee": points[place]["budget"]}


def _quality(point: Mapping[str, Any]) -> float:
    values = point["values"]
    return values.get("mean", next(iter(values.values())))


def knee(terms: Sequence[float], quality: Sequence[float]) -> int:
    """The place from which more terms bring less than before.

    Where the curve is farthest above the line from its first to its last point, both
    axes scaled to 0 to 1, terms by their logarithm: Satopää et al., "Finding a
    'Kneedle' in a Haystack", 2011. The last place if quality does not rise.
    """
    x, y = np.log(np.maximum(terms, 1e-9)), np.asarray(quality, np.float64)
    if len(x) < 3 or x[-1] <= x[0] or y[-1] <= y[0]:
        return len(x) - 1
    above = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
    return int(np.argmax(above))


def show(found: Mapping[str, Any], console: Console) -> None:
    """Prints a curve; the knee has a mark."""
    columns = list(found["budgets"][0]["values"])
    console.print(
        f"\n{found['metric']} by the terms that a document keeps (* the knee)",
        highlight=False,
    )
    shown = Table(box=None, padding=(0, 1, 0, 0))
    shown.add_column("")
    for name in ("terms", "bytes", *columns):
        shown.add_column(name, justify="right", no_wrap=True)
    for point in found["budgets"]:
        mark = " *" if point["budget"] == found["knee"] else ""
        shown.add_row(
            f"{point['budget']}{mark}",
            f"{point['terms']:.1f}",
            f"{point['bytes']:,.0f}",
            *(f"{point['values'][name]:.3f}" for name in columns),
        )
    console.print(shown)
