"""Names of terms, one for each column of a sparse vector, the same everywhere.

A term has the name of its token; in a model with views of several vocabularies, a
prefix says which one: `e_` for MILCO's English terms, `m_` for those of the text's own
tokens, as in the reference and every export of a MILCO. A latent has its number, as has
a column of n-grams (`n_`), and a column without a token `#` and the column's number.
"""

from collections.abc import Sequence

from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models.retriever import RetrieverSpec

# Views whose columns have numbers instead of names.
NUMBERED = ("latents", "surface")
# Those of which a number says nothing: another text has the column by chance.
HASHED = ("surface",)


def names_of(
    spec: RetrieverSpec,
    tokenizer: TextTokenizer,
    pivot_tokenizer: TextTokenizer | None = None,
    views: Sequence[str] | None = None,
) -> list[str]:
    """The names of the columns of all views, or of some, side by side."""
    names: list[str] = []
    for view, size in spec.views.items():
        if views is not None and view not in views:
            continue
        mark = spec.marks[view]
        if view in NUMBERED:
            names += (f"{mark}{i}" for i in range(size))
            continue
        own = pivot_tokenizer if view == "pivot" else tokenizer
        assert own  # every model with such a view has one
        tokens = {i: token for token, i in own.vocabulary().items()}
        first = len(names)
        names += [
            f"{mark}{tokens[i]}" if i in tokens else f"#{first + i}"
            for i in range(size)
        ]
    return names
