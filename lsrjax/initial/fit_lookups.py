"""Tables of `lsrjax.models.lookups` fitted to the training data."""

import numpy as np

from lsrjax.data.examples import ENGLISH
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.initial import warm_start
from lsrjax.initial.start import Start
from lsrjax.initial.term_statistics import LENGTH, ngram_idf


def dictionary(start: Start, scale: float) -> dict[str, np.ndarray]:
    """The likeliest translations of each token in the training pairs.

    A term with the probability p weighs `scale * sqrt(p * idf / largest idf)`: as long
    as weights are small, one that a query and a document have adds to their score in
    proportion to the geometric mean of both probabilities, and to its idf in the
    English training documents.

    Returns:
      `terms` and `weights`, [V, option `translations`]; those that a token lacks are 0.
    """
    table, count = start.translations.tocsr(), start.spec.options.translations
    assert start.pivot_tokenizer  # every MILCO has one
    ids = TextTokenizer(start.pivot_tokenizer).ids(start.texts[ENGLISH], LENGTH)
    idf_V = warm_start.inverse_document_frequency(ids, table.shape[1])
    share_V = idf_V / max(idf_V.max(), 1e-30)
    terms = np.zeros((table.shape[0], count), np.float32)
    weights = np.zeros((table.shape[0], count), np.float32)
    for token in range(table.shape[0]):
        row = slice(table.indptr[token], table.indptr[token + 1])
        found, p = table.indices[row], table.data[row]
        best = np.lexsort((found, -p))[:count]
        terms[token, : len(best)] = found[best]
        weights[token, : len(best)] = scale * np.sqrt(p[best] * share_V[found[best]])
    return {"terms": terms, "weights": weights}


def ngrams(start: Start, scale: float) -> dict[str, np.ndarray]:
    """The characters of tokens, and weights of columns, `scale * sqrt(idf)`."""
    tokenizer = TextTokenizer(start.tokenizer)
    table, idf_V = ngram_idf(tokenizer, start.texts, start.spec)
    weights = (scale * np.sqrt(idf_V)).astype(np.float32)
    return {"characters": table, "weights": weights}
