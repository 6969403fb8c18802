"""A corpus of random vectors with the statistics of a learned sparse retriever's."""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from lsrjax.retrieval.vector_formats.vectors import SPARSE, About, Block, Vectors

_BLOCK = 8192  # documents with a random generator of their own
_TOPICS = 1000
_OF_THE_TOPIC = 0.6  # of the terms; the others may be any
# Ranks are dealt to a topic's terms by a prime step from a place of its own.
_STEP, _PLACE = 7919, 104_729
_LARGEST = 4.0  # of SPLADE's weights, which are logarithms
_NOISE = 0.25  # of a query's terms that its document lacks


class SyntheticCorpus(Vectors):
    """N documents whose terms are drawn by Zipf's law, with topics.

    Any block can be made without those before it, so that the corpus takes no memory.
    A document has the given number of draws, of which equal ones are one term; weights
    grow with the rarity of the term.
    """

    def __init__(self, documents: int, terms: int, vocabulary: int, seed: int = 0):
        """Sizes; nothing is made yet."""
        super().__init__("synthetic vectors", About(SPARSE, vocabulary), documents)
        self._terms, self._seed = terms, seed
        share = 1 / np.arange(1, vocabulary + 1)
        self._cumulative = np.cumsum(share / share.sum())

    def blocks(self, rows: int = _BLOCK) -> Iterator[Block]:
        """As of `Vectors`, in blocks of its own size."""
        for start in range(0, len(self), _BLOCK):
            matrix = self._block(start)
            yield [str(start + row) for row in range(matrix.shape[0])], matrix

    def queries(self, count: int, terms: int) -> sparse.csr_matrix:
        """Queries [count, vocabulary] of terms of a document each, and of noise.

        Their documents are drawn from the first block.
        """
        rng = np.random.default_rng((self._seed, len(self)))
        documents = self._block(0)
        rows, columns, weights = [], [], []
        for row in range(count):
            document = documents[rng.integers(documents.shape[0])]
            own = min(document.nnz, round(terms * (1 - _NOISE)))
            chosen = rng.choice(document.nnz, own, replace=False)
            noise = rng.random(terms - own)
            terms_of = [document.indices[chosen], self._ranks(noise)]
            columns.append(np.unique(np.concatenate(terms_of)))
            rows.append(np.full(len(columns[-1]), row))
            weights.append(self._weights(columns[-1], rng))
        places = np.concatenate(rows), np.concatenate(columns)
        shape = count, self.columns
        return sparse.csr_matrix((np.concatenate(weights), places), shape=shape)

    def words(self, count: int, length: int, stream: int) -> Iterator[str]:
        """Texts of `length` words drawn by Zipf's law; a stream of its own."""
        rng = np.random.default_rng((self._seed, stream, length))
        for _ in range(count):
            yield " ".join(f"w{rank}" for rank in self._ranks(rng.random(length)))

    def _block(self, start: int) -> sparse.csr_matrix:
        rng = np.random.default_rng((self._seed, start))
        size = min(_BLOCK, len(self) - start), self._terms
        ranks = self._ranks(rng.random(size))
        topics = rng.integers(_TOPICS, size=(size[0], 1))
        moved = (ranks * _STEP + topics * _PLACE) % self.columns
        terms = np.where(rng.random(size) < _OF_THE_TOPIC, moved, ranks).ravel()
        starts = np.arange(size[0] + 1) * self._terms
        weights = self._weights(terms, rng)
        found = sparse.csr_matrix((weights, terms, starts), (size[0], self.columns))
        found.sum_duplicates()
        np.minimum(found.data, _LARGEST, out=found.data)
        return found

    def _ranks(self, uniform: np.ndarray) -> np.ndarray:
        ranks = np.searchsorted(self._cumulative, uniform)
        return np.minimum(ranks, self.columns - 1)

    def _weights(self, terms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rarity = np.log1p(terms) / np.log(self.columns)
        return (rng.gamma(2, 0.4, terms.shape) * (0.2 + rarity)).astype(np.float32)
