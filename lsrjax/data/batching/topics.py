"""Topics of queries, for batches of one topic each (TAS-B, Hofstätter et al. 2021).

The paper clusters the vectors of a dense model; here TF-IDF vectors are clustered, so
that no model is needed.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lsrjax.data.batching.orders import TOPICS
from lsrjax.data.examples import ANY, ENGLISH, Group

_WIDTH = 128  # of a query's vector
_CHUNK = 1 << 14  # queries at a time
# k-means runs on this many queries per cluster, for this many rounds.
_SAMPLED, _ROUNDS = 64, 20


def query_text(group: Group) -> str:
    """A group's query, in English if it exists in English."""
    known = [name for name in (ENGLISH, ANY, *group.query) if name in group.query]
    return group.query[known[0]]


def vectors(rows: Sequence[Sequence[int]], seed: int) -> np.ndarray:
    """TF-IDF of token ids, in a random projection that roughly preserves cosines.

    Each token goes to one coordinate with a sign, both random (the count sketch of
    Charikar et al. 2002). A token of all queries has weight 0.

    Returns:
      [queries, width] float32 of length one, or zero.
    """
    size = 1 + max((max(row, default=0) for row in rows), default=0)
    rng = np.random.default_rng((seed, TOPICS))
    places = rng.integers(_WIDTH, size=size)
    signs = rng.choice([-1.0, 1.0], size)
    queries_with = np.zeros(size)
    for row in rows:
        queries_with[list(set(row))] += 1
    weights = signs * np.log(len(rows) / np.maximum(queries_with, 1))
    made = np.empty((len(rows), _WIDTH), np.float32)
    for chunk in _chunks(len(rows)):
        part = rows[chunk]
        counts = [len(row) for row in part]
        tokens = np.fromiter((t for row in part for t in row), int, sum(counts))
        flat = np.repeat(np.arange(len(part)), counts) * _WIDTH + places[tokens]
        made[chunk] = np.bincount(
            flat, weights[tokens], minlength=len(part) * _WIDTH
        ).reshape(len(part), _WIDTH)
    return _of_length_one(made)


def cluster(
    rows: Sequence[Sequence[int]], count: int, least: int, seed: int
) -> np.ndarray:
    """Clusters queries by k-means on the cosine.

    A cluster of fewer than `least` queries joins the one with the nearest centre.

    Returns:
      [queries] the cluster of each, numbered from 0 without gaps.
    """
    vectors_nD = vectors(rows, seed)
    centres_KD = _k_means(vectors_nD, min(count, len(rows)), seed)
    labels = _nearest(vectors_nD, centres_KD)
    sums_KD = _sums(vectors_nD, labels, len(centres_KD))
    return _joined(labels, sums_KD, least)


def _k_means(vectors_nD: np.ndarray, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, TOPICS, 1))
    n = len(vectors_nD)
    sample_nD = vectors_nD[rng.permutation(n)[: _SAMPLED * count]]
    centres_KD = sample_nD[:count]
    for _ in range(_ROUNDS):
        sums_KD = _sums(sample_nD, _nearest(sample_nD, centres_KD), count)
        # A centre to which nothing is nearest, or the origin, restarts elsewhere.
        idle = np.flatnonzero(~sums_KD.any(axis=1))
        sums_KD[idle] = sample_nD[rng.integers(len(sample_nD), size=len(idle))]
        centres_KD = _of_length_one(sums_KD)
    return centres_KD


def _joined(labels: np.ndarray, sums_KD: np.ndarray, least: int) -> np.ndarray:
    sizes = np.bincount(labels, minlength=len(sums_KD))
    joins = np.arange(len(sizes))
    alive = sizes > 0
    while alive.sum() > 1:
        small = int(np.argmin(np.where(alive, sizes, sizes.sum() + 1)))
        if sizes[small] >= least:
            break
        alive[small] = False
        near = _of_length_one(sums_KD) @ sums_KD[small]
        into = int(np.argmax(np.where(alive, near, -np.inf)))
        sizes[into] += sizes[small]
        sums_KD[into] += sums_KD[small]
        joins[joins == small] = into
    return np.unique(joins[labels], return_inverse=True)[1]


def _nearest(vectors_nD: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    nearest = np.empty(len(vectors_nD), int)
    for chunk in _chunks(len(vectors_nD)):
        nearest[chunk] = (vectors_nD[chunk] @ centres_KD.T).argmax(axis=1)
    return nearest


def _sums(vectors_nD: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    sums_KD = np.zeros((count, vectors_nD.shape[1]), np.float32)
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    sums_KD[found] = np.add.reduceat(vectors_nD[order], starts, axis=0)
    return sums_KD


def _of_length_one(vectors_nD: np.ndarray) -> np.ndarray:
    lengths_n1 = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    return vectors_nD / np.where(lengths_n1 > 0, lengths_n1, 1)


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK):
        yield slice(start, start + _CHUNK)
