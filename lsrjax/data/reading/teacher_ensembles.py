"""Combines the scores of several teachers into one."""

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


def combine(
    scores_TN: np.ndarray, normalization: str = "none", weights: Sequence[float] = ()
) -> np.ndarray:
    """The weighted mean [N] float32 of T teachers' scores of a query's documents.

    Args:
      scores_TN: of T teachers.
      normalization: a name of `NORMALIZATIONS`, applied per query and teacher.
      weights: of the T teachers, their sum > 0; empty: equal.
    """
    normal = NORMALIZATIONS[normalization](np.asarray(scores_TN, np.float64))
    return np.average(normal, axis=0, weights=weights or None).astype(np.float32)
