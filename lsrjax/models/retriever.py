"""A retriever: an encoder, and a head that turns its hidden states into views."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models import dense_heads
from lsrjax.models.encoder import Encoder
from lsrjax.models.encoder_config import EncoderConfig
from lsrjax.models.heads import head_class
from lsrjax.models.texts import Texts
from lsrjax.models.views import Views

TOWERS = ("shared", "separate")
# The texts, and the role, that a query tower encodes; all others are documents.
QUERY = "query"
# Where the parameters of a query tower of its own are. Those of the document tower
# stand where those of a shared one do.
QUERY_TOWER = "query_tower"


# As the reference calls the terms of a MILCO.
_MARKS = {"pivot": "e_", "source": "m_"}
_KNOWN = {
    "towers": TOWERS,
    "pool_mask": ("exclude", "multiply"),
    "repeats": ("sum", "max"),
    "pooling": ("max", "sum", "cls", "mean"),
    "activation": ("relu", "log1p_relu"),
    "queries": ("encoded", "static", "words"),
}


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a field's value is of its type; a whole number is a number, too."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_of(inner, one) for one in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    return isinstance(value, kind)


@dataclasses.dataclass(frozen=True)
class RetrieverSpec:
    """Everything that fixes a retriever's parameters and its computation.

    Attributes:
      head: a name in `lsrjax.models.heads.HEADS`, or a dotted one.
      encoder: the encoder's sizes.
      towers: "shared" (an encoder and a head for all texts) or "separate" (queries have
        their own, of the same sizes).
      pool_mask: "exclude" (padding never changes a result) or "multiply" (the
        reference MILCO: padded positions take part in the max as 0).
      tied: the head's decoder is the encoder's word embedding (SPLADE).
      lexecho: add the source view (MILCO).
      pivot_vocab_size: terms of the English vocabulary (MILCO).
      pivot_hidden_size: width of the English head (MILCO).
      pivot_layer_norm_eps: epsilon of the English head's LayerNorm (MILCO).
      exclude_special_tokens: leave `special_ids` out of the source view.
      special_ids: the tokenizer's special tokens.
      repeats: "sum" or "max" over a token's repeats in the source view.
      pooling: over tokens: "max" or "sum" (SPLADE), "cls" or "mean" (dense).
      activation: of SPLADE's logits, before the logarithm: "relu" or "log1p_relu".
      most_active: of a sparse vector, only so many weights, the largest, are kept when
        texts are encoded; 0: all.
      queries: SPLADE's queries: "encoded", or bags of words: "static" or "words", see
        `lsrjax.models.heads.SpladeHead`.
      embedding_size: width of embeddings (dense, ColBERT); 0: that of hidden states.
      normalize: embeddings have length 1.
      view_weights: of M3's scores in their sum: dense, terms, tokens.
      latents: of CSR's autoencoder.
      active_latents: of a text.
      revived_latents: dead ones that learn from a text.
      dead_after: steps without activation after which a latent is dead.
      query_prompt: text before every query.
      document_prompt: text before every document.
      query_marker: id that stands behind a query's first token; -1: none.
      document_marker: the same in documents.
      expand_id: id that queries are filled up with to their maximal length (ColBERT's
        query expansion), which no token attends to; -1: they are not.
      skip_ids: tokens of documents without an embedding (ColBERT).
    """

    head: str
    encoder: EncoderConfig
    towers: str = "shared"
    pool_mask: str = "exclude"
    tied: bool = False
    lexecho: bool = False
    pivot_vocab_size: int = 0
    pivot_hidden_size: int = 0
    pivot_layer_norm_eps: float = 1e-12
    exclude_special_tokens: bool = False
    special_ids: tuple[int, ...] = ()
    repeats: str = "sum"
    pooling: str = "max"
    activation: str = "relu"
    most_active: int = 0
    queries: str = "encoded"
    embedding_size: int = 0
    normalize: bool = True
    view_weights: tuple[float, ...] = (1.0, 0.3, 1.0)
    latents: int = 0
    active_latents: int = 0
    revived_latents: int = 0
    dead_after: int = 0
    query_prompt: str = ""
    document_prompt: str = ""
    query_marker: int = -1
    document_marker: int = -1
    expand_id: int = -1
    skip_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for field, known in _KNOWN.items():
            if (value := getattr(self, field)) not in known:
                wanted = " or ".join(map(repr, known))
                raise InputError(f"{field} is {value!r}; it may be {wanted}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_of(field.type, value):
                kind = getattr(field.type, "__name__", field.type)
                raise InputError(f"{field.name} is {value!r}; it is a {kind}.")
        size = self.encoder.vocab_size
        for field in ("query_marker", "document_marker", "expand_id"):
            if not -1 <= getattr(self, field) < size:
                raise InputError(
                    f"{field} is {getattr(self, field)}, and the encoder knows {size}"
                    " tokens."
                )

    def to_dict(self) -> dict:
        """As JSON-serialisable values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RetrieverSpec":
        """The spec that `to_dict` wrote."""
        values = dict(values)
        values["encoder"] = EncoderConfig(**values["encoder"])
        for field in ("special_ids", "skip_ids", "view_weights"):
            if field in values:
                values[field] = tuple(values[field])
        return cls(**values)

    @property
    def sparse(self) -> bool:
        """Whether all views are weights of terms."""
        return head_class(self.head).sparse

    @property
    def views(self) -> dict[str, int]:
        """The views and the sizes of their vocabularies or embeddings, in order."""
        return head_class(self.head).views(self)

    @property
    def marks(self) -> dict[str, str]:
        """What stands before a token in the name of its term, by view.

        A term is called as its token is; views of several vocabularies are told apart
        by MILCO's marks, or by the view's name.
        """
        several = len(self.views) > 1
        return {view: _MARKS.get(view, f"{view}_" * several) for view in self.views}

    def expands(self, text: str) -> tuple[str, ...]:
        """Views that may weigh tokens of the encoder which a text does not have."""
        return head_class(self.head).expands(self, text)

    @property
    def encodes_queries(self) -> bool:
        """Whether queries need an encoder; if not, their ids are enough."""
        return head_class(self.head).encodes_queries(self)

    @property
    def roles_apart(self) -> bool:
        """Whether queries and documents cannot be encoded together."""
        return self.towers == "separate" or not self.encodes_queries

    @property
    def rules(self) -> tuple[sharding.Rule, ...]:
        """Partition rules of parameters that `sharding.RULES` does not know."""
        return head_class(self.head).rules


class Retriever(nnx.Module):
    """Encodes token ids into views."""

    def __init__(self, spec: RetrieverSpec, *, dtype=jnp.float32, rngs: nnx.Rngs):
        """Random parameters (float32); `dtype` is what matrix products run in."""
        self.encoder = Encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.head = head_class(spec.head)(spec, dtype=dtype, rngs=rngs)
        self.expand_id = spec.expand_id
        self.encodes_queries = spec.encodes_queries
        one = dataclasses.replace(spec, towers="shared")
        separate = spec.towers == "separate"
        self.query_tower = Retriever(one, dtype=dtype, rngs=rngs) if separate else None

    def __call__(
        self, texts: Texts, *, role=None, dropout_keys=None, remat="none"
    ) -> Views:
        """Encodes a batch of texts.

        Args:
          texts: the batch.
          role: "query": all are queries; "document" or None: those are that
            `texts.query` says.
          dropout_keys: a key for each text, [B] of each part; without, the model is
            deterministic.
          remat: what the backward pass computes again, see `lsrjax.models.encoder`.

        Returns:
          The views of the texts, those of all parts end to end.

        Raises:
          ValueError: queries beside documents, which this model encodes apart.
        """
        if texts.query is not None and (self.query_tower or not self.encodes_queries):
            raise ValueError("Encode queries and documents apart, each with its role.")
        if role == QUERY:
            if self.query_tower is not None:
                options = {"dropout_keys": dropout_keys, "remat": remat}
                return self.query_tower(texts, role=role, **options)
            if not self.encodes_queries:
                return self.head.from_ids(
                    texts.padded(texts.ids), texts.padded(texts.mask)
                )
            query = tuple(jnp.ones(len(ids_BL), bool) for ids_BL in texts.ids)
            texts = dataclasses.replace(texts, query=query)
        attended = texts.mask
        if self.expand_id >= 0:
            attended = tuple(
                mask_BL & (ids_BL != self.expand_id)
                for ids_BL, mask_BL in zip(texts.ids, texts.mask, strict=True)
            )
        hidden_TD = self.encoder.encode(
            texts, attended=attended, dropout_keys=dropout_keys, remat=remat
        )
        word_embeddings_VD = self.encoder.embeddings.word.embedding[...]
        return self.head(hidden_TD, texts, word_embeddings_VD)


def split(
    spec: RetrieverSpec, *, dtype=jnp.float32, weights_only: bool = False
) -> tuple[nnx.GraphDef, dict]:
    """The model's structure and its abstract parameters (no memory is taken).

    Args:
      spec: the model's.
      dtype: of matrix products.
      weights_only: to encode texts, not to train: spares what only losses read.

    Returns:
      The graph definition, for `apply`, and a nested dict of `jax.ShapeDtypeStruct`.
    """
    model = nnx.eval_shape(lambda: Retriever(spec, dtype=dtype, rngs=nnx.Rngs(0)))
    if weights_only:
        model.set_attributes(weights_only=True, raise_if_not_found=False)
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def counted(spec: RetrieverSpec) -> dict:
    """Which of the parameters a step counts instead of learning: a tree of bools."""
    model = nnx.eval_shape(lambda: Retriever(spec, rngs=nnx.Rngs(0)))
    kinds = jax.tree.map(
        lambda leaf: leaf.replace(isinstance(leaf, dense_heads.Count)),
        nnx.state(model),
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.to_pure_dict(kinds)


def init_params(spec: RetrieverSpec, seed: int) -> dict:
    """Random parameters as a nested dict; a pure function of (spec, seed).

    Separate towers have the same ones.
    """
    # Operation by operation, on the host: one program for all of them takes a GPU's
    # compiler most of a minute.
    with _on_host():
        one = dataclasses.replace(spec, towers="shared")
        model = Retriever(one, rngs=nnx.Rngs(seed))
        params = nnx.to_pure_dict(nnx.state(model))
    return params if spec.towers == "shared" else with_query_tower(params)


def _on_host():
    """A context in which arrays are made by the processor, where JAX has it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return contextlib.nullcontext()


def with_query_tower(params: dict, query: dict | None = None) -> dict:
    """The parameters of separate towers.

    Args:
      params: of the document tower.
      query: of the query tower; None: the same.
    """
    # Copies, since a training step takes the place of each array for itself.
    query = jax.tree.map(jnp.copy, params) if query is None else query
    return params | {QUERY_TOWER: query}


def towers_of(params: dict) -> tuple[dict, dict | None]:
    """The parameters of the document tower and, if it is separate, the query tower."""
    document = {key: value for key, value in params.items() if key != QUERY_TOWER}
    return document, params.get(QUERY_TOWER)


def after_step(params: dict, fired: dict[str, jax.Array]) -> dict:
    """Sets what a step counts rather than learns, in each tower.

    Args:
      params: as the optimizer leaves them.
      fired: from `lsrjax.models.dense_heads.fired`.
    """
    if not fired:
        return params
    params, query = towers_of(params)
    if query is not None:
        fired = dict(fired)
        query = dense_heads.after_step(query, fired.pop(QUERY))
    params = dense_heads.after_step(params, sum(fired.values(), jnp.int32(0)))
    return params if query is None else with_query_tower(params, query)


def apply(
    graphdef: nnx.GraphDef,
    params: dict,
    texts: Mapping | Sequence[Mapping],
    *,
    role=None,
    dropout_keys=None,
    remat="none",
) -> Views:
    """Encodes `{"ids": [B, L], "mask": [B, L], "query": [B]}` with these parameters.

    `query` is true for queries; it is left out where there are none, or where `role`
    ("query" or "document") is that of all texts. Several such parts, each of its own
    length, are encoded together. See `Retriever.__call__`.
    """
    parts = [texts] if isinstance(texts, Mapping) else texts
    model = nnx.merge(graphdef, params)
    return model(Texts.of(parts), role=role, dropout_keys=dropout_keys, remat=remat)
