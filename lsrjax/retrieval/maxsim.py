"""Token embeddings of many texts, and exact search with late interaction.

Axes: N texts, T tokens of all texts end to end, D dimensions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class TokenMatrix:
    """The token embeddings of N texts, float32.

    `starts` [N + 1] has the first token of each text, then T.
    """

    tokens_TD: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, tokens_NLD: np.ndarray, mask_NL: np.ndarray) -> "TokenMatrix":
        """The unmasked ones of padded embeddings."""
        starts = np.concatenate([[0], np.cumsum(mask_NL.sum(axis=1))])
        return cls(tokens_NLD[mask_NL.astype(bool)], starts.astype(np.int64))

    def __mul__(self, scale: float) -> "TokenMatrix":
        """Multiplies all scores."""
        return TokenMatrix(self.tokens_TD * np.float32(scale), self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Texts and dimensions."""
        return len(self), self.tokens_TD.shape[1]

    @property
    def mean_tokens(self) -> float:
        """Mean number of a text's embeddings."""
        return len(self.tokens_TD) / max(len(self), 1)

    def __getitem__(self, texts) -> "TokenMatrix":
        """Some of the texts, by a slice or an array of positions."""
        places = np.arange(len(self))[texts]
        counts = np.diff(self.starts)[places]
        starts = np.concatenate([[0], np.cumsum(counts)])
        # For each token, how far its text's first one moves.
        moved = np.repeat(self.starts[places] - starts[:-1], counts)
        return TokenMatrix(self.tokens_TD[np.arange(starts[-1]) + moved], starts)


def stacked(parts: Sequence[TokenMatrix]) -> TokenMatrix:
    """The texts of several matrices, one after the other."""
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return TokenMatrix(np.concatenate([part.tokens_TD for part in parts]), starts)


def scores(queries: TokenMatrix, documents: TokenMatrix) -> np.ndarray:
    """MaxSim of every query with every document, [queries, documents] float32.

    The sum over the query's tokens of the largest dot product with one of the
    document's; 0 if either has none (Khattab and Zaharia 2020).
    """
    out = np.zeros((len(queries), len(documents)), np.float32)
    asks = np.flatnonzero(np.diff(queries.starts))
    has = np.flatnonzero(np.diff(documents.starts))
    if len(asks) and len(has):
        # Without empty texts, for which reduceat has no result.
        products = queries.tokens_TD @ documents.tokens_TD.T
        best = np.maximum.reduceat(products, documents.starts[has], axis=1)
        summed = np.add.reduceat(best, queries.starts[asks], axis=0)
        out[np.ix_(asks, has)] = summed
    return out
