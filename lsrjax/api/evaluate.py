"""Evaluates a model on benchmarks, or on data of your own."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from lsrjax import options
from lsrjax.api.model import Model, load
from lsrjax.retrieval import rank
from lsrjax.retrieval.evaluate_tasks import (
    SYSTEM,
    Evaluation,
    evaluate_tasks,
    way_of,
)
from lsrjax.retrieval.rank import Way
from lsrjax.retrieval.tasks.table import TASKS


def evaluate(
    model: str | Model,
    *tasks: str | Mapping[str, Any],
    metrics: Sequence[str] = (),
    bm25: bool = True,
    views: bool = False,
    lowercase: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures a model on tasks, as `lsrjax evaluate` does.

        found = lsrjax.evaluate("runs/my", {"name": "beir", "path": "my_data"})
        found["beir"]["results"]["model"]["mean"]["nDCG@10"]

    Args:
      model: a name as of `lsrjax.load`, or what it returns.
      *tasks: names, or dicts of `name` and options (docs/evaluation.md).
      metrics: such as "nDCG@10"; by default those of each task.
      bm25: also measure BM25.
      views: also measure each view of the model alone.
      lowercase: encode texts in lower case.
      console: where tables are printed; by default nowhere.

    Returns:
      By task: `options`, `metrics`, `data`, and `results` by system (`model`, `bm25`),
      language and metric, as in results.json of `lsrjax evaluate`.

    Raises:
      InputError: a model, task, option or metric that cannot be used.
    """
    chosen = [
        options.resolve(
            TASKS, {"name": task} if isinstance(task, str) else task, "task"
        )
        for task in tasks
    ]
    searcher = (load(model) if isinstance(model, str) else model).searcher
    alone = rank.views_of(searcher).items() if views else ()
    ways = {SYSTEM: Way()} | {way_of(name): Way(of) for name, of in alone if name}
    setup = Evaluation(
        searcher,
        ways,
        shown=ways,
        lowercase=lowercase,
        with_bm25=bm25,
        metrics=tuple(metrics),
    )
    results, _ = evaluate_tasks(chosen, setup, console or Console(quiet=True))
    return results
