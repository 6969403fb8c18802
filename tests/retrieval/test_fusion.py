"""Fusion of rankings, against values computed by hand."""

import numpy as np
import pytest

from lsrjax.retrieval.fusion import rrf, weighted


def run(hits, scores):
    return np.array(hits, np.int32), np.array(scores, np.float32)


# Document 4 is first and third, 7 second and first; 2 and 9 are in one run each.
A = run([[4, 7, 2, -1]], [[9.0, 5.0, 1.0, 0.0]])
B = run([[7, 9, 4]], [[0.8, 0.6, 0.2]])


def test_reciprocal_ranks():
    hits, scores = rrf([A, B], 5)
    # 7: 1/62 + 1/61; 4: 1/61 + 1/63; 9: 1/62; 2: 1/63.
    assert hits.tolist() == [[7, 4, 9, 2, -1]]
    expected = [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63, 0]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    assert hits.dtype == np.int32 and scores.dtype == np.float32


def test_reciprocal_ranks_with_weights_and_k():
    hits, scores = rrf([A, B], 2, k=1, weights=[1, 4])
    # 7: 1/3 + 4/2; 9: 4/3; 4: 1/2 + 4/4 = 1.5.
    assert hits.tolist() == [[7, 4]]
    np.testing.assert_allclose(scores[0], [1 / 3 + 2, 1.5], rtol=1e-6)


def test_weighted_sum_of_scaled_scores():
    hits, scores = weighted([A, B], 4, weights=[1, 2])
    # Scaled: A 4: 1, 7: 1/2, 2: 0; B 7: 1, 9: 2/3, 4: 0.
    assert hits.tolist() == [[7, 9, 4, 2]]
    np.testing.assert_allclose(scores[0], [2.5, 4 / 3, 1, 0], rtol=1e-6)


def test_weighted_sum_of_scores_as_they_are():
    hits, scores = weighted([A, B], 3, normalise="none", weights=[0.5, 10])
    # 7: 2.5 + 8; 4: 4.5 + 2; 9: 6.
    assert hits.tolist() == [[7, 4, 9]]
    np.testing.assert_allclose(scores[0], [10.5, 6.5, 6], rtol=1e-6)


def test_equal_sums_are_ordered_by_number_and_equal_scores_count_fully():
    one = run([[8, 3], [5, -1]], [[2.0, 2.0], [-1.0, 0.0]])
    for fused in (rrf([one, one[::1]], 3), weighted([one], 3)):
        assert fused[0][1].tolist() == [5, -1, -1]
    hits, scores = weighted([one], 2)
    assert hits[0].tolist() == [3, 8] and scores[0].tolist() == [1, 1]
    # 8 and 3 have swapped ranks in the two runs: equal sums.
    other = run([[3, 8], [-1, -1]], [[1.0, 0.5], [0.0, 0.0]])
    assert rrf([one, other], 2)[0].tolist() == [[3, 8], [5, -1]]


def test_negative_scores_are_scores():
    one = run([[1, 0]], [[-1.0, -3.0]])
    hits, scores = weighted([one], 2, normalise="none")
    assert hits.tolist() == [[1, 0]] and scores.tolist() == [[-1, -3]]


def test_no_hits_at_all_and_no_queries():
    none = run([[-1, -1]], [[0, 0]])
    for fuse in (rrf, weighted):
        hits, scores = fuse([none, none], 2)
        assert hits.tolist() == [[-1, -1]] and scores.tolist() == [[0, 0]]
        empty = np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32)
        assert fuse([empty], 4)[0].shape == (0, 4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="needs a run"):
        rrf([], 3)
    with pytest.raises(ValueError, match="2 runs have 1 weights"):
        weighted([A, B], 3, weights=[1])
    with pytest.raises(ValueError, match="Runs of 1 and 2 queries"):
        rrf([A, run([[1], [2]], [[1], [1]])], 3)
    with pytest.raises(ValueError, match="normalise is 'max'"):
        weighted([A], 3, normalise="max")
