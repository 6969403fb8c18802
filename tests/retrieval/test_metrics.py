import math

import numpy as np
import pytest

from lsrjax.retrieval.metrics import evaluate, per_query, required_depth

HITS = np.array(
    [
        [4, 2, 7, 1, 9],  # relevant 7 at rank 3
        [3, -1, -1, -1, -1],  # relevant 3 at rank 1
        [-1, -1, -1, -1, -1],  # nothing found
        [5, 6, 8, 0, -1],  # relevant 1 not found
        [10, 9, 2, 11, 3],  # relevant 9, 3 found at ranks 2 and 5, 1 not found
    ]
)
RELEVANT = [7, 3, 4, 1, {9, 3, 1}]


def ndcg(ranks, relevant, cutoff):
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= cutoff)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(relevant, cutoff) + 1))
    return gain / ideal


def as_sets(relevant):
    return [docs if isinstance(docs, set) else {docs} for docs in relevant]


def test_values_match_a_computation_by_hand():
    found = per_query(HITS, RELEVANT, ("nDCG@5", "R@4", "RR@5"))
    np.testing.assert_allclose(
        found["nDCG@5"], [0.5, 1, 0, 0, ndcg([2, 5], 3, 5)], rtol=1e-12
    )
    np.testing.assert_allclose(found["R@4"], [1, 1, 0, 0, 1 / 3], rtol=1e-12)
    np.testing.assert_allclose(found["RR@5"], [1 / 3, 1, 0, 0, 1 / 2], rtol=1e-12)
    assert list(found) == ["nDCG@5", "R@4", "RR@5"]


def test_random_rankings_match_a_computation_by_hand():
    rng = np.random.default_rng(0)
    hits = np.stack([rng.permutation(300)[:100] for _ in range(47)])
    relevant = [set(rng.permutation(300)[: 1 + i % 5].tolist()) for i in range(47)]
    expected = {"nDCG@10": [], "R@100": []}
    for row, docs in zip(hits.tolist(), relevant, strict=True):
        ranks = [rank for rank, doc in enumerate(row, 1) if doc in docs]
        expected["nDCG@10"].append(ndcg(ranks, len(docs), 10))
        expected["R@100"].append(len(ranks) / len(docs))
    found = evaluate(hits, relevant)
    assert found == pytest.approx({k: np.mean(v) for k, v in expected.items()})


def test_queries_without_hits_count_in_the_mean():
    # 1/2 + 1 + 0 + 0 over the first four queries, not over the three with hits.
    assert evaluate(HITS[:4], RELEVANT[:4], ("nDCG@5",)) == pytest.approx(
        {"nDCG@5": 1.5 / 4}
    )
    nothing = np.full((3, 5), -1)
    assert evaluate(nothing, [0, 1, 2], ("nDCG@5", "RR@5")) == {"nDCG@5": 0, "RR@5": 0}


def test_order_of_hits_decides_whatever_the_documents_are_called():
    for doc in (0, 9, 10, 99, 100):
        others = [d for d in (1, 5, 12, 98, 101) if d != doc]
        hits = np.array([[others[0], doc, *others[1:4]]])
        assert evaluate(hits, [doc], ("RR@5",)) == {"RR@5": 0.5}


def test_two_names_of_one_measure_give_one_value():
    found = evaluate(HITS, RELEVANT, ("RR@5", "MRR@5"))
    assert found["RR@5"] == found["MRR@5"] > 0


def test_single_documents_and_collections_are_the_same():
    assert evaluate(HITS, RELEVANT, ("R@5",)) == evaluate(
        HITS, [sorted(docs) for docs in as_sets(RELEVANT)], ("R@5",)
    )
    numbers = np.array([7, 3, 4, 1])
    assert evaluate(HITS[:4], numbers, ("R@5",)) == {"R@5": 0.5}


@pytest.mark.parametrize(
    "name",
    ["nonsense@3", "nDCG@", "R", "nDCG@x", "R@0", "R@-1", "R@1048577", "P(rel=0)@5"],
)
def test_unknown_metrics_name_the_known_ones(name):
    with pytest.raises(ValueError, match=r"cannot compute .* nDCG"):
        evaluate(HITS, RELEVANT, (name,))


def test_a_misspelled_metric_is_said_to_be_another():
    with pytest.raises(ValueError, match=r"Did you mean nDCG@10\?"):
        evaluate(HITS, RELEVANT, ("nDGC@10",))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="search with depth=100"):
        evaluate(HITS, RELEVANT, ("nDCG@5", "R@100"))
    with pytest.raises(ValueError, match="query 1 has no relevant"):
        evaluate(HITS[:2], [7, []], ("R@5",))
    with pytest.raises(ValueError, match="query 0 is -1"):
        evaluate(HITS[:1], [-1], ("R@5",))
    with pytest.raises(ValueError, match=r"do not fit 2 queries"):
        evaluate(HITS, [1, 2], ("R@5",))
    with pytest.raises(ValueError, match="no queries"):
        evaluate(HITS[:0], [], ("R@5",))
    with pytest.raises(ValueError, match="query 1 holds document 8 more than once"):
        evaluate(np.array([[-1, -1, 1], [8, 2, 8]]), [1, 2], ("R@3",))


def test_required_depth_is_the_largest_cutoff():
    assert required_depth(("nDCG@10", "R@100", "RR@5")) == 100
    assert required_depth(("RR@1",)) == 1
    # Of the whole ranking, TREC keeps 1,000.
    assert required_depth(("nDCG@10", "AP")) == 1000
    # Hits without a judgement take no rank.
    assert required_depth(("nDCG(judged_only=True)@10",)) == 1000
