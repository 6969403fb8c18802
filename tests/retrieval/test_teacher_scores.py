"""Negatives and teacher scores of a source of groups."""

import types

import numpy as np
import pytest
from scipy import sparse

from lsrjax.data.examples import Group, InMemory
from lsrjax.errors import InputError
from lsrjax.retrieval.bm25 import BM25, words_and_ngrams
from lsrjax.retrieval.mine_negatives import by_model
from lsrjax.retrieval.teacher_scores import (
    Ensemble,
    Lexical,
    corpus_of,
    languages_of,
    prepare,
    score,
)

MINED = types.SimpleNamespace(depth=10, count=2)
WORDS = "free software reads old books and paints red houses".split()


class Teacher:
    """Counts words; twice as heavy in the second view, and documents weigh thirds."""

    def _views(self, texts, factor):
        counts = [[text.split().count(word) for word in WORDS] for text in texts]
        matrix = sparse.csr_matrix(np.array(counts, np.float32) * factor)
        return {"pivot": matrix, "source": 2 * matrix[:, :3]}

    def queries(self, texts):
        return self._views(texts, 1.0)

    def documents(self, texts):
        return self._views(texts, 1 / 3)


def dot(query, document):
    counts = [query.split().count(w) * document.split().count(w) for w in WORDS]
    return (sum(counts) + 4 * sum(counts[:3])) / 3


def group(name, query, positives, negatives=(), language="en"):
    return Group(
        name,
        {language: query},
        [{language: text} for text in positives],
        [{language: text} for text in negatives],
    )


@pytest.fixture
def source():
    return InMemory(
        [
            group("a", "free books", ["free old books"], ["red houses", "old houses"]),
            group("b", "red houses", ["red houses", "red red houses"], []),
            # Files do not say which language a text is in.
            group("c", "software", ["free software"], ["free old books"], "*"),
        ]
    )


CORPUS = "free old books|red houses|old houses|red red houses|free software".split("|")


def test_corpus_holds_each_english_wording_once(source):
    corpus, positives = corpus_of(source)
    assert [next(iter(text.values())) for text in corpus] == CORPUS
    assert positives.tolist() == [0, 1, 4]
    same = [group("x", "q", ["t"]), group("y", "q", ["t"])]
    same[1].positives[0]["ja"] = "…"
    assert corpus_of(InMemory(same)) == ([{"en": "t"}], pytest.approx(np.zeros(2)))


def test_a_miner_may_encode_each_wording_in_its_language():
    both = {"de": "bücher", "en": "books"}
    groups = [
        Group("a", both, [{"sw": "vitabu"}], [both]),
        group("b", "red", ["house"], language="*"),
    ]
    source = InMemory(groups)
    corpus, _ = corpus_of(source)
    languages = languages_of(source, corpus)
    assert languages == {"books": "en", "vitabu": "sw", "red": "*", "house": "*"}
    seen = []

    class Miner(Teacher):
        def queries(self, texts, languages):
            seen.append((texts, languages))
            return super().queries(texts)

        def documents(self, texts, languages):
            seen.append((texts, languages))
            return super().documents(texts)

    by_model(Miner(), languages=languages)(["books", "red"], ["vitabu", "books"], 1)
    assert seen == [
        (["books", "red"], ["en", "*"]),
        (["vitabu", "books"], ["sw", "en"]),
    ]


def test_given_negatives_are_padded_with_minus_one(source):
    made = prepare(source, *corpus_of(source), mined=None, teacher=None, seed=0)
    assert made["negatives"].tolist() == [[1, 2], [-1, -1], [0, -1]]
    assert made["negatives"].dtype == np.int32
    assert made["scores"].shape == (3, 3) and np.isnan(made["scores"]).all()


def test_scores_are_the_teachers_dot_products(source):
    made = prepare(source, *corpus_of(source), mined=None, teacher=Teacher(), seed=0)
    queries = ["free books", "red houses", "software"]
    documents = [[0, 1, 2], [1, -1, -1], [4, 0, -1]]
    for query, row, scores in zip(queries, documents, made["scores"], strict=True):
        for place, value in zip(row, scores, strict=True):
            if place < 0:
                assert np.isnan(value)
            else:
                np.testing.assert_allclose(value, dot(query, CORPUS[place]), rtol=1e-6)
    assert made["scores"].dtype == np.float32
    assert made["scores"][2, 1] == 0.0  # no word in common


@pytest.mark.parametrize("normalization", ["none", "zscore", "minmax"])
def test_an_ensemble_averages_its_normalized_scores(source, normalization):
    members, weights = (
        [Teacher(), Lexical(words_and_ngrams), Teacher()],
        [1.0, 0.5, 2.0],
    )
    teacher = Ensemble(members, weights, normalization)
    both = corpus_of(source)
    found = prepare(source, *both, mined=None, teacher=teacher, seed=0)["scores"]
    queries = ["free books", "red houses", "software"]
    bm25 = BM25(CORPUS, terms=words_and_ngrams)
    lexical = (bm25.queries(queries) @ bm25.documents.T).toarray()
    for row, places in enumerate([[0, 1, 2], [1], [4, 0]]):
        own = np.array([dot(queries[row], CORPUS[place]) for place in places])
        expected = np.zeros(len(places))
        for weight, values in ((3.0, own), (0.5, lexical[row, places])):
            if normalization == "zscore":
                values = values - values.mean()
                values /= values.std() or 1
            if normalization == "minmax":
                values = values - values.min()
                values /= values.max() or 1
            expected += weight * values / 3.5
        np.testing.assert_allclose(
            found[row, : len(places)], expected, rtol=1e-5, atol=1e-7
        )
        assert np.isnan(found[row, len(places) :]).all()
    assert found.dtype == np.float32 and np.ptp(found[0]) > 0


def test_every_document_of_a_query_can_be_scored():
    grid = np.tile(np.arange(len(CORPUS)), (2, 1))
    found = score(Teacher(), ["old red houses", "free free"], CORPUS, grid)
    expected = [[dot(q, d) for d in CORPUS] for q in ("old red houses", "free free")]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mined_negatives_are_never_a_positive_of_the_query(source):
    corpus, positives = corpus_of(source)
    for seed in range(5):
        made = prepare(
            source, corpus, positives, mined=MINED, teacher=Teacher(), seed=seed
        )
        assert made["negatives"].shape == (3, 2)
        assert not {1, 3} & set(made["negatives"][1].tolist())
        # "red houses" finds "old houses", the one hit that is no positive.
        assert made["negatives"][1, 0] == 2
        assert np.isfinite(made["scores"]).all()


def test_mined_negatives_are_no_positives_of_other_rows_of_the_query():
    texts = ["red houses", "red red houses", "old houses", "free books"]
    rows = [group(t, "houses", [t]) for t in texts[:2]]
    rows += [group(t, "books", [t]) for t in texts[2:]]
    source = InMemory(rows)
    made = prepare(source, *corpus_of(source), mined=MINED, teacher=None, seed=0)
    assert [set(row) for row in made["negatives"].tolist()] == [{2, 3}] * 2 + [
        {0, 1}
    ] * 2


def test_too_small_a_corpus_says_what_to_do(source):
    many = types.SimpleNamespace(depth=10, count=4)
    with pytest.raises(InputError, match=r"query 1 needs 4 .* config\.prepare\.count"):
        prepare(source, *corpus_of(source), mined=many, teacher=None, seed=0)
