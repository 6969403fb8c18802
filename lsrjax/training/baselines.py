"""Systems without a network that a run's models are compared with."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from scipy import sparse

from lsrjax.initial.word_translations import translation_table
from lsrjax.models.lookups import LETTERS
from lsrjax.retrieval import bm25
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.result_tables import BASELINES
from lsrjax.retrieval.search import Several, search

_K1, _B = 1.2, 0.75
# Rarer translations hardly change a score, but most of the table is made of them.
_LEAST = 0.02
# Bounds the memory of the table's making to about 1 GB. Shorter pairs come first.
_MOST_CELLS = 8_000_000
_NGRAMS = 0.1  # the weight of the score of n-grams beside that of translated words


class Index(Protocol):
    """Documents that can be searched."""

    def search(
        self, queries: Sequence[str], depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices and scores, as of `lsrjax.retrieval.search.search`."""


def baselines(
    pairs: Iterable[tuple[str, str]],
) -> dict[str, Callable[[Sequence[str]], Index]]:
    """What indexes a corpus, by the name of the system.

    `pairs` are texts and their English translations, to learn to translate from.
    """
    indexes = (
        BM25,
        functools.partial(BM25, terms=bm25.words_and_ngrams),
        functools.partial(TranslatedBM25, Translations(pairs)),
    )
    return dict(zip(BASELINES, indexes, strict=True))


class Translations:
    """P(English stem | stem) by IBM Model 1 over pairs of texts.

    A stem is a word's first five letters, in any language; forms of a word that are
    counted together are translated better (McNamee and Mayfield 2004).
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        """Learns from pairs of a text and its English translation.

        English texts are pairs with themselves, so that English stems mean themselves.
        """
        pairs = list(pairs)
        pairs += [(text, text) for text in sorted({text for _, text in pairs})]
        self._words: dict[str, int] = {}
        english: dict[str, int] = {}
        ids = [
            (_numbered(text, self._words), _numbered(translation, english))
            for text, translation in pairs
        ]
        # Few words leave little doubt about which of them are translations.
        ids.sort(key=lambda pair: len(pair[0]) * len(pair[1]))
        table = translation_table(
            [left for left, _ in ids],
            [right for _, right in ids],
            len(self._words),
            len(english),
            max_cells=_MOST_CELLS,
        )
        table.data[table.data < _LEAST] = 0
        table.eliminate_zeros()
        self._table = table

    def counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """How often English stems are expected in texts' translations, [N, English]."""
        ids = [
            [self._words[stem] for stem in _stems(text) if stem in self._words]
            for text in texts
        ]
        words = np.array([word for some in ids for word in some], np.int64)
        ends = np.cumsum([0, *map(len, ids)])
        counts = sparse.csr_matrix(
            (np.ones(len(words), np.float32), words, ends),
            shape=(len(texts), len(self._words)),
        )
        return (counts @ self._table).tocsr()


def _numbered(text: str, vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary.setdefault(stem, len(vocabulary)) for stem in _stems(text)]


def _stems(text: str) -> list[str]:
    return [word[:LETTERS] for word in bm25.tokenize(text)]


class TranslatedBM25:
    """BM25 over English stems that texts are expected to have in translation.

    Queries and documents are translated alike, whatever their language. The score of
    character n-grams adds names and words that no pair has.
    """

    def __init__(self, translations: Translations, texts: Sequence[str]):
        """Indexes N texts."""
        self._translations = translations
        self._ngrams = BM25(texts, k1=_K1, b=_B, terms=bm25.words_and_ngrams)
        translated = bm25.weights(translations.counts(texts), _K1, _B)
        self._documents = Several([translated, self._ngrams.documents])

    def search(
        self, queries: Sequence[str], depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Index.search`."""
        translated = self._translations.counts(queries)
        ngrams = self._ngrams.queries(queries) * np.float32(_NGRAMS)
        return search(Several([translated, ngrams]), self._documents, depth)
