"""Exact search over encoded texts."""

import dataclasses
from collections.abc import Sequence

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
    block: int = 32_768,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the documents with the highest score for each query.

    The score is the dot product, or for token embeddings MaxSim.

    The search is exact. Equal scores are ordered by the smaller document index, and a
    document with score 0 is no hit. Neither `batch` nor `block` changes a result
    (except the last bit of a score of dense vectors): they bound the memory, about
    30 bytes x `batch` x `block`.

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
    for name, value in (("depth", depth), ("batch", batch), ("block", block)):
        if value < 1:
            raise ValueError(f"search: {name} is {value}; it has to be at least 1.")
    queries, docs = _checked(queries, "queries"), _checked(docs, "docs")
    if queries.shape[1] != docs.shape[1]:
        raise ValueError(
            f"search: queries have {queries.shape[1]} columns and docs have "
            f"{docs.shape[1]}; encode both with the same model and views."
        )
    best = Best(queries.shape[0], depth)
    prepare, score, most = _scoring(queries, docs)
    block = min(block, most)
    for start in range(0, docs.shape[0], block):
        columns = prepare(docs[start : start + block])
        for first in range(0, queries.shape[0], batch):
            rows = slice(first, first + batch)
            scores = score(queries[rows], columns)
            best.add(rows, scores, np.arange(start, start + scores.shape[1]))
    return best.hits()


class Best:
    """The best hits of Q queries among the documents scored so far.

    In whatever order documents come, the result is the same: equal scores are ordered
    by the smaller document index, and a document with score 0 is no hit.
    """

    def __init__(self, queries: int, depth: int):
        """No hits so far; `depth` of each query will be kept."""
        self._keys = np.full((queries, depth), _NO_HIT, np.int64)

    def add(self, rows: slice, scores: np.ndarray, documents: np.ndarray) -> None:
        """Adds scores [rows, N], float32, of documents [N], or [rows, N] of each."""
        keys = np.concatenate([self._keys[rows], _keys(scores, documents)], axis=1)
        self._keys[rows] = _largest(keys, self._keys.shape[1])

    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices [Q, depth] and scores, as `search` returns them."""
        return _unpacked(np.sort(self._keys, axis=1)[:, ::-1])


def _scoring(queries, docs):
    """Functions that prepare and score a block of documents, and its largest size."""
    if isinstance(docs, Several):
        each = [_scoring(q, d) for q, d in zip(queries.parts, docs.parts, strict=True)]
        return (
            lambda block: [
                prepare(part)
                for (prepare, _, _), part in zip(each, block.parts, strict=True)
            ],
            lambda rows, prepared: sum(
                score(part, columns)
                for (_, score, _), part, columns in zip(
                    each, rows.parts, prepared, strict=True
                )
            ),
            min(most for _, _, most in each),
        )
    if isinstance(docs, TokenMatrix):
        return lambda block: block, maxsim.scores, _TOKENS_BLOCK
    if _too_dense(queries, docs):
        return (
            lambda block: block.T.toarray(),
            lambda rows, columns: rows.toarray() @ columns,
            _DENSE_BLOCK,
        )
    return (
        lambda block: block.T.tocsr(),
        lambda rows, columns: (rows @ columns).toarray(),
        docs.shape[0] or 1,
    )


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


def _keys(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(scores).view(np.int32)
    # Floats are ordered like their bits, negative ones in reverse.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    index = _INDEX_MASK - documents.astype(np.int64)
    return np.where(scores != 0, (ordered << _INDEX_BITS) | index, _NO_HIT)


def _largest(keys: np.ndarray, count: int) -> np.ndarray:
    return np.partition(keys, keys.shape[1] - count, axis=1)[:, -count:]


def _unpacked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hit = keys != _NO_HIT
    ordered = (keys >> _INDEX_BITS).astype(np.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)
    indices = _INDEX_MASK - (keys & _INDEX_MASK)
    return (
        np.where(hit, indices, -1).astype(np.int32),
        np.where(hit, scores, 0).astype(np.float32),
    )
