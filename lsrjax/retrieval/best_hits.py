"""The best documents so far of each query, while blocks of documents are scored."""

import numpy as np

# The score's bits precede the complemented document index in one 64-bit key, so that
# the order of keys is "higher score, then smaller index" and no two keys are equal: the
# top keys are the same set with any selection algorithm.
_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_NO_HIT = np.iinfo(np.int64).min


class BestHits:
    """The `depth` best documents of each of Q queries.

    Threads may add scores of different queries at the same time.
    """

    def __init__(self, queries: int, depth: int):
        """Starts without a hit."""
        self._depth = depth
        self._keys = np.full((queries, depth), _NO_HIT, np.int64)
        # A document has to score more than this to be one of the best: the lowest of
        # them, as documents come in their order and an equal score does not displace an
        # earlier one.
        self._limit = np.full(queries, -np.inf, np.float32)

    def add(self, rows: slice, scores: np.ndarray, start: int) -> None:
        """Takes the scores [rows, N] of the documents `start` to `start + N`.

        Blocks come in the order of the documents. A score of 0 is no hit.
        """
        limit = self._limit[rows].copy()
        unknown = np.isneginf(limit)
        if unknown.any():
            limit[unknown] = _reached(scores[unknown], self._depth)
        better = scores > limit[:, None]
        if (limit < 0).any():
            better &= scores != 0
        places = np.flatnonzero(better)
        if not len(places):
            return
        row, column = np.divmod(places, scores.shape[1])
        found, row = np.unique(row, return_inverse=True)
        counts = np.bincount(row)
        nth = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        keys = np.full((len(found), self._depth + counts.max()), _NO_HIT, np.int64)
        found += rows.start
        keys[:, : self._depth] = self._keys[found]
        keys[row, self._depth + nth] = _keys(scores.ravel()[places], start + column)
        keys = np.partition(keys, counts.max(), axis=1)[:, counts.max() :]
        self._keys[found] = keys
        lowest = keys.min(axis=1)
        self._limit[found] = np.where(lowest == _NO_HIT, -np.inf, _scores(lowest))

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices [Q, depth] int32, best first, and float32 scores; no hit: -1, 0."""
        keys = np.sort(self._keys, axis=1)[:, ::-1]
        hit = keys != _NO_HIT
        indices = _INDEX_MASK - (keys & _INDEX_MASK)
        return (
            np.where(hit, indices, -1).astype(np.int32),
            np.where(hit, _scores(keys), 0).astype(np.float32),
        )


def _reached(scores: np.ndarray, depth: int) -> np.ndarray:
    """For each row a limit that at least `depth` hits exceed, -inf if none is known.

    The columns are dealt into groups. At least `depth` scores reach the `depth`-th of
    the groups' highest scores, which takes one pass instead of a selection among all.
    """
    width = max(1, scores.shape[1] // (4 * depth))
    groups = scores.shape[1] // width
    if groups < depth:
        return np.full(len(scores), -np.inf, np.float32)
    dealt = scores[:, : width * groups].reshape(-1, width, groups).max(axis=1)
    reached = np.partition(dealt, groups - depth, axis=1)[:, groups - depth]
    return np.where(reached > 0, np.nextafter(reached, np.float32(-np.inf)), -np.inf)


def _keys(scores: np.ndarray, index: np.ndarray) -> np.ndarray:
    bits = scores.view(np.int32)
    # Floats are ordered like their bits, negative ones in reverse.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    return (ordered << _INDEX_BITS) | (_INDEX_MASK - index)


def _scores(keys: np.ndarray) -> np.ndarray:
    ordered = (keys >> _INDEX_BITS).astype(np.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)
