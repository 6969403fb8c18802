"""Heads with an embedding of the text beside, or made of, weights of terms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models.dense_heads import DenseHead, DenseOptions, EmbeddingOptions
from lsrjax.models.layers import linear
from lsrjax.models.masked_lm_terms import MaskedLMOptions, MaskedLMTerms
from lsrjax.models.texts import Texts
from lsrjax.models.views import Dense, Views, bad_weights, normalized, weighted
from lsrjax.ops.vocab_softmax import vocab_softmax
from lsrjax.options import Options, option

# A logit that no softmax has a share for; finite, so that it gives no NaN.
_SILENT = -1e9
# How many of the first terms may be left out; BERT's stand for no words.
_SPARE = 1000


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
    Lin and Lin 2022, arXiv 2206.09912, trained together).
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


@dataclasses.dataclass(frozen=True)
class AggretrieverOptions(Options):
    """Of `AggretrieverHead`."""

    tied: bool = option(True, "the decoder is the word embedding", when="fresh weights")
    semantic_size: int = option(
        128, "numbers of the first token's state", above=0, high=2**16
    )
    lexical_size: int = option(
        640, "numbers that the vocabulary is pooled into", above=0, high=2**16
    )
    normalize: bool = option(False, "embeddings have length 1")


class AggretrieverHead(MaskedLMTerms):
    """Aggretriever (Lin, Li and Lin 2023): the vocabulary pooled beside [CLS].

    The view `dense` is a projection of the first token's state, and agg*: each further
    token's masked-LM distribution times its weight `x a + c`, the largest over tokens,
    pooled by `aggregated`.
    """

    Options = AggretrieverOptions
    sparse = False
    rules = (
        sharding.Rule("(semantic|strength)/kernel", (None, None)),
        sharding.Rule("(semantic|strength)/bias", (None,)),
    )

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`dense`, of both sizes together."""
        return {"dense": spec.options.semantic_size + spec.options.lexical_size}

    @staticmethod
    def as_trained(options, model):
        """Sets whether the decoder is tied."""
        shown = MaskedLMTerms.shown_by(model.params.get("head", {"mlm": {}}))
        return dataclasses.replace(options, **shown)

    @staticmethod
    def shown_by(params) -> dict:
        """Whether the decoder is tied, and the size of the first token's part."""
        semantic = params.get("semantic", {})
        sizes = {"semantic_size": len(semantic["bias"])} if semantic else {}
        return MaskedLMTerms.shown_by(params) | sizes

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        terms = spec.with_head("splade").replaced(tied=spec.options.tied)
        super().__init__(terms, dtype=dtype, rngs=rngs)
        if self.mlm.cap:
            raise InputError(
                f"config.model.head 'aggretriever' has plain logits, and those of"
                f" {spec.encoder.family} are capped (final_logit_softcapping). Use"
                " another encoder, or the head 'hybrid'."
            )
        D, sizes = spec.encoder.hidden_size, spec.options
        self.semantic = linear(D, sizes.semantic_size, dtype=dtype, rngs=rngs)
        self.strength = linear(D, 1, dtype=jnp.float32, rngs=rngs)
        self.lexical_size = sizes.lexical_size
        self.normalize = sizes.normalize

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `dense` view."""
        first_BD = texts.together(x[:, 0] for x in texts.split(hidden_TD))
        # A text without tokens has zeros there.
        real_B = texts.together(mask_BL[:, 0] for mask_BL in texts.mask)
        first_BD = jnp.where(real_B[:, None], first_BD, 0)
        semantic_BE = self.semantic(first_BD).astype(jnp.float32)
        largest_BV = self._largest(hidden_TD, texts, word_embeddings_VD)
        lexical_BE = aggregated(largest_BV, self.lexical_size)
        x_BE = jnp.concatenate([semantic_BE, lexical_BE], axis=1)
        if self.normalize:
            x_BE = normalized(x_BE)
        return {"dense": Dense(x_BE, unit=self.normalize)}

    def _largest(self, hidden_TD, texts: Texts, word_embeddings_VD) -> jax.Array:
        """The largest weighted share of each term, [B, V]."""
        h_TD, w_VD, b_V = self.mlm.factors(hidden_TD, word_embeddings_VD)
        parts, V = sharding.axis_size(sharding.MODEL), len(b_V)
        # Terms that fill a mesh up take no share of the softmax.
        w_VD = jnp.pad(w_VD, ((0, -V % parts), (0, 0)))
        b_V = jnp.pad(b_V, (0, -V % parts), constant_values=_SILENT)
        s_T = self.strength(hidden_TD.astype(jnp.float32))[:, 0]
        axis = sharding.MODEL if parts > 1 else None

        def pool(states, w_VD, b_V, masks):
            return vocab_softmax(*states, w_VD, b_V, masks, axis=axis)

        behind = tuple(m & (jnp.arange(m.shape[1]) > 0)[None] for m in texts.mask)
        found = sharding.over_vocabulary(pool, (h_TD, s_T), w_VD, b_V, behind)
        return found[:, :V]


def aggregated(x_BV: jax.Array, size: int) -> jax.Array:
    """The vocabulary pooled into `size` numbers of either sign, agg* of Aggretriever.

    The largest of every (2 size)-th term; of each pair of these, the first if it is
    larger, else the second, negated. As in castorini/pyserini, the first terms that are
    too many are left out, or, if they are more than 1,000, zeros are added at the end.
    """
    B, V = x_BV.shape
    width = 2 * size
    left = V % width
    if left > _SPARE or left == V:
        x_BV = jnp.pad(x_BV, ((0, 0), (0, width - left)))
        left = 0
    pooled_BE2 = x_BV[:, left:].reshape(B, -1, width).max(axis=1).reshape(B, size, 2)
    more_BE, less_BE = pooled_BE2[..., 0], pooled_BE2[..., 1]
    return jnp.where(more_BE > less_BE, more_BE, -less_BE)
