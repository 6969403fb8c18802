"""Heads with an embedding of the text beside, or made of, weights of terms."""

import dataclasses
import functools

from flax import nnx

from lsrjax.models.dense_heads import DenseHead, DenseOptions, EmbeddingOptions
from lsrjax.models.masked_lm_terms import MaskedLMOptions, MaskedLMTerms
from lsrjax.models.texts import Texts
from lsrjax.models.views import Views, bad_weights, weighted
from lsrjax.options import option


@dataclasses.dataclass(frozen=True)
class HybridOptions(MaskedLMOptions, EmbeddingOptions):
    """Of `HybridHead`."""

    embedding_pooling: str = option(
        "cls",
        "the state of the first token, the mean, or the state of the last token",
        choices=("cls", "mean", "last"),
    )
    view_weights: tuple[float, ...] = option(
        (1.0, 1.0),
        "of dense and terms in the score",
        problem=functools.partial(bad_weights, views=("dense", "terms")),
    )


class HybridHead(MaskedLMTerms):
    """An embedding and SPLADE's weights of terms; views `dense` and `terms`.

    The score is their sum, weighted by the option `view_weights` (as the hybrids of
    Lin and Lin 2021, trained together).
    """

    Options = HybridOptions
    sparse = False
    weighed = ("terms",)

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`dense`, of the embedding's size, and `terms`, of the vocabulary."""
        return DenseHead.views(spec) | MaskedLMTerms.views(spec)

    @staticmethod
    def expands(spec, text: str) -> tuple[str, ...]:
        """`terms`."""
        return ("terms",)

    @staticmethod
    def shown_by(params) -> dict:
        """Whether the decoder is tied, and the embedding's size."""
        embedding = DenseHead.shown_by(params.get("dense", {}))
        return MaskedLMTerms.shown_by(params) | embedding

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        super().__init__(spec, dtype=dtype, rngs=rngs)
        own = DenseOptions(
            embedding_size=spec.options.embedding_size,
            normalize=spec.options.normalize,
            pooling=spec.options.embedding_pooling,
        )
        self.dense = DenseHead(spec.with_head("dense", own), dtype=dtype, rngs=rngs)
        self.weights = spec.options.view_weights

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """Both views."""
        views = self.dense(hidden_TD, texts, word_embeddings_VD)
        views |= super().__call__(hidden_TD, texts, word_embeddings_VD)
        return weighted(views, self.weights)
