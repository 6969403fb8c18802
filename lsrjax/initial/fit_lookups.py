"""Tables of `lsrjax.models.lookups` fitted to the training data."""

import numpy as np
from scipy import sparse

from lsrjax.data.examples import ENGLISH
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.initial import warm_start
from lsrjax.initial.start import Start
from lsrjax.initial.term_statistics import LENGTH, ngram_idf


def dictionary(
    table: sparse.csr_matrix, idf_V: np.ndarray, count: int, scale: float
) -> dict[str, np.ndarray]:
    """The likeliest translations of each token.

    The weight of a term with the probability p is `scale * sqrt(p * idf / max idf)`, so
    that a term in both a query and a document adds to their score in proportion to
    both probabilities' geometric mean and to its idf, as long as weights are small.

    Args:
      table: P(term | token), [tokens, V].
      idf_V: of the terms in English documents.
      count: translations of a token; those that it lacks weigh 0.
      scale: the weight of the rarest term where there is no doubt.

    Returns:
      `terms` and `weights`, [tokens, count].
    """
    table = table.tocsr()
    terms = np.zeros((table.shape[0], count), np.float32)
    weights = np.zeros((table.shape[0], count), np.float32)
    share_V = idf_V / max(idf_V.max(), 1e-30)
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


def english_idf(start: Start, english: TextTokenizer, vocab_size: int) -> np.ndarray:
    """The idf of English terms in the English training documents, [vocab_size]."""
    ids = english.ids(start.texts[ENGLISH], LENGTH)
    return warm_start.inverse_document_frequency(ids, vocab_size)
