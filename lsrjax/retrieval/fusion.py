"""Fusion of several rankings of the same documents into one.

A run is what searches return: `hits` [Q, depth] int32, the documents best first and -1
for no hit, and `scores` [Q, depth] float32. The runs of one fusion have the same
queries and number documents in the same way; their depths may differ.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option

Run = tuple[np.ndarray, np.ndarray]

NORMALISATIONS = ("minmax", "none")


def rrf(
    runs: Sequence[Run], depth: int, *, k: float = 60.0, weights: Sequence[float] = ()
) -> Run:
    """Reciprocal rank fusion: the sum of weight / (k + rank) over the runs.

    The rank of a run's best hit is 1; a run that lacks a document adds nothing. Equal
    sums are ordered by the smaller document number. Cormack, Clarke and Büttcher,
    SIGIR 2009, whose `k` is 60.

    Args:
      depth: of the fused run.
      weights: of the runs; by default 1 each.

    Returns:
      hits [Q, depth] int32, -1 for no hit, and scores [Q, depth] float32.
    """
    parts = []
    for hits, _ in runs:
        ranks = np.arange(1, hits.shape[1] + 1)
        parts.append(np.broadcast_to(1.0 / (k + ranks), hits.shape))
    return _summed(runs, parts, _weights(runs, weights), depth)


def weighted(
    runs: Sequence[Run],
    depth: int,
    *,
    weights: Sequence[float] = (),
    normalise: str = "minmax",
) -> Run:
    """The weighted sum of scores over the runs.

    With "minmax", the scores of each query and run are scaled to 0 for its last hit and
    1 for its best (all 1 if they are equal), so that runs of different scales compare.
    A run that lacks a document adds nothing. Equal sums are ordered by the smaller
    document number.

    Args:
      depth: of the fused run.
      weights: of the runs; by default 1 each.
      normalise: "minmax" or "none".

    Returns:
      hits [Q, depth] int32, -1 for no hit, and scores [Q, depth] float32.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(f"weighted: normalise is {normalise!r}.")
    parts = [_minmax(run) if normalise == "minmax" else run[1] for run in runs]
    return _summed(runs, parts, _weights(runs, weights), depth)


def check_weights(fusion: options.Chosen, rankings: int) -> None:
    """Raises InputError unless all rankings have a weight, or none."""
    weights = fusion.options.weights
    if weights and len(weights) != rankings:
        raise InputError(
            f"--fusion.weights has {len(weights)} weights for {rankings} rankings. Give"
            " each its own."
        )


def _weights(runs: Sequence[Run], weights: Sequence[float]) -> Sequence[float]:
    if not runs:
        raise ValueError("Fusion needs a run.")
    if weights and len(weights) != len(runs):
        raise ValueError(f"{len(runs)} runs have {len(weights)} weights.")
    return weights or [1.0] * len(runs)


def _minmax(run: Run) -> np.ndarray:
    hits, scores = run[0], run[1].astype(np.float64)
    hit = hits >= 0
    low = np.where(hit, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(hit, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    spread = np.where(high > low, high - low, 1.0)
    return np.where(hit & (high > low), (scores - low) / spread, 1.0)


def _summed(runs, parts, weights, depth: int) -> Run:
    """The best documents of each query by the sum of its parts."""
    queries = len(runs[0][0])
    rows, documents, values = [], [], []
    for (hits, _), part, weight in zip(runs, parts, weights, strict=True):
        if len(hits) != queries:
            raise ValueError(f"Runs of {queries} and {len(hits)} queries.")
        places = np.nonzero(hits >= 0)
        rows.append(places[0])
        documents.append(hits[places].astype(np.int64))
        values.append(weight * part[places].astype(np.float64))
    pairs = np.stack([np.concatenate(rows), np.concatenate(documents)])
    (row, document), inverse = np.unique(pairs, axis=1, return_inverse=True)
    total = np.bincount(
        inverse.ravel(), np.concatenate(values), minlength=len(row)
    ).astype(np.float32)
    order = np.lexsort((document, -total, row))
    row, document, total = row[order], document[order], total[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < depth
    hits = np.full((queries, depth), -1, np.int32)
    scores = np.zeros((queries, depth), np.float32)
    hits[row[kept], rank[kept]] = document[kept]
    scores[row[kept], rank[kept]] = total[kept]
    return hits, scores


@dataclasses.dataclass(frozen=True)
class _Options(options.Options):
    weights: list[float] = option([], "of the rankings, in their order; empty: 1 each")
    candidates: int = option(1000, "hits of each ranking that count", low=1)


class Rrf:
    """`rrf` as an entry of the table."""

    @dataclasses.dataclass(frozen=True)
    class Options(_Options):
        """Options of the fusion."""

        k: float = option(60.0, "ranks that count about as much as the first", low=0)

    @staticmethod
    def fuse(runs: Sequence[Run], depth: int, options: Options) -> Run:
        """See `rrf`."""
        return rrf(runs, depth, k=options.k, weights=options.weights)


class Weighted:
    """`weighted` as an entry of the table."""

    @dataclasses.dataclass(frozen=True)
    class Options(_Options):
        """Options of the fusion."""

        normalise: str = option(
            "minmax", "scores before they are summed", choices=NORMALISATIONS
        )

    @staticmethod
    def fuse(runs: Sequence[Run], depth: int, options: Options) -> Run:
        """See `weighted`."""
        weights, normalise = options.weights, options.normalise
        return weighted(runs, depth, weights=weights, normalise=normalise)


FUSIONS: dict[str, Any] = {"rrf": Rrf, "weighted": Weighted}
