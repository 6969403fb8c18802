"""Heads: from hidden states to the views of `lsrjax.models.views`.

To add one: write a `Head` with `__init__(spec, *, dtype, rngs)`, a static
`views(spec)`, and `__call__(hidden_TD, texts, word_embeddings_VD) -> Views`, where
`texts` is a `lsrjax.models.texts.Texts` that says which tokens of T form which text,
and which texts are queries; and add a line to `HEADS`. If queries need no encoder,
`encodes_queries(options)` is false and `from_ids(ids_BL, mask_BL) -> Views` computes
their views; `__call__` then receives only documents. A config may name a head outside
the table by its dotted name; a model's files may not.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.distributed.sharding import Rule
from lsrjax.errors import InputError
from lsrjax.lookup import entry, known_entry
from lsrjax.models.backbones.table import backbone
from lsrjax.models.condenser import Condenser
from lsrjax.models.dense_heads import (
    BiasedColbertHead,
    ColbertHead,
    ColbertOptions,
    CSRHead,
    DenseHead,
    DenseOptions,
    EmbeddingOptions,
)
from lsrjax.models.hybrid_heads import AggretrieverHead, HybridHead
from lsrjax.models.layers import Head, MLMTransform, gelu, linear
from lsrjax.models.lookups import Dictionary, Ngrams, Stems
from lsrjax.models.masked_lm_terms import (
    MaskedLMOptions,
    MaskedLMTerms,
    PooledOptions,
)
from lsrjax.models.masking import Masked
from lsrjax.models.term_weights import LexEcho, MLMHead, strongest_repeat
from lsrjax.models.texts import Texts
from lsrjax.models.views import Bag, MultiVector, Vector, Views, bad_weights, weighted
from lsrjax.models.word_queries import QueryOptions, WordQueries
from lsrjax.options import Chosen, option, resolve


@dataclasses.dataclass(frozen=True)
class SpladeOptions(QueryOptions, MaskedLMOptions):
    """Of `SpladeHead`."""

    condenser: int = option(
        0,
        "layers of a second predictor of masked tokens, which sees the encoder's early"
        " states and its last one of the first token (Condenser; there 2), and whose"
        " error is added; it is thrown away after the stage; 0: none",
        low=0,
        high=2**6,
        when="masked LM loss",
    )


@dataclasses.dataclass(frozen=True)
class MilcoOptions(PooledOptions):
    """Of `MilcoHead`."""

    lexecho: bool = option(False, "add the source view")
    repeats: str = option(
        "sum",
        "lexecho: a token's repeats: sum (reference) | max",
        choices=("sum", "max"),
        when="lexecho",
    )
    exclude_special_tokens: bool = option(
        False, "lexecho: leave <s>, </s>, … out", when="lexecho"
    )
    translations: int = option(
        0,
        "English terms that the pivot view has for each token whatever the encoder"
        " finds, with learned weights that init.translations starts; 0: none",
        low=0,
        high=2**10,
    )
    stems: int = option(
        0,
        "translations: as many English terms for each word's first five letters as"
        " well, which are hashed to this number of buckets; 0: none",
        low=0,
        high=2**24,
        when="translations",
    )
    ngrams: int = option(
        0,
        "columns of a third view, surface, of the text's character n-grams, with"
        " learned weights that init.ngrams starts; 0: none",
        low=0,
        high=2**24,
    )
    pivot_vocab_size: int = option(0, "terms of the English vocabulary", fact=True)
    pivot_hidden_size: int = option(0, "width of the English head", fact=True)
    pivot_layer_norm_eps: float = option(1e-12, "of the English head", fact=True)


@dataclasses.dataclass(frozen=True)
class M3Options(EmbeddingOptions):
    """Of `M3Head`."""

    view_weights: tuple[float, ...] = option(
        (1.0, 0.3, 1.0),
        "of dense, terms, tokens in the score",
        problem=bad_weights,
    )
    token_bias: bool = option(
        False,
        "a bias in the projection of tokens, as BGE-M3 has one",
        when="fresh weights",
    )


class SpladeHead(MaskedLMTerms, WordQueries):
    """SPLADE over the encoder's own vocabulary; one view, `terms`."""

    Options = SpladeOptions
    gives = ("logits", "masked LM", "one vector")
    pools = True
    training_only: ClassVar = {"condenser": 0}

    @staticmethod
    def expands(spec, text: str) -> tuple[str, ...]:
        """`terms`, except for queries that are bags of words."""
        return () if text == "query" and not spec.encodes_queries else ("terms",)

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        WordQueries.__init__(self, spec)
        MaskedLMTerms.__init__(self, spec, dtype=dtype, rngs=rngs)
        layers = spec.options.condenser
        self.condenser = (
            Condenser(spec.encoder, layers, dtype=dtype, rngs=rngs) if layers else None
        )

    def predicted(self, hidden_TD, texts: Texts, word_embeddings_VD, masked: Masked):
        """How well masked tokens are predicted."""
        return self.mlm.predicted(hidden_TD, texts, word_embeddings_VD, masked)

    def from_ids(self, ids_BL, mask_BL) -> Views:
        """The `terms` view of bags of words; the weights are also the raw values."""
        width = self.size + -self.size % sharding.axis_size(sharding.MODEL)
        rows_B1 = jnp.arange(len(ids_BL))[:, None]
        words_BL = self.words(ids_BL, mask_BL).astype(jnp.float32)
        present_BV = jnp.zeros((len(ids_BL), width), jnp.float32)
        present_BV = present_BV.at[rows_B1, ids_BL].max(words_BL)
        words_BV = sharding.constrain(present_BV, sharding.DATA, sharding.MODEL)
        if self.static is not None:
            # As wide as encoded texts.
            words_BV *= jnp.pad(self.static[...], (0, width - self.size))
        return {"terms": Vector(words_BV, words_BV)}


class MilcoHead(Head):
    """MILCO: a connector into an English SPLADE's head, and LexEcho.

    The views are `pivot` over the English vocabulary and, with the option `lexecho`,
    `source` over the encoder's own; with `ngrams`, `surface`. The decoder is never tied
    (MILCO, ICLR 2026). The options `translations`, `stems` and `ngrams` are
    lsrjax's own, see `lsrjax.models.lookups`.
    """

    Options = MilcoOptions
    gives = ("logits", "one vector")
    rules = (
        Rule("(dictionary|stems)/(terms|weights)", (None, None)),
        Rule("(ngrams|stems)/characters", (None, None)),
        Rule("ngrams/weights", (None,)),
    )
    tables: ClassVar = {
        "translations": ("translations", "dictionary"),
        "stems": ("translations", "stems"),
        "ngrams": ("ngrams", "ngrams"),
    }
    copies_pivot = True
    source_option = "lexecho"

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`pivot`, `source` and `surface`, as far as the options give them."""
        views = {"pivot": spec.options.pivot_vocab_size}
        if spec.options.lexecho:
            views["source"] = spec.encoder.vocab_size
        if spec.options.ngrams:
            views["surface"] = spec.options.ngrams
        return views

    @staticmethod
    def on_pivot(options: MilcoOptions, pivot: Any) -> MilcoOptions:
        """The options with the sizes of `pivot`, an English `SavedModel`.

        Raises:
          InputError: its activation is not relu, or its head is of another kind.
        """
        if pivot.spec.options.activation != "relu":
            raise InputError(
                f"config.init.head: the weights of {pivot.name} are"
                f" {pivot.spec.options.activation} of its logits, which MILCO's head"
                " does not compute. Use a SPLADE whose activation is relu."
            )
        encoder = pivot.spec.encoder
        transform = nnx.eval_shape(
            lambda: backbone(encoder.family).transform(
                encoder, dtype=jnp.float32, rngs=nnx.Rngs(0)
            )
        )
        if not isinstance(transform, MLMTransform):
            raise InputError(
                f"config.init.head: {pivot.name} is a {encoder.family}, whose masked-LM"
                " head is no dense layer, GELU and LayerNorm, as MILCO's is. Use a"
                " model whose head is, such as a BERT, XLM-R or ModernBERT."
            )
        return dataclasses.replace(
            options,
            pivot_vocab_size=encoder.vocab_size,
            pivot_hidden_size=encoder.hidden_size,
            pivot_layer_norm_eps=encoder.layer_norm_eps,
        )

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        self.connector = linear(
            spec.encoder.hidden_size,
            spec.options.pivot_hidden_size,
            dtype=dtype,
            rngs=rngs,
        )
        size, eps = spec.options.pivot_hidden_size, spec.options.pivot_layer_norm_eps
        self.mlm = MLMHead(
            MLMTransform(size, eps, dtype=dtype, rngs=rngs),
            size,
            spec.options.pivot_vocab_size,
            tied=False,
            pool_mask=spec.options.pool_mask,
            rngs=rngs,
        )
        own = spec.options.exclude_special_tokens
        excluded = spec.special_ids if own else spec.prompt_ids
        self.echo = (
            LexEcho(spec, spec.options.repeats, excluded, rngs=rngs)
            if spec.options.lexecho
            else None
        )
        tokens, own = spec.encoder.vocab_size, spec.options
        self.dictionary = (
            Dictionary(tokens, own.translations, size=own.pivot_vocab_size)
            if own.translations
            else None
        )
        self.stems = (
            Stems(tokens, own.stems, own.translations, size=own.pivot_vocab_size)
            if own.stems
            else None
        )
        self.ngrams = Ngrams(tokens, own.ngrams) if own.ngrams else None

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The views that the options give it."""
        h_TE = gelu(self.connector(hidden_TD))
        pivot = self.mlm(h_TE, texts, None)
        for table in (self.dictionary, self.stems):
            if table is not None:
                pivot = _with_translations(pivot, table(texts))
        views: Views = {"pivot": pivot}
        if self.echo is not None:
            views["source"] = self.echo(hidden_TD, texts)
        if self.ngrams is not None:
            views["surface"] = self.ngrams(texts)
        return views


def _with_translations(pivot: Vector, logits_BV: jax.Array) -> Vector:
    """The larger logit of each term; where no token brings it, the encoder's."""
    largest_BV = jnp.maximum(pivot.raw_BV, logits_BV)
    raw_BV = jnp.where(logits_BV > 0, largest_BV, pivot.raw_BV)
    return Vector(jnp.log1p(jax.nn.relu(raw_BV)), raw_BV)


class TokenWeightsHead(WordQueries):
    """A weight for each token of the text; one view, `terms`.

    `relu(x a + c)` in the token's own column, the largest of its repeats, without
    special tokens (uniCOIL, Lin and Ma 2021; the sparse vectors of BGE-M3, Chen et al.
    2024; with the option `queries = "words"` DeepImpact, Mallia et al. 2021).
    """

    Options = QueryOptions

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`terms`, of the encoder's vocabulary."""
        return {"terms": spec.encoder.vocab_size}

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        super().__init__(spec)
        self.weigh = LexEcho(spec, "max", spec.special_ids, rngs=rngs)

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `terms` view."""
        return {"terms": self.weigh(hidden_TD, texts)}

    def from_ids(self, ids_BL, mask_BL) -> Views:
        """The `terms` view of bags of words."""
        weights_BL = self.words(ids_BL, mask_BL).astype(jnp.float32)
        weights_BL = strongest_repeat(ids_BL, weights_BL)
        if self.static is not None:
            weights_BL *= self.static[...][ids_BL]
        return {"terms": Bag(ids_BL, weights_BL, self.size)}


class M3Head(Head):
    """BGE-M3 (Chen et al. 2024): an embedding, weights and embeddings of tokens.

    The views are `dense` (of the first token), `terms`, and `tokens` (of all tokens
    after the first; a query's are divided by their number, so that the score is a
    mean). The score is their sum, weighted by the option `view_weights`.
    """

    Options = M3Options
    gives = ("one vector", "three views")
    sparse = False
    parts: ClassVar = {"token_weights": "terms"}

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`dense`, `terms` of the encoder's vocabulary, and `tokens`."""
        terms, tokens = TokenWeightsHead.views(spec), ColbertHead.views(spec)
        return {"dense": spec.encoder.hidden_size} | terms | tokens

    @staticmethod
    def shown_by(params) -> dict:
        """Whether the projection of tokens has a bias."""
        return {"token_bias": "bias" in params["tokens"]["projection"]}

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        normalize = spec.options.normalize
        first = spec.with_head("dense", DenseOptions(normalize=normalize))
        self.dense = DenseHead(first, dtype=dtype, rngs=rngs)
        weights = spec.with_head("token_weights")
        self.terms = TokenWeightsHead(weights, dtype=dtype, rngs=rngs)
        # Always projected.
        own = ColbertOptions(**ColbertHead.sized(spec), normalize=normalize)
        each = spec.with_head("colbert", own)
        tokens = BiasedColbertHead if spec.options.token_bias else ColbertHead
        self.tokens = tokens(each, dtype=dtype, rngs=rngs)
        self.weights = spec.options.view_weights

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The three views."""
        views = self.dense(hidden_TD, texts, None) | self.terms(hidden_TD, texts, None)
        behind_first = tuple(
            mask_BL & (jnp.arange(mask_BL.shape[1]) > 0)[None] for mask_BL in texts.mask
        )
        behind = dataclasses.replace(texts, mask=behind_first)
        multi = self.tokens(hidden_TD, behind, None)["tokens"]
        assert isinstance(multi, MultiVector)
        if texts.query is not None:
            query_B11 = texts.together(texts.query)[:, None, None]
            count_B11 = multi.mask_BL.sum(axis=1)[:, None, None]
            mean_BLD = multi.tokens_BLD / jnp.maximum(count_B11, 1)
            x_BLD = jnp.where(query_B11, mean_BLD, multi.tokens_BLD)
            multi = dataclasses.replace(multi, tokens_BLD=x_BLD)
        views |= {"tokens": multi}
        return weighted(views, self.weights)


HEADS = {
    "splade": SpladeHead,
    "milco": MilcoHead,
    "token_weights": TokenWeightsHead,
    "dense": DenseHead,
    "csr": CSRHead,
    "colbert": ColbertHead,
    "m3": M3Head,
    "hybrid": HybridHead,
    "aggretriever": AggretrieverHead,
}


def head_class(name: str) -> type[Head]:
    """The head of a name in the table, or of a dotted name already given to `own_head`.

    Specs are read from files, which may not name code. Raises an `InputError` for
    other names.
    """
    own = "name it in config.model.head, or in --head of encode and convert"
    return known_entry(HEADS, name, "head", own)


def chosen(node: Any, field: str = "config.model.head") -> Chosen:
    """The head that the user's own config names, with its options.

    Raises:
      InputError: an unknown head or option.
    """
    found = resolve(HEADS, node, field)
    if not hasattr(found.entry, "views"):
        raise InputError(
            f"{field} is {found.name!r}, which is no head: it has no views(spec). See"
            " lsrjax/models/heads.py."
        )
    return found


def own_head(name: str, field: str = "config.model.head") -> type[Head]:
    """The head of a name in the table, or of a dotted name, which is imported.

    The name must be from the user's own config or flag, never from a model's files.
    """
    return entry(HEADS, name, field)


def pooled_as(spec: Any, like: Any) -> Any:
    """A teacher's spec with its student's `pool_mask`."""
    pooled = dataclasses.replace(spec.options, pool_mask=like.options.pool_mask)
    return dataclasses.replace(spec, options=pooled)
