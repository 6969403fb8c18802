"""Tables of `lsrjax.models.lookups` fitted to the training data."""

import functools

import numpy as np
from scipy import sparse

from lsrjax.data.examples import ENGLISH
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.initial import warm_start
from lsrjax.initial.start import Start
from lsrjax.initial.term_statistics import LENGTH, letters_of, ngram_idf, word_stems


def translations(start: Start, scale: float) -> dict[str, dict[str, np.ndarray]]:
    """The tables `dictionary` and, with the option `stems`, `stems` of the head."""
    found = {"dictionary": likeliest(start, start.translations.tocsr(), scale)}
    if buckets := start.spec.options.stems:
        tokenizer = TextTokenizer(start.tokenizer)
        letters = letters_of(tokenizer, start.spec.encoder.vocab_size)
        stems = functools.partial(word_stems, tokenizer, letters, buckets)
        table = start.translated(stems, buckets)
        found["stems"] = {"characters": letters} | likeliest(start, table, scale)
    return found


def likeliest(
    start: Start, table: sparse.csr_matrix, scale: float
) -> dict[str, np.ndarray]:
    """The likeliest translations of each key of a table, [keys, English terms].

    A term with the probability p weighs `scale * sqrt(p * idf / largest idf)`: as long
    as weights are small, one that a query and a document have adds to their score in
    proportion to the geometric mean of both probabilities, and to its idf in the
    English training documents.

    Returns:
      `terms` and `weights`, [keys, option `translations`]; 0 where a key has fewer.
    """
    count = start.spec.options.translations
    assert start.pivot_tokenizer  # every MILCO has one
    ids = TextTokenizer(start.pivot_tokenizer).ids(start.texts[ENGLISH], LENGTH)
    idf_V = warm_start.inverse_document_frequency(ids, table.shape[1])
    share_V = idf_V / max(idf_V.max(), 1e-30)
    terms = np.zeros((table.shape[0], count), np.float32)
    weights = np.zeros((table.shape[0], count), np.float32)
    for key in range(table.shape[0]):
        row = slice(table.indptr[key], table.indptr[key + 1])
        found, p = table.indices[row], table.data[row]
        best = np.lexsort((found, -p))[:count]
        terms[key, : len(best)] = found[best]
        weights[key, : len(best)] = scale * np.sqrt(p[best] * share_V[found[best]])
    return {"terms": terms, "weights": weights}


def ngrams(start: Start, scale: float) -> dict[str, np.ndarray]:
    """The characters of tokens, and weights of columns, `scale * sqrt(idf)`."""
    tokenizer = TextTokenizer(start.tokenizer)
    table, idf_V = ngram_idf(tokenizer, start.texts, start.spec)
    weights = (scale * np.sqrt(idf_V)).astype(np.float32)
    return {"characters": table, "weights": weights}
