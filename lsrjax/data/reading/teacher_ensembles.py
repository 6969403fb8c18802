"""Combines the scores of several teachers into one."""

import dataclasses
from collections.abc import Sequence

import numpy as np


def _zscore(scores_TN: np.ndarray) -> np.ndarray:
    spread = scores_TN.std(axis=1, keepdims=True)
    return (scores_TN - scores_TN.mean(axis=1, keepdims=True)) / np.where(
        spread > 0, spread, 1
    )


def _minmax(scores_TN: np.ndarray) -> np.ndarray:
    lowest = scores_TN.min(axis=1, keepdims=True)
    width = scores_TN.max(axis=1, keepdims=True) - lowest
    return (scores_TN - lowest) / np.where(width > 0, width, 1)


# Of a teacher's scores of one query's documents; equal scores all become 0.
NORMALIZATIONS = {
    "none": lambda scores_TN: scores_TN,
    "zscore": _zscore,  # mean 0, standard deviation 1
    "minmax": _minmax,  # 0 to 1
}


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """How the scores of T teachers become one.

    Attributes:
      normalization: a name of `NORMALIZATIONS`, applied per query and teacher.
      weights: of the T teachers, their sum > 0; empty: equal.
    """

    normalization: str = "none"
    weights: Sequence[float] = ()

    def combine(self, scores_TN: np.ndarray) -> np.ndarray:
        """The weighted mean [N] float32 of T teachers' normalized scores."""
        normal = NORMALIZATIONS[self.normalization](np.asarray(scores_TN, np.float64))
        weights = self.weights or None
        return np.average(normal, axis=0, weights=weights).astype(np.float32)


def parse_weights(text: str) -> tuple[float, ...]:
    """The weights of `"2,1"`; none for "".

    Raises:
      ValueError: not a number, a negative or infinite one, or a sum of 0.
    """
    weights = tuple(float(part) for part in text.split(",")) if text else ()
    finite = all(0 <= weight < float("inf") for weight in weights)
    if weights and not (finite and sum(weights) > 0):
        raise ValueError(text)
    return weights
