import numpy as np
import pytest
from scipy import sparse

from lsrjax.retrieval import search as searching
from lsrjax.retrieval.search import search

QUERIES, DOCS, VOCABULARY = 23, 61, 37


def random_csr(rows, seed, *, whole=False, density=0.2):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 4, (rows, VOCABULARY)).astype(np.float32)
    if not whole:
        dense *= rng.random(dense.shape, dtype=np.float32)
    return sparse.csr_matrix(dense * (rng.random(dense.shape) < density))


def brute_force(queries, docs, depth):
    products = queries.toarray().astype(np.float64) @ docs.toarray().T
    indices = np.full((len(products), depth), -1)
    scores = np.zeros((len(products), depth))
    for i, row in enumerate(products):
        ranked = sorted(np.flatnonzero(row), key=lambda doc: (-row[doc], doc))[:depth]
        indices[i, : len(ranked)] = ranked
        scores[i, : len(ranked)] = row[ranked]
    return indices, scores


@pytest.mark.parametrize("depth", [1, 7, DOCS, DOCS + 13])
def test_whole_weights_with_many_ties_match_brute_force(depth):
    queries, docs = random_csr(QUERIES, 1, whole=True), random_csr(DOCS, 2, whole=True)
    indices, scores = search(queries, docs, depth)
    expected_indices, expected_scores = brute_force(queries, docs, depth)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)
    assert indices.dtype == np.int32
    assert scores.dtype == np.float32


def test_real_weights_match_brute_force():
    queries, docs = random_csr(QUERIES, 3), random_csr(DOCS, 4)
    indices, scores = search(queries, docs, 11)
    expected_indices, expected_scores = brute_force(queries, docs, 11)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)


def test_negative_scores_rank_below_positive_ones():
    queries, docs = random_csr(QUERIES, 3, whole=True), random_csr(DOCS, 4, whole=True)
    docs.data[::2] *= -1
    indices, scores = search(queries, docs, DOCS)
    expected_indices, expected_scores = brute_force(queries, docs, DOCS)
    assert expected_scores.min() < 0 < expected_scores.max()
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize(("batch", "block"), [(1, 1), (5, 7), (23, 61), (100, 3)])
def test_blocks_do_not_change_a_bit(batch, block):
    queries, docs = random_csr(QUERIES, 5), random_csr(DOCS, 6)
    expected = search(queries, docs, 9)
    for found, wanted in zip(
        search(queries, docs, 9, batch=batch, block=block), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.6])
def test_making_terms_dense_does_not_change_a_bit(density, monkeypatch):
    queries, docs = random_csr(QUERIES, 9), random_csr(DOCS, 10, density=density)
    found = search(queries, docs, 9, batch=4, block=11)
    monkeypatch.setattr(searching, "_MOST_CELLS", 0)
    for one, plain in zip(found, search(queries, docs, 9), strict=True):
        np.testing.assert_array_equal(one, plain)
    products = (queries @ docs.T).toarray()
    rows, places = np.nonzero(found[0] >= 0)
    at = products[rows, found[0][rows, places]]
    np.testing.assert_array_equal(found[1][rows, places], at)


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_many_blocks_with_late_best_hits_and_ties(depth):
    # Scores rise and repeat, so that each block displaces what the ones before found.
    values = np.repeat(np.arange(1, 1001), 3).astype(np.float32)
    values[::7], values[::5] = 0, -1
    docs = sparse.csr_matrix(values[:, None])
    queries = sparse.csr_matrix(np.float32([[1], [0], [2]] * 5))
    indices, scores = search(queries, docs, depth, batch=2, block=64)
    expected_indices, expected_scores = brute_force(queries, docs, depth)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


def test_order_of_stored_weights_does_not_change_a_bit():
    queries, docs = random_csr(QUERIES, 7, density=0.9), random_csr(DOCS, 8)
    shuffled = queries.copy()
    for start, end in zip(queries.indptr, queries.indptr[1:], strict=False):
        shuffled.indices[start:end] = queries.indices[start:end][::-1]
        shuffled.data[start:end] = queries.data[start:end][::-1]
    shuffled.has_sorted_indices = False
    for found, wanted in zip(
        search(shuffled, docs, 9), search(queries, docs, 9), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_equal_documents_come_in_the_order_of_the_corpus():
    docs = sparse.csr_matrix(np.tile(np.float32([[0.1, 0.7, 0.3]]), (50, 1)))
    indices, _ = search(docs[:1], docs, 20, block=7)
    np.testing.assert_array_equal(indices[0], np.arange(20))


def test_nothing_in_common_gives_no_hits():
    queries = sparse.csr_matrix(np.float32([[0, 0], [1, 0], [0, 2]]))
    docs = sparse.csr_matrix(np.float32([[0, 3], [0, 0]]))
    indices, scores = search(queries, docs, 2)
    np.testing.assert_array_equal(indices, [[-1, -1], [-1, -1], [0, -1]])
    np.testing.assert_array_equal(scores, [[0, 0], [0, 0], [6, 0]])


def test_an_empty_corpus_gives_no_hits():
    indices, scores = search(random_csr(3, 0), random_csr(0, 0), 2)
    np.testing.assert_array_equal(indices, np.full((3, 2), -1))
    np.testing.assert_array_equal(scores, np.zeros((3, 2)))


def test_errors_name_what_is_wrong():
    queries, docs = random_csr(QUERIES, 1), random_csr(DOCS, 2)
    with pytest.raises(ValueError, match="depth is 0"):
        search(queries, docs, 0)
    with pytest.raises(ValueError, match=f"{VOCABULARY} columns and docs have 30"):
        search(queries, docs[:, :30], 5)
    docs.data[docs.indptr[17]] = np.nan
    with pytest.raises(ValueError, match="row 17 of docs"):
        search(queries, docs, 5)
