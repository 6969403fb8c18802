"""Pseudo-relevance feedback: queries learn terms from the documents they found."""

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax import options
from lsrjax.options import option
from lsrjax.retrieval.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class Rocchio(options.Options):
    """Options of `rocchio`."""

    documents: int = option(5, "best documents of each query that count", low=1)
    alpha: float = option(1.0, "weight of the query", low=0)
    beta: float = option(0.5, "weight of the documents' mean", low=0)
    terms: int = option(128, "terms that a query keeps, 0: all", low=0)

    def problem(self) -> str | None:
        """A complaint about weights that leave nothing."""
        if self.alpha == self.beta == 0:
            return "alpha and beta are 0, so that no query has a term; set one."
        return None


def rocchio(
    queries: sparse.csr_matrix, documents: Any, hits: np.ndarray, how: Rocchio
) -> sparse.csr_matrix:
    """Moves sparse queries towards the documents that they found.

    |q| (alpha q / |q| + beta mean(d / |d|)) over the query's best documents, with the
    Euclidean norm, of which the largest weights are kept; Rocchio 1971, without
    documents that are not relevant, and with vectors of length 1, as in Anserini. The
    factor |q| keeps the size of scores. A query without hits only has the factor alpha;
    a query without terms stays empty.

    Args:
      queries: [Q, V] weights.
      documents: [N, V] weights; anything that gives the CSR matrix of some rows,
        `documents[rows]`.
      hits: [Q, depth] rows of documents, best first, -1 for no hit.

    Returns:
      [Q, V] float32 with sorted indices.
    """
    best = hits[:, : how.documents]
    asked, ranks = np.nonzero(best >= 0)
    rows, place = np.unique(best[asked, ranks], return_inverse=True)
    found = _unit(sparse.csr_matrix(documents[rows]))[0]
    counts = np.bincount(asked, minlength=len(best))
    shares = 1.0 / np.maximum(counts, 1)[asked]
    means = sparse.csr_matrix(
        (shares, (asked, place.ravel())), shape=(len(best), len(rows))
    )
    own, norms = _unit(queries)
    moved = how.alpha * own + how.beta * (means @ found)
    moved = sparse.csr_matrix(sparse.diags_array(norms) @ moved)
    return Pruning("top", how.terms or queries.shape[1]).apply(moved)


def _unit(matrix: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The rows with length 1, in float64, and their lengths."""
    matrix = matrix.astype(np.float64)
    norms = np.sqrt(matrix.multiply(matrix).sum(axis=1)).A1
    scales = 1.0 / np.where(norms > 0, norms, 1.0)
    return sparse.csr_matrix(sparse.diags_array(scales) @ matrix), norms
