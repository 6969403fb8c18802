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
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.lookup import entry, known_entry
from lsrjax.models.backbones.table import backbone
from lsrjax.models.dense_heads import (
    ColbertHead,
    ColbertOptions,
    CSRHead,
    DenseHead,
    DenseOptions,
    EmbeddingOptions,
)
from lsrjax.models.layers import Head, MLMTransform, gelu, linear
from lsrjax.models.masking import Masked
from lsrjax.models.term_weights import LexEcho, MLMHead
from lsrjax.models.texts import Texts
from lsrjax.models.views import MultiVector, Vector, Views, bad_weights
from lsrjax.options import Chosen, Options, no_effect, option, resolve


def _begins(spec) -> int:
    """The id that shifted logits begin with; -1: they are not shifted."""
    if spec.options.logits == "plain":
        return -1
    token = getattr(spec.encoder, "bos_token_id", None)
    if token is None or spec.options.pooling != "max":
        raise InputError(
            f"config.model.head.logits is {spec.options.logits!r}, which is for"
            f" NorBERT4 and pooling 'max'; the encoder is a {spec.encoder.family}, and"
            f" pooling is {spec.options.pooling!r}. Use 'plain'."
        )
    return token


def _cap(spec) -> float:
    """The c of logits c tanh(x / c); 0: they have none."""
    cap = getattr(spec.encoder, "logit_cap", 0.0)
    if cap and spec.options.pooling != "max":
        raise InputError(
            f"config.model.head.pooling is {spec.options.pooling!r}, and logits of"
            f" {spec.encoder.family} are capped at {cap:g} (final_logit_softcapping),"
            " which only the pooling 'max' does."
        )
    return cap


@dataclasses.dataclass(frozen=True)
class _Pooled(Options):
    pool_mask: str = option(
        "exclude",
        "exclude (padding never changes a result) | multiply (reference; padded"
        " positions take part in the max as 0)",
        choices=("exclude", "multiply"),
    )


@dataclasses.dataclass(frozen=True)
class SpladeOptions(_Pooled):
    """Of `SpladeHead`."""

    tied: bool = option(True, "the decoder is the word embedding", when="fresh weights")
    pooling: str = option("max", "over tokens", choices=("max", "sum"))
    activation: str = option(
        "relu",
        "of the logits, before the logarithm",
        choices=("relu", "log1p_relu"),
        fact=True,
    )
    logits: str = option(
        "plain",
        "of NorBERT4: plain | shifted (the next token's, as its masked LM was trained)"
        " | capped (shifted, and 30 sigmoid(x / 7.5), as the hub's code gives them)",
        choices=("plain", "shifted", "capped"),
    )
    queries: str = option(
        "encoded",
        "encoded | static (inference-free: a learned weight for each distinct word) |"
        " words (SPLADE-doc: each weighs 1); neither is encoded",
        choices=("encoded", "static", "words"),
        when="ranking loss",
    )

    def problem(self) -> str | None:
        """Refuses the mask of a maximum with another pooling."""
        if self.pooling == "max" or self.pool_mask == "exclude":
            return None
        because = "there is no maximum over tokens with pooling = 'sum'"
        return no_effect("pool_mask", self.pool_mask, because)


@dataclasses.dataclass(frozen=True)
class MilcoOptions(_Pooled):
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


class SpladeHead(Head):
    """SPLADE over the encoder's own vocabulary; one view, `terms`.

    With the option `queries` other than "encoded", a query is a bag of its own words
    without special tokens, and needs no encoder: each distinct word has its learned
    weight in `static` ("static": inference-free SPLADE, Geng et al. 2024), or 1
    ("words": SPLADE-doc, Formal et al. 2021).
    """

    Options = SpladeOptions
    gives = ("logits", "masked LM")
    starts_from = ("encoder", "head")

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`terms`, of the encoder's vocabulary."""
        return {"terms": spec.encoder.vocab_size}

    @staticmethod
    def encodes_queries(options) -> bool:
        """Whether queries are more than bags of words."""
        return options.queries == "encoded"

    @staticmethod
    def learns_queries(options) -> bool:
        """Whether training affects queries, that is, unless each word weighs 1."""
        return options.queries != "words"

    @staticmethod
    def expands(spec, text: str) -> tuple[str, ...]:
        """`terms`, except for queries that are bags of words."""
        return () if text == "query" and not spec.encodes_queries else ("terms",)

    @staticmethod
    def as_trained(options, model):
        """Sets whether the decoder is tied, and the activation."""
        # A tied decoder can be all of a head.
        shown = SpladeHead.shown_by(model.params.get("head", {"mlm": {}}))
        activation = model.spec.options.activation
        return dataclasses.replace(options, activation=activation, **shown)

    @staticmethod
    def shown_by(params) -> dict:
        """Whether the decoder is tied."""
        return {"tied": "decoder" not in params["mlm"]}

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        family = backbone(spec.encoder.family)
        self.mlm = MLMHead(
            family.transform(spec.encoder, dtype=dtype, rngs=rngs),
            spec.encoder.hidden_size,
            spec.encoder.vocab_size,
            silent_terms=spec.encoder.silent_terms,
            begins=_begins(spec),
            capped=spec.options.logits == "capped",
            cap=_cap(spec),
            bias=family.head_bias,
            tied=spec.options.tied,
            pool_mask=spec.options.pool_mask,
            pooling=spec.options.pooling,
            activation=spec.options.activation,
            rngs=rngs,
        )
        self.queries = spec.options.queries
        self.special_ids = spec.special_ids
        self.size = spec.encoder.vocab_size
        if self.queries == "static":
            # Special tokens are not words: their zeros are never read or changed.
            special = jnp.asarray(spec.special_ids, jnp.int32)
            self.static = nnx.Param(jnp.ones(self.size).at[special].set(0))

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `terms` view."""
        return {"terms": self.mlm(hidden_TD, texts, word_embeddings_VD)}

    def predicted(self, hidden_TD, texts: Texts, word_embeddings_VD, masked: Masked):
        """How well masked tokens are predicted."""
        return self.mlm.predicted(hidden_TD, texts, word_embeddings_VD, masked)

    def from_ids(self, ids_BL, mask_BL) -> Views:
        """The `terms` view of bags of words; the weights are also the raw values."""
        words_BV = self._words(ids_BL, mask_BL)
        return {"terms": Vector(words_BV, words_BV)}

    def _words(self, ids_BL, mask_BL) -> jax.Array:
        """The weights of each text's distinct words, as wide as encoded texts."""
        width = self.size + -self.size % sharding.axis_size(sharding.MODEL)
        keep_BL = mask_BL.astype(bool)
        for special in self.special_ids:
            keep_BL &= ids_BL != special
        rows_B1 = jnp.arange(len(ids_BL))[:, None]
        present_BV = jnp.zeros((len(ids_BL), width), jnp.float32)
        present_BV = present_BV.at[rows_B1, ids_BL].max(keep_BL.astype(jnp.float32))
        present_BV = sharding.constrain(present_BV, sharding.DATA, sharding.MODEL)
        if self.queries == "words":
            return present_BV
        weights_V = jnp.pad(self.static[...], (0, width - self.size))
        return present_BV * weights_V


class MilcoHead(Head):
    """MILCO: a connector into an English SPLADE's head, and LexEcho.

    The views are `pivot` over the English vocabulary and, with the option `lexecho`,
    `source` over the encoder's own. The decoder is never tied (MILCO, ICLR 2026).
    """

    Options = MilcoOptions
    gives = ("logits",)
    copies_pivot = True
    source_option = "lexecho"

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`pivot`, of the English vocabulary, and `source`, of the encoder's own."""
        views = {"pivot": spec.options.pivot_vocab_size}
        if spec.options.lexecho:
            views["source"] = spec.encoder.vocab_size
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
        excluded = spec.special_ids if spec.options.exclude_special_tokens else ()
        self.echo = (
            LexEcho(spec, spec.options.repeats, excluded, rngs=rngs)
            if spec.options.lexecho
            else None
        )

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `pivot` view and, with LexEcho, the `source` view."""
        h_TE = gelu(self.connector(hidden_TD))
        views: Views = {"pivot": self.mlm(h_TE, texts, None)}
        if self.echo is not None:
            views["source"] = self.echo(hidden_TD, texts)
        return views


class TokenWeightsHead(Head):
    """A weight for each token of the text; one view, `terms`.

    `relu(x a + c)` in the token's own column, the largest of its repeats, without
    special tokens (uniCOIL, Lin and Ma 2021; the sparse vectors of BGE-M3, Chen et al.
    2024).
    """

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`terms`, of the encoder's vocabulary."""
        return {"terms": spec.encoder.vocab_size}

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        self.weigh = LexEcho(spec, "max", spec.special_ids, rngs=rngs)

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `terms` view."""
        return {"terms": self.weigh(hidden_TD, texts)}


class M3Head(Head):
    """BGE-M3 (Chen et al. 2024): an embedding, weights and embeddings of tokens.

    The views are `dense` (of the first token), `terms`, and `tokens` (of all tokens
    after the first; a query's are divided by their number, so that the score is a
    mean). The score is their sum, weighted by the option `view_weights`.
    """

    Options = M3Options
    gives = ("three views",)
    sparse = False

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`dense`, `terms` of the encoder's vocabulary, and `tokens`."""
        terms, tokens = TokenWeightsHead.views(spec), ColbertHead.views(spec)
        return {"dense": spec.encoder.hidden_size} | terms | tokens

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        normalize = spec.options.normalize
        first = spec.with_head("dense", DenseOptions(normalize=normalize))
        self.dense = DenseHead(first, dtype=dtype, rngs=rngs)
        self.terms = TokenWeightsHead(spec, dtype=dtype, rngs=rngs)
        # Always projected.
        own = ColbertOptions(**ColbertHead.sized(spec), normalize=normalize)
        each = spec.with_head("colbert", own)
        self.tokens = ColbertHead(each, dtype=dtype, rngs=rngs)
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
        return {
            name: dataclasses.replace(view, scale=scale)
            for (name, view), scale in zip(views.items(), self.weights, strict=True)
        }


HEADS = {
    "splade": SpladeHead,
    "milco": MilcoHead,
    "token_weights": TokenWeightsHead,
    "dense": DenseHead,
    "csr": CSRHead,
    "colbert": ColbertHead,
    "m3": M3Head,
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
