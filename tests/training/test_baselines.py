import numpy as np
import pytest

from lsrjax.retrieval.bm25 import BM25, words_and_ngrams
from lsrjax.training.baselines import TranslatedBM25, Translations, baselines

PAIRS = [
    ("Das Haus", "the house"),
    ("das Buch", "the book"),
    ("ein Buch", "a book"),
    ("家", "house"),
]
DOCUMENTS = ["the house on a hill", "a book", "本 Buch", "nothing"]


@pytest.fixture(scope="module")
def translations():
    return Translations(PAIRS * 20)


def test_counts_are_those_expected_of_a_translation(translations):
    counts = translations.counts(["Buch buch", "家", "book", "unbekannt", ""]).toarray()
    word = counts[2].argmax()  # an English word means itself
    assert counts[0].argmax() == word and counts[0, word] == pytest.approx(2, abs=0.25)
    assert counts[1].max() == pytest.approx(1, abs=0.15)
    # Probabilities: a known word counts once in all, but for what is rare.
    np.testing.assert_allclose(counts.sum(axis=1), [2, 1, 1, 0, 0], atol=0.05)


def test_queries_and_documents_are_translated_alike(translations):
    index = TranslatedBM25(translations, DOCUMENTS)
    found, scores = index.search(["Haus", "book", "家", "hills", "zzz"], 3)
    assert found[0, 0] == found[2, 0] == 0
    assert set(found[1, :2].tolist()) == {1, 2}  # one of them in German
    # N-grams find what no pair has, at a tenth of their weight.
    assert found[3].tolist() == [0, -1, -1] and (found[4] == -1).all()
    _, ngrams = BM25(DOCUMENTS, terms=words_and_ngrams).search(["hills"], 1)
    assert scores[3, 0] == pytest.approx(0.1 * ngrams[0, 0])


def test_every_baseline_indexes_and_searches():
    for name, index in baselines(PAIRS).items():
        hits, scores = index(DOCUMENTS).search(["the house", "…"], 4)
        assert hits[0, 0] == 0 and scores[0, 0] > scores[0, 1], name
        assert (hits[1] == -1).all() and (scores[1] == 0).all(), name


def test_pairs_in_another_order_give_the_same_scores(translations):
    again = Translations(PAIRS[::-1] * 20)
    ours, theirs = (
        TranslatedBM25(table, DOCUMENTS).search(["Haus Buch"], 4)[1]
        for table in (translations, again)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
