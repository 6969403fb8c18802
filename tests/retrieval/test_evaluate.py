"""Tasks built from examples, and their metrics by language and by view."""

import dataclasses
import types

import numpy as np
import pytest
from scipy import sparse

from lsrjax.data.examples import Group, InMemory, Pair
from lsrjax.errors import InputError
from lsrjax.retrieval import evaluate, rank
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import Several
from lsrjax.retrieval.task_results import PartResults
from lsrjax.retrieval.tasks import debian
from lsrjax.retrieval.tasks.task import Task


def by_language(task, found, metrics):
    part = PartResults.of(task, metrics)
    part.add("", task, found)
    return part.means("")


def by_view(task, searcher, metrics):
    ways = {name: rank.Way(views) for name, views in rank.views_of(searcher).items()}
    found = rank.rank(task, searcher, ways, 10)
    return {name: by_language(task, one, metrics) for name, one in found.items()}


def everything(language):
    return True


GROUPS = [
    Group("a", {"en": "qa", "ja": "qa-ja"}, [{"en": "A", "ja": "A-ja"}], []),
    Group("b", {"en": "qb", "de": "qb-de"}, [{"en": "B", "de": "B-de"}], []),
    # The English text of another document, and a query in all languages.
    Group(
        "c",
        {"en": "qc", "de": "qc-de", "ja": "qc-ja"},
        [{"en": "A", "de": "C-de", "ja": "A-ja"}],
        [],
    ),
]
LANGUAGES = ["en", "de", "ja"]


def test_pairs_look_for_their_english_text():
    pairs = [
        Pair("1", "house", "Haus", "de"),
        Pair("2", "book", "Buch", "de"),
        Pair("3", "house", "casa", "es"),
        Pair("4", "home", "Haus", "de"),
        Pair("5", "bookkeeping", "Buch", "da"),
    ]
    task = evaluate.dev_task(InMemory(pairs), 10, everything)
    assert list(task.queries) == ["Haus", "Buch", "casa", "Buch"]
    assert list(task.languages) == ["de", "de", "es", "da"]
    assert task.corpus == ["house", "book", "home", "bookkeeping"]
    assert list(task.relevant) == [{0: 1, 2: 1}, {1: 1}, {0: 1}, {3: 1}]


def test_groups_look_for_their_positives_among_all_documents():
    groups = [
        Group(
            "a", {"en": "q", "ja": "q-ja"}, [{"en": "P"}, {"en": "P2"}], [{"*": "N"}]
        ),
        Group("b", {"de": "r"}, [{"de": "nur deutsch"}], [{"en": "P", "ja": "x"}]),
        Group("c", {"en": "q"}, [{"en": "Q"}], []),  # another row of the first query
    ]
    task = evaluate.dev_task(InMemory(groups), 10, lambda language: language != "ja")
    assert list(task.queries) == ["q", "r"] and list(task.languages) == ["en", "de"]
    assert task.corpus == ["P", "P2", "N", "nur deutsch", "Q"]
    assert list(task.relevant) == [{0: 1, 1: 1, 4: 1}, {3: 1}]


def test_a_limit_takes_queries_from_all_over():
    groups = [Group(str(i), {"en": f"q{i}"}, [{"en": f"d{i}"}], []) for i in range(11)]
    task = evaluate.dev_task(InMemory(groups), 3, everything)
    assert list(task.queries) == ["q0", "q5", "q10"]
    assert list(task.relevant) == [{0: 1}, {5: 1}, {10: 1}]
    assert len(task.corpus) == 11


def test_no_query_in_the_languages_asked_is_an_error():
    with pytest.raises(InputError, match=r"config\.data\.query_languages"):
        evaluate.dev_task(InMemory(GROUPS), 10, lambda language: language == "ko")


def test_cross_lingual_queries_search_english_and_equal_texts_count_once():
    task = debian.cross_lingual(GROUPS, LANGUAGES)
    assert task.corpus == ["A", "B"]
    found = list(zip(task.queries, task.languages, task.relevant, strict=True))
    assert found == [
        ("qa", "en", 0),
        ("qb", "en", 1),
        ("qc", "en", 0),
        ("qb-de", "de", 1),
        ("qc-de", "de", 0),
        ("qa-ja", "ja", 0),
        ("qc-ja", "ja", 0),
    ]


def test_multilingual_documents_are_each_in_one_of_their_languages():
    seen = set()
    for seed in range(20):
        task = debian.multilingual(GROUPS, LANGUAGES, seed)
        again = debian.multilingual(GROUPS, LANGUAGES, seed)
        assert again == task
        relevant = dict(zip(task.queries, task.relevant, strict=True))
        a, b, c = (task.corpus[relevant[q]] for q in ("qa", "qb", "qc"))
        assert a in ("A", "A-ja") and b in ("B", "B-de")
        assert c in ("A", "C-de", "A-ja")
        assert len(task.corpus) == len({a, b, c})
        assert relevant["qc"] == relevant["qc-de"] == relevant["qc-ja"]
        seen |= {("a", a), ("b", b), ("c", c)}
    assert len(seen) == 7  # every language is drawn
    english = debian.multilingual(GROUPS, ["en"], 0)
    assert english == debian.cross_lingual(GROUPS, ["en"])


def hits(*rows):
    return np.array([row + [-1] * (10 - len(row)) for row in rows], np.int32)


def test_metrics_are_means_over_the_queries_of_a_language():
    task = Task(list("abcd"), ["en", "ja", "en", "ja"], list("xyz"), [0, 1, 2, 0])
    ranked = hits([0, 1], [2, 0, 1], [1, 2], [])
    found = by_language(
        task, rank.Ranking(ranked, np.zeros(ranked.shape)), ("nDCG@10", "R@2")
    )
    assert list(found) == ["en", "ja"]
    # Ranks 1 and 2 in English; rank 3 and none in Japanese.
    np.testing.assert_allclose(found["en"]["nDCG@10"], (1 + 1 / np.log2(3)) / 2)
    np.testing.assert_allclose(found["ja"]["nDCG@10"], (1 / np.log2(4) + 0) / 2)
    assert found["en"]["R@2"] == 1.0 and found["ja"]["R@2"] == 0.0


class Model:
    """A searcher of fixed vectors; its two views know different things."""

    VIEWS = {"pivot": 3, "source": 4}
    TEXTS = {
        "q1": ([1, 0, 0], [0, 0, 0, 0]),
        "q2": ([0, 0, 0], [0, 1, 2, 0]),
        "d1": ([2, 1, 0], [0, 0, 0, 0]),
        "d2": ([3, 0, 0], [0, 5, 0, 0]),
    }

    def __init__(self, views=("pivot", "source")):
        sizes = {view: self.VIEWS[view] for view in views}
        self.encoder = types.SimpleNamespace(spec=types.SimpleNamespace(views=sizes))

    def queries(self, texts, languages=None):
        columns = dict(zip(self.VIEWS, (0, 1), strict=True))
        return {
            view: sparse.csr_matrix(
                np.array(
                    [self.TEXTS[text][columns[view]] for text in texts], np.float32
                )
            )
            for view in self.encoder.spec.views
        }

    documents = queries


TASK = Task(["q1", "q2"], ["en", "ja"], ["d1", "d2"], [0, 1])


def test_views_are_evaluated_together_and_each_alone():
    found = by_view(TASK, Model(), ("nDCG@10", "R@1"))
    assert list(found) == ["", "pivot", "source"]
    second = 1 / np.log2(3)
    expected = {
        # Three postings of pivot terms take more than three numbers of each vector.
        "": {"en": (second, 0, 1, 2, 9), "ja": (1, 1, 2, 2, 9)},
        "pivot": {"en": (second, 0, 1, 1.5, 6), "ja": (0, 0, 0, 1.5, 6)},
        "source": {"en": (0, 0, 0, 0.5, 3), "ja": (1, 1, 2, 0.5, 3)},
    }
    names = ("nDCG@10", "R@1", "query_terms", "document_terms", "index_bytes")
    for view, languages in expected.items():
        for language, values in languages.items():
            assert list(found[view][language]) == list(names)
            np.testing.assert_allclose(list(found[view][language].values()), values)


def test_terms_of_a_text_are_weights_that_are_not_zero():
    weights = sparse.csr_matrix(np.float32([[1, 0, 2], [0, 0, 0], [3, 4, 5]]))
    weights.data[0] = 0  # stored, but zero
    assert rank.text_terms(weights).tolist() == [1, 0, 3]
    tokens = TokenMatrix(np.ones((9, 4), np.float32), np.array([0, 2, 2, 9]))
    several = rank.text_terms(Several([weights, tokens]))
    assert several.tolist() == [3, 0, 10]


def test_index_bytes_of_embeddings_and_of_their_tokens():
    dense = sparse.csr_matrix(np.ones((3, 8), np.float32))
    assert rank.index_bytes(dense) == 16
    one_term = sparse.csr_matrix(np.eye(3, 100, dtype=np.float32))
    assert rank.index_bytes(one_term) == 6
    tokens = TokenMatrix(np.ones((9, 4), np.float32), np.array([0, 2, 2, 9]))
    assert rank.index_bytes(tokens) == 3 * 4 * 2


def test_a_single_view_is_evaluated_once():
    found = by_view(TASK, Model(("pivot",)), ("R@1",))
    assert list(found) == [""]


def test_dev_metric_is_the_mean_over_queries_with_all_views():
    found = evaluate.dev_metric([TASK], Model(), "RR@10")
    mean = pytest.approx((1 / 2 + 1) / 2)
    assert found == {"RR@10": mean, "RR@10/en": 0.5, "RR@10/ja": 1.0}
    # A single language is no other number.
    assert evaluate.dev_metric([TASK.only([0])], Model(), "RR@10") == {"RR@10": 0.5}


def test_dev_metric_over_languages_is_their_mean_or_the_worst():
    names = {"name": "toy", "apart": ("ja",)}
    found = {
        over: evaluate.dev_metric([TASK], Model(), "RR@10", over)["RR@10"]
        for over in ("queries", "mean", "worst")
    }
    assert found == {"queries": 0.75, "mean": 0.75, "worst": 0.5}
    # A language that is apart from the mean is none of the worst either.
    task = dataclasses.replace(TASK, **names)
    assert evaluate.dev_metric([task], Model(), "RR@10", "worst")["RR@10"] == 0.5
    three = Task(["q1", "q1", "q2"], ["en", "en", "ja"], ["d1", "d2"], [0, 0, 1])
    found = [
        evaluate.dev_metric([three], Model(), "RR@10", over)["RR@10"]
        for over in ("queries", "mean", "worst")
    ]
    assert found == [pytest.approx(2 / 3), 0.75, 0.5]
    # Parts of one language are columns of their own.
    first = dataclasses.replace(TASK.only([0]), name="a/x", query_ids=("1",))
    second = dataclasses.replace(first, name="a/y", relevant=[1])
    worst = evaluate.dev_metric([first, second], Model(), "RR@10", "worst")
    assert worst == {"RR@10": 0.5, "RR@10/x": 0.5, "RR@10/y": 1.0}


def test_bm25_finds_words_that_texts_share():
    task = Task(["red", "zzz"], ["en", "ja"], ["blue red", "green"], [0, 1])
    found = by_language(task, rank.bm25(task, 10), ("R@10",))
    assert found == {"en": {"R@10": 1.0}, "ja": {"R@10": 0.0}}
