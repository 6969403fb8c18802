"""Weights of the rankings of a fusion, chosen by a metric on dev data."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lsrjax.errors import InputError
from lsrjax.options import Chosen
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval import rank
from lsrjax.retrieval.evaluate_tasks import BM25, Evaluation, way_of
from lsrjax.retrieval.rank import Ranking
from lsrjax.retrieval.task_results import PartResults
from lsrjax.retrieval.tasks.table import loaded

# Of a ranking beside the first one, whose weight is 1.
WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2, 3, 5, 10, 20)


def best(count: int, value: Callable[[Sequence[float]], float]) -> list[float]:
    """The weights of `count` rankings with the largest value, one after the other.

    Starts at 1 each; each weight but the first takes the best of `WEIGHTS`, until none
    changes (coordinate ascent). Of equally good ones the first found stays.
    """
    weights, reached = [1.0] * count, value([1.0] * count)
    changed = True
    while changed:
        changed = False
        for place in range(1, count):
            for weight in WEIGHTS:
                tried = [*weights[:place], weight, *weights[place + 1 :]]
                if (found := value(tried)) > reached:
                    weights, reached, changed = tried, found, True
    return weights


def tuned(tasks: Sequence[Chosen], setup: Evaluation) -> tuple[list[float], str, float]:
    """Weights of `setup.fusion` for the mean over all queries of all tasks.

    Returns:
      The weights in the order of `setup.fused`, the metric (the first one), its value.

    Raises:
      InputError: there is no fusion, or its weights are given.
    """
    fusion = setup.fusion
    if fusion is None or fusion.options.weights:
        raise InputError(
            "--tune_weights chooses the weights of a fusion: name --rank twice or more,"
            " and leave --fusion.weights out."
        )
    parts, metric = [], ""
    for task in (task for chosen in tasks for task in loaded(chosen)):
        metric = metric or setup.metrics_of(task)[0]
        depth = max(measures.required_depth([metric]), fusion.options.candidates)
        lower = setup.lowercase
        found = rank.rank(task, setup.searcher, setup.ways, depth, lowercase=lower)
        runs = [
            rank.bm25(task, depth) if name == BM25 else found[way_of(name)]
            for name in setup.fused
        ]
        parts.append((task, [(one.hits, one.scores) for one in runs], depth))

    def value(weights: Sequence[float]) -> float:
        options = dataclasses.replace(fusion.options, weights=list(weights))
        values = []
        for task, runs, depth in parts:
            part = PartResults.of(task, [metric])
            part.add("", task, Ranking(*fusion.entry.fuse(runs, depth, options)))
            values.append(np.atleast_1d(part.values[""][metric]))
        return float(np.concatenate(values).mean())

    weights = best(len(setup.fused), value)
    return weights, metric, value(weights)
