"""BM25 over words and character bigrams: the baseline, and a source of negatives."""

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.search import search


def _class(belongs: Callable[[str], bool], last: int) -> str:
    """The characters below code point `last` as ranges of a regex class."""
    inside = [code for code in range(last) if belongs(chr(code))]
    starts = [
        code for i, code in enumerate(inside) if i == 0 or inside[i - 1] < code - 1
    ]
    ends = [
        code
        for i, code in enumerate(inside)
        if i == len(inside) - 1 or inside[i + 1] > code + 1
    ]
    return "".join(
        f"\\U{first:08x}-\\U{end:08x}" for first, end in zip(starts, ends, strict=True)
    )


# Chinese characters with 々, 〆 and 〇, hiragana, and katakana without its middle dot.
_CJK = (
    r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
)
_LATIN = r"0-9a-z\xdf-\xf6\xf8-\u024f\u1e00-\u1eff"
# Vowel signs of Indic scripts and accents without a composed form, which `\w` lacks.
_MARK = _class(lambda char: unicodedata.category(char).startswith("M"), 0x12000)
_RUN = re.compile(
    rf"(?P<cjk>[{_CJK}]+)|[{_LATIN}][{_LATIN}{_MARK}]*"
    rf"|(?:[^\W_{_CJK}{_LATIN}][{_MARK}]*)+"
)


# Single characters of each kind; letters of other scripts are the rest.
CJK, LATIN, MARK = (re.compile(f"[{ranges}]") for ranges in (_CJK, _LATIN, _MARK))

_SEPARATOR = re.compile(rf"[^\w{_MARK}]|_")


def tokenize(text: str) -> list[str]:
    """Splits a text into terms that different languages can share.

    The text is normalised to NFKC and lower-cased. Latin letters and digits form their
    own words, so that the Korean `GNU용` shares `gnu` with English. Chinese characters
    and kana, which are written without spaces, become character bigrams (a single one
    stays itself). Letters of other scripts form words. There is no stemming and there
    are no stop words.
    """
    terms: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).lower()):
        run = match.group()
        if match.lastgroup == "cjk" and len(run) > 1:
            terms.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            terms.append(run)
    return terms


def words_and_ngrams(text: str) -> list[str]:
    """The terms of `tokenize`, and the text's character 3- and 4-grams.

    What is no letter or digit separates words as one space, which n-grams may hold.
    """
    terms = tokenize(text)
    plain = unicodedata.normalize("NFKC", text).lower()
    spaced = f" {' '.join(_SEPARATOR.sub(' ', plain).split())} "
    for size in (3, 4):
        # The mark tells them from words.
        terms += [f"#{spaced[i : i + size]}" for i in range(len(spaced) - size + 1)]
    return terms


# What names BM25 in a config: over words, or over words and character n-grams.
TERMS: dict[str, Callable[[str], list[str]]] = {
    "bm25": tokenize,
    "ngrams": words_and_ngrams,
}


def weights(counts: sparse.csr_matrix, k1: float, b: float) -> sparse.csr_matrix:
    """The weights of documents by the formula of `BM25`, of counts [N, V].

    Counts may be fractions, as those that are expected of a translation are; a document
    then counts for a term's df by the fraction, by 1 at most.
    """
    documents = counts.shape[0]
    df = np.bincount(counts.indices, np.minimum(counts.data, 1), counts.shape[1])
    idf = np.log1p((documents - df + 0.5) / (df + 0.5))
    length = np.asarray(counts.sum(axis=1)).ravel()
    norm = k1 * (1 - b + b * length / max(length.mean(), 1e-30))
    tf, of = counts.data, np.repeat(np.arange(documents), np.diff(counts.indptr))
    found = counts.astype(np.float32)
    found.data[:] = idf[counts.indices] * tf / (tf + norm[of])
    return found


class BM25:
    """An index of texts, searched by BM25 as Lucene defines it.

    score(q, d) = sum over the terms t of q, repeated ones counted again, of
    idf(t) tf / (tf + k1 (1 - b + b |d| / mean |d|)), where
    idf(t) = log(1 + (N - df + .5) / (df + .5)); Kamphuis et al., "Which BM25 do you
    mean?", ECIR 2020, "Lucene (accurate)". The weights come from bm25s.
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        k1: float = 1.2,
        b: float = 0.75,
        terms: Callable[[str], list[str]] = tokenize,
    ):
        """Indexes N texts.

        Args:
            k1: how slowly repeated terms saturate; the default is Lucene's.
            b: strength of the length normalisation, from 0 to 1.
            terms: splits documents and queries into terms.

        Raises:
            InputError: no text has a letter or a digit.
        """
        # bm25s starts JAX's backend when imported, which would be too early for
        # jax.distributed.
        import bm25s

        # It logs each step, at its own level.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self._terms = terms
        self._vocabulary: dict[str, int] = {}
        ids = [
            [
                self._vocabulary.setdefault(term, len(self._vocabulary))
                for term in terms(text)
            ]
            for text in texts
        ]
        if not self._vocabulary:
            raise InputError(
                f"BM25: none of the {len(texts)} texts has a letter or a digit, so "
                "there is nothing to index. Look whether config.data.format names "
                "the columns of the texts."
            )
        index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        # Ids instead of words: bm25s numbers words in an order that differs between
        # processes, and with it the order in which scores are summed.
        index.index(
            (ids, self._vocabulary), create_empty_token=False, show_progress=False
        )
        found = index.scores
        self.documents = sparse.csc_matrix(
            (found["data"], found["indices"], found["indptr"]),
            shape=(len(texts), len(self._vocabulary)),
        ).tocsr()

    def search(
        self, queries: Sequence[str], depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the documents with the highest score for each query.

        Args:
            queries: Q texts; terms of no document are ignored.

        Returns:
            indices [Q, depth] int32, -1 for no hit, and scores [Q, depth] float32, 0
            for no hit; ordered as in `lsrjax.retrieval.search.search`.
        """
        return search(self.queries(queries), self.documents, depth)

    def queries(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Counts [Q, V] of the terms of queries; `documents` has the weights [N, V]."""
        terms: list[int] = []
        ends = [0]
        for text in texts:
            known = (self._vocabulary.get(term) for term in self._terms(text))
            terms.extend(term for term in known if term is not None)
            ends.append(len(terms))
        counts = sparse.csr_matrix(
            (np.ones(len(terms), np.float32), terms, ends),
            shape=(len(texts), len(self._vocabulary)),
        )
        counts.sum_duplicates()
        return counts
