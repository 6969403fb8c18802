"""Late interaction over texts of any length, against sums made token by token."""

import numpy as np
import pytest
from scipy import sparse

from lsrjax.retrieval import maxsim
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import Several, search

D = 5


def texts(count, seed):
    """Token embeddings of texts of 0 to 6 tokens; the first has none."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 7, count)
    lengths[0] = 0
    return [rng.normal(size=(n, D)).astype(np.float32) for n in lengths]


def matrix(texts):
    longest = max(map(len, texts))
    tokens = np.full((len(texts), longest, D), np.nan, np.float32)
    mask = np.zeros((len(texts), longest), bool)
    for row, text in enumerate(texts):
        # Where a mask has holes, too.
        places = np.sort(np.random.default_rng(row).permutation(longest)[: len(text)])
        tokens[row, places], mask[row, places] = text, True
    return TokenMatrix.of(tokens, mask)


def each_pair(queries, documents):
    return np.array(
        [
            [
                sum(max(a @ b for b in d) for a in q) if len(d) and len(q) else 0.0
                for d in documents
            ]
            for q in queries
        ]
    )


def test_scores_are_sums_of_the_best_matches():
    queries, documents = texts(9, 0), texts(11, 1)
    found = maxsim.scores(matrix(queries), matrix(documents))
    np.testing.assert_allclose(found, each_pair(queries, documents), atol=1e-5)


def test_texts_are_chosen_and_stacked():
    made = texts(11, 2)
    whole = matrix(made)
    assert whole.shape == (11, D) and len(whole) == 11
    for chosen in (slice(3, 8), np.array([7, 0, 7, 2]), slice(0, 0)):
        part = whole[chosen]
        expected = [made[i] for i in np.arange(11)[chosen]]
        assert len(part) == len(expected)
        for row, text in enumerate(expected):
            rows = part.tokens_TD[part.starts[row] : part.starts[row + 1]]
            np.testing.assert_array_equal(rows, text)
    again = maxsim.stacked([whole[:4], whole[4:5], whole[5:]])
    np.testing.assert_array_equal(again.tokens_TD, whole.tokens_TD)
    np.testing.assert_array_equal(again.starts, whole.starts)
    assert whole.mean_tokens == pytest.approx(sum(map(len, made)) / 11)


@pytest.mark.parametrize(("batch", "block"), [(128, 32_768), (2, 3)])
def test_search_finds_the_best(batch, block):
    queries, documents = texts(6, 3), texts(40, 4)
    wanted = each_pair(queries, documents)
    found, scores = search(
        matrix(queries), matrix(documents), 5, batch=batch, block=block
    )
    for row, hits in enumerate(found):
        best = np.argsort(-wanted[row], kind="stable")[:5]
        if len(queries[row]):
            assert hits.tolist() == best.tolist()
            np.testing.assert_allclose(scores[row], wanted[row][best], atol=1e-5)
        else:
            assert (hits == -1).all()


def test_scores_of_several_representations_add_up():
    queries, documents = texts(6, 3), texts(40, 4)
    rng = np.random.default_rng(5)
    q, d = (
        sparse.csr_matrix(
            (rng.random((n, 9)) * (rng.random((n, 9)) < 0.3)).astype("f4")
        )
        for n in (6, 40)
    )
    wanted = each_pair(queries, documents) + 2 * (q @ d.T).toarray()
    several = Several([2 * q, matrix(queries)]), Several([d, matrix(documents)])
    hits, scores = search(*several, 5, batch=4, block=7)
    for row in range(6):
        best = np.argsort(-wanted[row], kind="stable")[:5]
        np.testing.assert_allclose(scores[row], wanted[row][best], atol=1e-5)
        assert hits[row].tolist() == best.tolist()
