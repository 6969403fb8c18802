"""Rocchio feedback, against values computed by hand and by dense arithmetic."""

import numpy as np
import pytest
from scipy import sparse

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.retrieval.feedback import Rocchio, rocchio

DOCUMENTS = sparse.csr_matrix(
    np.array([[3, 4, 0, 0], [0, 0, 2, 0], [0, 5, 0, 12], [1, 0, 0, 0]], np.float32)
)


def test_by_hand():
    queries = sparse.csr_matrix(np.array([[2, 0, 0, 0]], np.float32))
    hits = np.array([[0, 1, 3]], np.int32)
    how = Rocchio(documents=2, alpha=1.0, beta=0.5, terms=0)
    # |q| = 2; mean of [.6 .8 0 0] and [0 0 1 0].
    expected = 2 * np.array([1 + 0.5 * 0.3, 0.5 * 0.4, 0.5 * 0.5, 0])
    moved = rocchio(queries, DOCUMENTS, hits, how)
    np.testing.assert_allclose(moved.toarray()[0], expected, rtol=1e-6)
    assert moved.dtype == np.float32 and moved.has_sorted_indices


def test_only_the_strongest_terms_stay():
    queries = sparse.csr_matrix(np.array([[2, 0, 0, 0]], np.float32))
    hits = np.array([[0, 1, 3]], np.int32)
    moved = rocchio(queries, DOCUMENTS, hits, Rocchio(documents=2, terms=2))
    assert moved.indices.tolist() == [0, 2]


def test_of_equal_weights_the_lower_column_stays():
    queries = sparse.csr_matrix(np.array([[0, 1, 1, 1]], np.float32))
    hits = np.full((1, 3), -1, np.int32)
    moved = rocchio(queries, DOCUMENTS, hits, Rocchio(terms=2))
    assert moved.indices.tolist() == [1, 2]


def test_queries_without_hits_or_terms():
    queries = sparse.csr_matrix(np.array([[0, 3, 0, 4], [0, 0, 0, 0]], np.float32))
    hits = np.array([[-1, -1], [2, -1]], np.int32)
    moved = rocchio(queries, DOCUMENTS, hits, Rocchio(alpha=2.0)).toarray()
    np.testing.assert_allclose(moved, [[0, 6, 0, 8], [0, 0, 0, 0]], rtol=1e-6)


def test_against_dense_arithmetic():
    rng = np.random.default_rng(5)
    documents = rng.random((23, 17)) * (rng.random((23, 17)) < 0.4)
    queries = rng.random((7, 17)) * (rng.random((7, 17)) < 0.3)
    hits = np.array([rng.permutation(23)[:6] for _ in queries], np.int32)
    hits[3, 2:] = -1
    how = Rocchio(documents=4, alpha=0.7, beta=0.9, terms=0)
    moved = rocchio(
        sparse.csr_matrix(queries), sparse.csr_matrix(documents), hits, how
    ).toarray()
    for row, query in enumerate(queries):
        best = [d for d in hits[row, :4] if d >= 0]
        unit = [d / np.linalg.norm(d) for d in documents[best]]
        norm = np.linalg.norm(query)
        expected = 0.7 * query + 0.9 * norm * np.mean(unit, axis=0)
        np.testing.assert_allclose(moved[row], expected, rtol=1e-5, atol=1e-7)


def test_options_that_leave_nothing_are_refused():
    with pytest.raises(InputError, match="--feedback.alpha and beta are 0"):
        options.checked(Rocchio, {"alpha": 0.0, "beta": 0.0}, "--feedback")
