"""The names of terms: one for each column of a sparse vector, the same everywhere.

A term is called as its token is; where a model has views of several vocabularies, a
mark in front says which one: `e_` for MILCO's English terms, `m_` for those of the
text's own tokens, as the reference and every export of a MILCO call them. A latent is
called by its number, and a column that no token has `#` and the column's number.
"""

from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models.retriever import RetrieverSpec


def names_of(
    spec: RetrieverSpec,
    tokenizer: TextTokenizer,
    pivot_tokenizer: TextTokenizer | None = None,
) -> list[str]:
    """The names of the columns of all views, side by side.

    Args:
      spec: the retriever's, of sparse vectors.
      tokenizer: of the encoder's vocabulary.
      pivot_tokenizer: MILCO: the English one.
    """
    names: list[str] = []
    for view, size in spec.views.items():
        if view == "latents":
            names += map(str, range(size))
            continue
        own = pivot_tokenizer if view == "pivot" else tokenizer
        assert own  # every model with such a view has one
        tokens = {i: token for token, i in own.vocabulary().items()}
        mark = spec.marks[view]
        first = len(names)
        names += [
            f"{mark}{tokens[i]}" if i in tokens else f"#{first + i}"
            for i in range(size)
        ]
    return names
