"""Whether two systems differ by more than chance, query by query."""

import dataclasses

import numpy as np

_RESAMPLES = 9999
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems on the same queries.

    Attributes:
      difference: mean of the first one's values minus the second one's.
      wins: queries on which the first one is better.
      losses: queries on which it is worse.
      t_test: two-sided p-value of the paired t-test.
      randomisation: two-sided p-value of the randomisation test.
    """

    queries: int
    difference: float
    wins: int
    losses: int
    t_test: float
    randomisation: float


def compare(ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    """Compares the values [Q] of a metric, of two systems.

    The randomisation test swaps the values of a query between the systems, 9,999 times
    with a fixed seed, or in all ways if there are fewer (Smucker, Allan and Carterette,
    "A comparison of statistical significance tests for information retrieval
    evaluation", CIKM 2007). Systems that are equal on every query, or only one query,
    give a p-value of 1.
    """
    from scipy import stats

    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    gains = ours - theirs
    t_test = randomisation = 1.0
    if len(gains) > 1 and gains.any():
        # Equal gains on all queries: as unlikely as they can be.
        same = np.ptp(gains) == 0
        t_test = 0.0 if same else float(stats.ttest_rel(ours, theirs).pvalue)
        randomisation = float(
            stats.permutation_test(
                (ours, theirs),
                lambda x, y, axis: np.mean(x - y, axis=axis),
                permutation_type="samples",
                vectorized=True,
                n_resamples=_RESAMPLES,
                batch=max(1, 2**22 // len(gains)),
                rng=np.random.default_rng(_SEED),
            ).pvalue
        )
    return Comparison(
        len(gains),
        float(gains.mean()),
        int((gains > 0).sum()),
        int((gains < 0).sum()),
        t_test,
        randomisation,
    )
