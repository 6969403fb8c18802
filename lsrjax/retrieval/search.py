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
from lsrjax.retrieval.best_hits import BestHits
from lsrjax.retrieval.maxsim import TokenMatrix


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
    for name, value in (("depth", depth), ("batch", batch), ("block", block)):
        if value < 1:
            raise ValueError(f"search: {name} is {value}; it has to be at least 1.")
    queries, docs = _checked(queries, "queries"), _checked(docs, "docs")
    if queries.shape[1] != docs.shape[1]:
        raise ValueError(
            f"search: queries have {queries.shape[1]} columns and docs have "
            f"{docs.shape[1]}; encode both with the same model and views."
        )
    best = BestHits(queries.shape[0], depth)
    scoring = _scoring(queries, docs)
    threads = _threads() if scoring.parallel else 1
    batch = min(batch, math.ceil(queries.shape[0] / threads) or 1)
    slices = [slice(i, i + batch) for i in range(0, queries.shape[0], batch)]
    parts = [queries[rows] for rows in slices]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, docs.shape[0], min(block, scoring.most)):
            columns = scoring.prepare(docs[start : start + min(block, scoring.most)])

            def add(rows, part, start=start, columns=columns):
                best.add(rows, scoring.score(part, columns), start)

            for _ in (pool.map if len(parts) > 1 else map)(add, slices, parts):
                pass
    return best.ranked()


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
