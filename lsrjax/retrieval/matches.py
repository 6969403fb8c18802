"""Why a document was found: the terms that it shares with the query."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from lsrjax.retrieval import terms
from lsrjax.retrieval.maxsim import TokenMatrix

COMMON = "n-grams in common"  # all columns of a hash together


@dataclasses.dataclass(frozen=True)
class Match:
    """A part of a score: `score` = `query` x `document`.

    Attributes:
      view: of the model, such as "pivot".
      term: its name; of late interaction, the query's token.
      document_term: the document's token, for late interaction.
    """

    view: str
    term: str
    query: float
    document: float
    document_term: str = ""

    @property
    def score(self) -> float:
        """What it adds to the score."""
        return self.query * self.document


def of_terms(
    query: sparse.csr_matrix,
    document: sparse.csr_matrix,
    views: Mapping[str, int],
    names: Sequence[str],
) -> list[Match]:
    """The terms of both, those that add most first.

    Columns of a hash, which have no names, are one match together, with the weights 1
    and what they add.

    Args:
      query: [1, V].
      document: [1, V].
      views: the model's views with their columns, side by side.
      names: of all columns.
    """
    shared, ours, theirs = np.intersect1d(
        query.indices, document.indices, return_indices=True
    )
    ends = np.cumsum([*views.values()])
    kinds = [*views]
    found = [
        Match(
            kinds[int(np.searchsorted(ends, column, side="right"))],
            names[column],
            float(query.data[i]),
            float(document.data[j]),
        )
        for column, i, j in zip(shared, ours, theirs, strict=True)
    ]
    for view in terms.HASHED:
        if own := [match.score for match in found if match.view == view]:
            found = [match for match in found if match.view != view]
            found.append(Match(view, COMMON, 1.0, sum(own)))
    return sorted(found, key=lambda match: -abs(match.score))


def of_tokens(
    query: TokenMatrix,
    document: TokenMatrix,
    view: str,
    query_names: Sequence[str],
    document_names: Sequence[str],
) -> list[Match]:
    """For each token of the query the most similar one of the document, best first.

    Args:
      query: of one text; names of other numbers of tokens are not used.
      document: the same.
    """
    if not len(query.tokens_TD) or not len(document.tokens_TD):
        return []
    products = query.tokens_TD @ document.tokens_TD.T
    best = products.argmax(axis=1)
    ours = _names(query_names, len(query.tokens_TD))
    theirs = _names(document_names, len(document.tokens_TD))
    found = [
        Match(view, ours[i], 1.0, float(products[i, j]), theirs[j])
        for i, j in enumerate(best)
    ]
    return sorted(found, key=lambda match: -match.score)


def _names(names: Sequence[str], count: int) -> Sequence[str]:
    # Some models leave tokens out, such as punctuation.
    return names if len(names) == count else [f"#{i}" for i in range(count)]
