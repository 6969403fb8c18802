import numpy as np
import pytest

from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.mine_negatives import mine

COLOURS = ["red", "green", "blue", "grey", "black"]
CORPUS = [
    f"{colour} {thing} number {i}"
    for i, (colour, thing) in enumerate(
        (colour, thing)
        for thing in ("car", "house", "boat", "tree")
        for colour in COLOURS
    )
]
QUERIES = ["red car", "blue house", "boat", "black tree"]
POSITIVES = [0, 7, 11, 19]


def test_negatives_are_hits_but_not_the_positive():
    negatives = mine(QUERIES, CORPUS, POSITIVES, depth=6, count=4, seed=3)
    hits, _ = BM25(CORPUS).search(QUERIES, 6)
    assert negatives.shape == (4, 4)
    assert negatives.dtype == np.int32
    for row, found, positive in zip(negatives, hits, POSITIVES, strict=True):
        assert len(set(row.tolist())) == 4
        # "boat" has five hits, so all four of its others are drawn.
        assert set(row.tolist()) <= set(found.tolist()) - {positive}


def test_draws_depend_on_seed_and_position_only():
    first = mine(QUERIES, CORPUS, POSITIVES, depth=9, count=3, seed=3)
    np.testing.assert_array_equal(
        first, mine(QUERIES, CORPUS, POSITIVES, depth=9, count=3, seed=3)
    )
    np.testing.assert_array_equal(
        first[:2], mine(QUERIES[:2], CORPUS, POSITIVES[:2], depth=9, count=3, seed=3)
    )
    assert (first != mine(QUERIES, CORPUS, POSITIVES, depth=9, count=3, seed=4)).any()
    same = mine(["red car"] * 5, CORPUS, [0] * 5, depth=9, count=3, seed=3)
    assert len({tuple(row) for row in same.tolist()}) > 1


def test_draws_are_not_only_the_best_hits():
    rows = mine(["red car"] * 40, CORPUS, [0] * 40, depth=8, count=2, seed=0)
    hits, _ = BM25(CORPUS).search(["red car"], 8)
    assert set(rows.ravel().tolist()) == set(hits[0].tolist()) - {0}


def test_groups_texts_and_excluded_documents_are_never_drawn():
    corpus = [*CORPUS, CORPUS[0]]  # the last one repeats the positive's text
    groups = [i % 5 for i in range(len(corpus))]  # 5, 10, 15 and 20 share that of 0
    for seed in range(5):
        (row,) = mine(
            ["red car"],
            corpus,
            [0],
            depth=4,
            count=14,
            groups=np.array(groups),
            exclude=[{1, 3}],
            seed=seed,
        )
        assert set(row.tolist()) == set(range(21)) - {0, 5, 10, 15, 20, 1, 3}
        (row,) = mine(["red car"], corpus, [0], depth=3, count=19, seed=seed)
        assert set(row.tolist()) == set(range(1, 20))


def test_random_documents_fill_up_after_the_hits():
    (row,) = mine(["boat"], CORPUS, [11], depth=100, count=10, seed=1)
    assert set(row[:4].tolist()) == {10, 12, 13, 14}
    assert len(set(row.tolist()) - {11}) == 10
    (again,) = mine(["boat"], CORPUS, [11], depth=100, count=10, seed=1)
    np.testing.assert_array_equal(row, again)
    assert mine(["zzz"], CORPUS, [2], count=5, seed=1).shape == (1, 5)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="query 0 needs 20 .* only 19 of the 20"):
        mine(["boat"], CORPUS, [11], count=20, seed=0)
    with pytest.raises(ValueError, match="positives has 1 entries, expected 4"):
        mine(QUERIES, CORPUS, [0], seed=0)
    with pytest.raises(ValueError, match="groups has 2 entries, expected 20"):
        mine(QUERIES, CORPUS, POSITIVES, groups=[0, 1], seed=0)
    with pytest.raises(ValueError, match="exclude has 1 entries, expected 4"):
        mine(QUERIES, CORPUS, POSITIVES, exclude=[{1}], seed=0)
    with pytest.raises(ValueError, match="query 0 is document 20"):
        mine(["boat"], CORPUS, [20], seed=0)
