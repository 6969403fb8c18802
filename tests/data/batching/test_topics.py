import numpy as np
import pytest

from lsrjax.data.batching.topics import _joined, cluster, query_text, vectors
from lsrjax.data.examples import Group

# Five topics of 20 words each, and some words that every query has.
TOPIC_WORDS = np.arange(10, 110).reshape(5, 20)
COMMON = [0, 2]


def queries(count, seed=0):
    rng = np.random.default_rng(seed)
    topics = rng.integers(5, size=count)
    rows = [[0, *rng.choice(TOPIC_WORDS[t], 6).tolist(), 2] for t in topics]
    return rows, topics


def test_vectors_keep_what_queries_share():
    rows, topics = queries(300)
    made = vectors(rows, seed=1)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    cosines = made @ made.T
    same = topics[:, None] == topics
    assert cosines[same].mean() > 0.25 and abs(cosines[~same].mean()) < 0.1
    np.testing.assert_array_equal(vectors(rows, seed=1), made)
    # What all have says nothing; nor does an empty query.
    assert not vectors([COMMON, COMMON], seed=1).any()
    assert not vectors([[], [1]], seed=1)[0].any()
    # Their order in the query does not matter.
    turned = vectors([row[::-1] for row in rows], seed=1)
    np.testing.assert_allclose(turned, made, atol=1e-6)


def test_queries_on_the_same_words_come_together():
    rows, topics = queries(1000)
    labels = cluster(rows, 25, least=8, seed=2)
    sizes = np.bincount(labels)
    assert sizes.min() >= 8 and 5 <= len(sizes) <= 25
    # Of each cluster nearly all are of one topic.
    pure = sum(np.bincount(topics[labels == k]).max() for k in range(len(sizes)))
    assert pure > 950
    np.testing.assert_array_equal(cluster(rows, 25, least=8, seed=2), labels)


@pytest.mark.parametrize(
    ("count", "topics", "least", "found"),
    [(40, 5, 41, 1), (3, 10, 1, 3), (1, 1, 1, 1), (200, 1, 8, 1)],
)
def test_few_queries(count, topics, least, found):
    rows = [[t] for t in range(count)]
    labels = cluster(rows, topics, least, seed=0)
    assert labels.shape == (count,)
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    assert labels.max() + 1 <= found
    assert np.bincount(labels).min() >= min(least, count)


def test_queries_alike_are_one_topic():
    assert set(cluster([[5, 6]] * 50, 4, 8, seed=0).tolist()) == {0}


def test_the_english_query_where_there_is_one():
    def text(query):
        return query_text(Group("0", query, [], []))

    assert text({"de": "eins", "en": "one"}) == "one"
    assert text({"*": "two"}) == "two"
    assert text({"ja": "san", "de": "drei"}) == "san"


def test_a_token_counts_once_for_a_query():
    # Both are in one of two queries, however often.
    often, once = vectors([[5, 5], [7]], seed=0)
    assert np.linalg.norm(often) == pytest.approx(1)
    assert np.linalg.norm(once) == pytest.approx(1)


def test_what_has_joined_a_cluster_goes_with_it():
    labels = np.repeat([0, 1, 2], [1, 2, 10])
    # The first is nearest to the second, which with it is still too small.
    sums_KD = np.array([[1, 0.9, 0], [1, 1, 0.1], [0, 5, 5]], np.float32)
    assert _joined(labels, sums_KD, least=5).tolist() == [0] * 13
