"""Exact search over encoded texts."""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval import maxsim
from lsrjax.retrieval.maxsim import TokenMatrix

# The score's bits precede the complemented document index in one 64-bit key, so that
# the order of keys is "higher score, then smaller index" and no two keys are equal: the
# top keys are the same set with any selection algorithm.
_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_NO_HIT = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class Several:
    """Representations of N texts, CSR or `TokenMatrix` each, whose scores add up."""

    parts: Sequence[sparse.csr_matrix | TokenMatrix]

    @property
    def shape(self) -> tuple[int, int]:
        """Texts, and columns of all parts."""
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)

    def __getitem__(self, texts) -> "Several":
        """Some of the texts, by a slice or an array of positions."""
        return Several([part[texts] for part in self.parts])


def search(
    queries: sparse.csr_matrix | TokenMatrix | Several,
    docs: sparse.csr_matrix | TokenMatrix | Several,
    depth: int,
    *,
    batch: int = 128,
    block: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the documents with the highest score for each query.

    The score is the dot product, or for token embeddings MaxSim.

    The search is exact. Equal scores are ordered by the smaller document index, and a
    document with score 0 is no hit. Neither `batch` nor `block` changes a result
    (except the last bit of a score of dense vectors), nor does the number of threads.
    They bound the memory: about 30 bytes x `batch` x `block` a thread, and 32 MB.

    Args:
        queries: [Q, V] weights of the queries, scipy CSR; or their tokens' embeddings,
            or several representations whose scores add up.
        docs: the same of the N documents.
        depth: hits to return for each query; may be larger than N.
        batch: queries scored at once.
        block: documents scored at once.

    Returns:
        indices: [Q, depth] int32, best first, -1 for no hit.
        scores: [Q, depth] float32, 0 for no hit.

    Raises:
        InputError: a weight is not finite.
        ValueError: if the vocabularies differ, or `depth`, `batch` or `block` is
            below 1.
    """
    found = TopHits(queries, depth, batch=batch, block=block)
    found.add(docs)
    return found.best()


class TopHits:
    """The best documents for each query, of documents that come in blocks.

    All blocks together give what `search` gives for all documents at once.
    """

    def __init__(
        self,
        queries: sparse.csr_matrix | TokenMatrix | Several,
        depth: int,
        *,
        batch: int = 128,
        block: int = 4096,
    ):
        """No documents yet; arguments and errors as of `search`."""
        for name, value in (("depth", depth), ("batch", batch), ("block", block)):
            if value < 1:
                raise ValueError(f"search: {name} is {value}; it has to be at least 1.")
        self._queries = _checked(queries, "queries")
        self._batch, self._block = batch, block
        self._best = Best(self._queries.shape[0], depth)
        self._count = 0

    def add(self, docs: sparse.csr_matrix | TokenMatrix | Several) -> None:
        """Searches the next documents; their index goes on from those before."""
        docs, queries = _checked(docs, "docs"), self._queries
        if queries.shape[1] != docs.shape[1]:
            raise ValueError(
                f"search: queries have {queries.shape[1]} columns and docs have "
                f"{docs.shape[1]}; encode both with the same model and views."
            )
        scoring = _scoring(queries, docs)
        threads = _threads() if scoring.parallel else 1
        batch = min(self._batch, math.ceil(queries.shape[0] / threads) or 1)
        rows = [slice(i, i + batch) for i in range(0, queries.shape[0], batch)]
        parts = [(some, queries[some]) for some in rows]
        block = min(self._block, scoring.most)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for start in range(0, docs.shape[0], block):
                columns = scoring.prepare(docs[start : start + block])
                end = min(start + block, docs.shape[0])
                documents = np.arange(start, end) + self._count
                add = functools.partial(self._add, scoring.score, columns, documents)
                list((pool.map if len(parts) > 1 else map)(add, parts))
        self._count += docs.shape[0]

    def restore(self, hits: np.ndarray, scores: np.ndarray, count: int) -> None:
        """Takes over what `best` gave of the first `count` documents."""
        # No hit has score 0, and is left out.
        self._best.add(slice(None), scores, hits)
        self._count = count

    def _add(self, score, columns, documents: np.ndarray, part) -> None:
        rows, queries = part
        self._best.add(rows, score(queries, columns), documents)

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices and scores [Q, depth] of the documents so far, as of `search`."""
        return self._best.hits()


class Best:
    """The best hits of Q queries among the documents scored so far.

    In whatever order documents come, the result is the same: equal scores are ordered
    by the smaller document index, and a document with score 0 is no hit. Threads may
    add scores of different queries at the same time.
    """

    def __init__(self, queries: int, depth: int):
        """No hits so far; `depth` of each query will be kept."""
        self._depth = depth
        self._keys = np.full((queries, depth), _NO_HIT, np.int64)
        # The lowest score that is kept; what is below it needs no key.
        self._least = np.full(queries, -np.inf, np.float32)

    def add(self, rows: slice, scores: np.ndarray, documents: np.ndarray) -> None:
        """Adds scores [rows, N], float32, of documents [N], or [rows, N] of each."""
        places = self._places(rows, scores)
        if not len(places):
            return
        row, column = np.divmod(places, scores.shape[1])
        found, row = np.unique(row, return_inverse=True)
        counts = np.bincount(row)
        most = counts.max()
        nth = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        keys = np.full((len(found), self._depth + most), _NO_HIT, np.int64)
        found = np.arange(len(self._keys))[rows][found]
        keys[:, : self._depth] = self._keys[found]
        index = documents[column] if documents.ndim == 1 else documents.ravel()[places]
        keys[row, self._depth + nth] = _keys(scores.ravel()[places], index)
        keys = np.partition(keys, most, axis=1)[:, most:]
        self._keys[found] = keys
        least = keys.min(axis=1)
        self._least[found] = np.where(least == _NO_HIT, -np.inf, _scores(least))

    def _places(self, rows: slice, scores: np.ndarray) -> np.ndarray:
        """Positions in the flat scores of those that may be among the best."""
        least = self._least[rows].copy()
        unknown = np.isneginf(least)
        if unknown.any():
            least[unknown] = _reached(scores[unknown], self._depth)
        enough = scores >= least[:, None]
        if (least <= 0).any():
            enough &= scores != 0
        return np.flatnonzero(enough)

    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices [Q, depth] and scores, as `search` returns them."""
        keys = np.sort(self._keys, axis=1)[:, ::-1]
        hit = keys != _NO_HIT
        indices = _INDEX_MASK - (keys & _INDEX_MASK)
        return (
            np.where(hit, indices, -1).astype(np.int32),
            np.where(hit, _scores(keys), 0).astype(np.float32),
        )


def _reached(scores: np.ndarray, depth: int) -> np.ndarray:
    """For each row a positive score that at least `depth` reach, -inf if none is known.

    The columns are dealt into groups. At least `depth` scores reach the `depth`-th of
    the groups' highest scores, which takes one pass instead of a selection among all.
    """
    width = max(1, scores.shape[1] // (4 * depth))
    groups = scores.shape[1] // width
    if groups < depth:
        return np.full(len(scores), -np.inf, np.float32)
    dealt = scores[:, : width * groups].reshape(-1, width, groups).max(axis=1)
    reached = np.partition(dealt, groups - depth, axis=1)[:, groups - depth]
    return np.where(reached > 0, reached, -np.inf)


def _keys(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    bits = scores.view(np.int32)
    # Floats are ordered like their bits, negative ones in reverse.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    return (ordered << _INDEX_BITS) | (_INDEX_MASK - documents.astype(np.int64))


def _scores(keys: np.ndarray) -> np.ndarray:
    ordered = (keys >> _INDEX_BITS).astype(np.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)


# More of them wait for each other between the small products.
_MOST_THREADS = 8


def _threads() -> int:
    available = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if available else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


@dataclasses.dataclass(frozen=True)
class _Scoring:
    """How a block of at most `most` documents is prepared, and queries score it.

    `parallel`: the score gains from several threads; it has none of its own.
    """

    prepare: Callable[[Any], Any]
    score: Callable[[Any, Any], np.ndarray]
    most: int
    parallel: bool = False


def _scoring(queries, docs) -> _Scoring:
    if isinstance(docs, Several):
        each = [_scoring(q, d) for q, d in zip(queries.parts, docs.parts, strict=True)]
        return _Scoring(
            lambda block: [
                one.prepare(part) for one, part in zip(each, block.parts, strict=True)
            ],
            lambda rows, prepared: functools.reduce(
                np.add,
                (
                    one.score(part, columns)
                    for one, part, columns in zip(
                        each, rows.parts, prepared, strict=True
                    )
                ),
            ),
            min(one.most for one in each),
            all(one.parallel for one in each),
        )
    if isinstance(docs, TokenMatrix):
        return _Scoring(lambda block: block, maxsim.scores, _TOKENS_BLOCK)
    if _too_dense(queries, docs):
        return _Scoring(
            lambda block: block.T.toarray(),
            lambda rows, columns: rows.toarray() @ columns,
            _DENSE_BLOCK,
        )
    return _Scoring(
        lambda block: block.T.tocsr(), _sparse_scores, docs.shape[0] or 1, True
    )


def _sparse_scores(rows: sparse.csr_matrix, columns: sparse.csr_matrix) -> np.ndarray:
    """The products of queries with a block of documents, terms x documents.

    If many documents have the queries' terms, these terms are made dense, and each
    occurrence in a query adds a row of numbers. The sums, and their order, are those of
    the sparse product.
    """
    terms, places = np.unique(rows.indices, return_inverse=True)
    postings = int(np.diff(columns.indptr)[rows.indices].sum())
    cells = len(terms) * columns.shape[1]
    numbers = rows.nnz * columns.shape[1]
    if cells > _MOST_CELLS or cells + numbers > _DENSE_SPEED * postings:
        return (rows @ columns).toarray()
    used = sparse.csr_matrix(
        (rows.data, places, rows.indptr), shape=(rows.shape[0], len(terms))
    )
    return used @ columns[terms].toarray()


def _checked(weights, name: str):
    if isinstance(weights, TokenMatrix):
        return weights
    if isinstance(weights, Several):
        return Several([_checked(part, name) for part in weights.parts])
    weights = sparse.csr_matrix(weights, dtype=np.float32)
    if not np.isfinite(weights.data).all():
        row = np.searchsorted(
            weights.indptr, np.flatnonzero(~np.isfinite(weights.data))[0], side="right"
        )
        raise InputError(
            f"search: row {row - 1} of {name} has a weight that is not finite; "
            "the model that encoded it has diverged. Use an earlier checkpoint, or "
            "train it again with a lower config.optim.lr."
        )
    # A score is summed in the order of the query's columns: sorted, that order, and
    # with it the last bit of the score, does not depend on how the matrix was built.
    return weights if weights.has_sorted_indices else weights.sorted_indices()


# A dense product does about this many multiplications in the time of one sparse one;
_DENSE_SPEED = 50
# it only matters from this many sparse ones (about a second) on.
_WORTH_IT = 10**9
_DENSE_BLOCK = 1024  # documents made dense at once
_MOST_CELLS = 2**23  # of queries' terms that are made dense at once: 32 MB a thread
_TOKENS_BLOCK = 128  # documents whose tokens are compared at once


def _too_dense(queries: sparse.csr_matrix, docs: sparse.csr_matrix) -> bool:
    """Whether dense products are faster.

    Early in training a model may give nearly every term a weight; sparse products of
    such vectors take minutes, dense ones seconds.
    """
    holders = np.bincount(docs.indices, minlength=docs.shape[1])
    multiplications = int(holders[queries.indices].sum())
    dense = queries.shape[0] * docs.shape[0] * docs.shape[1]
    return multiplications > _WORTH_IT and multiplications * _DENSE_SPEED > dense
