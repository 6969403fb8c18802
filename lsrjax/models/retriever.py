"""A retriever: an encoder, and a head that turns its hidden states into views."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models import dense_heads, layers, low_rank, prompt_rows
from lsrjax.models.backbones.encoder import shapes_of
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone, config_from
from lsrjax.models.heads import head_class
from lsrjax.models.masking import PREDICTED, Masking
from lsrjax.models.texts import Texts
from lsrjax.models.views import Views
from lsrjax.options import as_dict, check_value, checked, find_known, kind_of, option

TOWERS = ("shared", "separate")
# The text, and the role, that a query tower encodes; all others are documents.
QUERY = "query"
# The key of a separate query tower's parameters. Those of the document tower have the
# paths of a shared one.
QUERY_TOWER = "query_tower"


# The reference's prefixes of MILCO's terms.
_MARKS = {"pivot": "e_", "source": "m_", "surface": "n_"}


@dataclasses.dataclass(frozen=True)
class RetrieverSpec:
    """Everything that determines a retriever's parameters and its computation.

    Attributes:
      head: a name in `lsrjax.models.heads.HEADS`, or a dotted one.
      options: of the head, an instance of its `Options`; None: the defaults.
      towers: "shared" (an encoder and a head for all texts) or "separate" (queries have
        their own, of the same sizes).
      special_ids: the tokenizer's special tokens.
      prompt_ids: of them, those that stand for prompt vectors: first those of queries,
        then those of documents.
      most_active: number of weights, the largest, kept of a sparse vector when texts
        are encoded; 0: all.
      query_prompt: text before every query.
      document_prompt: text before every document.
      query_marker: id inserted in a query; -1: none.
      document_marker: the same for documents.
      marker_place: tokens in front of a marker: 1, or 0 where the tokenizer begins no
        text with a special token.
      query_unpooled: tokens in front of a query, its prompt's with what precedes them,
        that the pooling leaves out.
      document_unpooled: the same of a document.
    """

    head: str
    encoder: EncoderConfig
    options: Any = None
    towers: str = option("shared", "", choices=TOWERS)
    special_ids: tuple[int, ...] = option((), "")
    most_active: int = option(0, "", low=0)
    query_prompt: str = option("", "")
    document_prompt: str = option("", "")
    query_marker: int = option(-1, "")
    document_marker: int = option(-1, "")
    marker_place: int = option(1, "", low=0, high=1)
    prompt_ids: tuple[int, ...] = option((), "")
    query_unpooled: int = option(0, "", low=0)
    document_unpooled: int = option(0, "", low=0)

    def __post_init__(self):
        if not isinstance(self.head, str):
            raise InputError(f"head is {self.head!r}; it must be text.")
        kind = kind_of(head_class(self.head))
        options = kind() if self.options is None else self.options
        if not isinstance(options, kind):
            raise InputError(f"options are {options!r}, not those of {self.head}.")
        object.__setattr__(self, "options", checked(kind, vars(options), "options"))
        if not isinstance(self.encoder, EncoderConfig):
            raise InputError(f"encoder is {self.encoder!r}; it must be a config.")
        for field in dataclasses.fields(self)[3:]:
            check_value(field, type(self), getattr(self, field.name), field.name)
        size = self.encoder.vocab_size
        markers = {
            "query_marker": self.query_marker,
            "document_marker": self.document_marker,
            "what queries are expanded by": self.expand_id,
        }
        for name, marker in markers.items():
            if not -1 <= marker < size:
                raise InputError(
                    f"{name} is {marker}, and the encoder knows {size} tokens."
                )

    @classmethod
    def of(
        cls,
        head: str,
        encoder: EncoderConfig,
        weights: Mapping | None = None,
        **values: Any,
    ) -> "RetrieverSpec":
        """A spec from some of its fields and its head's options, by name.

        `weights` are the head's parameters, which show some of its options.
        """
        if weights is not None:
            values |= head_class(head).shown_by(weights)
        own = {f.name for f in dataclasses.fields(cls)}
        fields = {name: value for name, value in values.items() if name in own}
        options = {name: value for name, value in values.items() if name not in own}
        return cls(head, encoder, kind_of(head_class(head))(**options), **fields)

    def replaced(self, **values: Any) -> "RetrieverSpec":
        """The spec with changed fields or options of its head, by name."""
        own = {f.name for f in dataclasses.fields(self)}
        fields = {name: value for name, value in values.items() if name in own}
        options = {name: value for name, value in values.items() if name not in own}
        options = dataclasses.replace(self.options, **options)
        return dataclasses.replace(self, **{"options": options} | fields)

    def with_head(self, head: str, options: Any = None) -> "RetrieverSpec":
        """The spec with another head; None sets the head's default options."""
        return dataclasses.replace(self, head=head, options=options)

    def to_dict(self) -> dict:
        """JSON-serialisable values; `from_dict` reads them back."""
        encoder = dataclasses.asdict(self.encoder)
        return vars(self) | {"encoder": encoder, "options": as_dict(self.options)}

    @classmethod
    def from_dict(cls, values: dict) -> "RetrieverSpec":
        """The spec of `to_dict`; also reads files from before heads had options."""
        kind = kind_of(head_class(values["head"]))
        known = {field.name for field in dataclasses.fields(kind)}
        own = {field.name for field in dataclasses.fields(cls)}
        options = values.get("options")
        if options is None:
            options = {name: of for name, of in values.items() if name in known}
            values = {name: of for name, of in values.items() if name in own}
        if unknown := set(options) - known:
            raise InputError(
                f"the head {values['head']} has no option {', '.join(sorted(unknown))}"
            )
        encoder = config_from(values["encoder"])
        lists = ("special_ids", "prompt_ids")
        ids = {name: tuple(values.get(name, ())) for name in lists}
        made = checked(kind, options, "options", find_known)
        changed = {"encoder": encoder, "options": made, **ids}
        return cls(**values | changed)

    @property
    def sparse(self) -> bool:
        """Whether all views are weights of terms."""
        return head_class(self.head).sparse

    @property
    def views(self) -> dict[str, int]:
        """The views in order, with the sizes of their vocabularies or embeddings."""
        return head_class(self.head).views(self)

    @property
    def vector(self) -> str:
        """The view that is one vector of each text; empty without one."""
        gives = "one vector" in head_class(self.head).gives
        return next(iter(self.views)) if gives else ""

    @property
    def marks(self) -> dict[str, str]:
        """The prefix of a term's name, by view.

        A term has its token's name; with several views, MILCO's marks or the view's
        name distinguish them.
        """
        several = len(self.views) > 1
        return {view: _MARKS.get(view, f"{view}_" * several) for view in self.views}

    def expands(self, text: str) -> tuple[str, ...]:
        """Views that may give weight to tokens that are not in the text."""
        return head_class(self.head).expands(self, text)

    @property
    def encodes_queries(self) -> bool:
        """Whether queries need an encoder, not only their ids."""
        return head_class(self.head).encodes_queries(self.options)

    @property
    def includes_prompt(self) -> bool:
        """Whether all tokens of a text take part in the pooling."""
        return not (self.query_unpooled or self.document_unpooled)

    @property
    def expand_id(self) -> int:
        """The id that fills queries up to their maximal length; -1: none."""
        return head_class(self.head).expand_id(self.options)

    @property
    def roles_apart(self) -> bool:
        """Whether queries and documents cannot be encoded together."""
        return self.towers == "separate" or not self.encodes_queries

    @property
    def rules(self) -> tuple[sharding.Rule, ...]:
        """Partition rules of parameters that are not in `sharding.RULES`."""
        encoder = backbone(self.encoder.family).encoder
        return (*encoder.rules, *head_class(self.head).rules)


class Retriever(nnx.Module):
    """Encodes token ids into views."""

    def __init__(self, spec: RetrieverSpec, *, dtype=jnp.float32, rngs: nnx.Rngs):
        """Random float32 parameters; `dtype` is that of matrix products."""
        encoder = backbone(spec.encoder.family).encoder
        self.encoder = encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.head = head_class(spec.head)(spec, dtype=dtype, rngs=rngs)
        self.expand_id = spec.expand_id
        self.encodes_queries = spec.encodes_queries
        self.special_ids = spec.special_ids
        self.unpooled = spec.query_unpooled, spec.document_unpooled
        one = dataclasses.replace(spec, towers="shared")
        separate = spec.towers == "separate"
        self.query_tower = Retriever(one, dtype=dtype, rngs=rngs) if separate else None

    def __call__(
        self,
        texts: Texts,
        *,
        role=None,
        dropout_keys=None,
        remat="none",
        masking: Masking | None = None,
        masking_keys=None,
    ) -> Views:
        """Encodes a batch of texts.

        Args:
          texts: the batch.
          role: "query" if all are queries; "document" or None: those in `texts.query`.
          dropout_keys: a key for each text, [B] for each part; without, the model is
            deterministic.
          remat: what the backward pass recomputes, see `models.backbones.encoder`.
          masking: masks tokens of encoded texts with `masking_keys`, [B] for each part.

        Returns:
          The views of the texts, concatenated over parts; with `masking`, also a
          `Predicted` under `masking.PREDICTED`.

        Raises:
          ValueError: a model that encodes queries and documents separately gets both.
        """
        if texts.query is not None and (self.query_tower or not self.encodes_queries):
            raise ValueError("Encode queries and documents apart, each with its role.")
        if role == QUERY:
            if self.query_tower is not None:
                return self.query_tower(
                    texts,
                    role=role,
                    dropout_keys=dropout_keys,
                    remat=remat,
                    masking=masking,
                    masking_keys=masking_keys,
                )
            if not self.encodes_queries:
                mask = self._pooled(texts, role).mask
                return self.head.from_ids(texts.padded(texts.ids), texts.padded(mask))
            query = tuple(jnp.ones(len(ids_BL), bool) for ids_BL in texts.ids)
            texts = dataclasses.replace(texts, query=query)
        masked = None
        if masking is not None:
            size = self.encoder.config.vocab_size
            texts, masked = masking(texts, masking_keys, self.special_ids, size)
        attended = texts.mask
        if self.expand_id >= 0 and texts.query is not None:
            attended = tuple(map(self._unexpanded, texts.ids, texts.mask, texts.query))
        condenser = getattr(self.head, "condenser", None) if masked else None
        hidden_TD, batch = self.encoder.states(
            texts,
            attended=attended,
            dropout_keys=dropout_keys,
            remat=remat,
            early=condenser.early if condenser else 0,
        )
        word_embeddings_VD = self.encoder.embeddings.word.embedding[...]
        pooled = self._pooled(texts, role)
        views = self.head(hidden_TD, pooled, word_embeddings_VD)
        if masked is None:
            return views
        states = [hidden_TD]
        if condenser:
            states.append(condenser(hidden_TD, batch.kept[0], batch))
        found = [
            self.head.predicted(state_TD, texts, word_embeddings_VD, masked)
            for state_TD in states
        ]
        errors_B = sum(one.error_B for one in found)
        return views | {PREDICTED: dataclasses.replace(found[0], error_B=errors_B)}

    def _unexpanded(self, ids_BL, mask_BL, query_B) -> jax.Array:
        """The tokens but those behind a query's last one, which fill it up.

        The same id within a text is a token of it, as the mask token may be.
        """
        places_L = jnp.arange(ids_BL.shape[1])
        own_BL = mask_BL & (ids_BL != self.expand_id)
        last_B1 = jnp.where(own_BL, places_L, -1).max(axis=1, keepdims=True)
        return mask_BL & ((places_L <= last_B1) | ~query_B[:, None])

    def _pooled(self, texts: Texts, role) -> Texts:
        """The texts without the tokens that the pooling leaves out."""
        of_query, of_document = self.unpooled
        if not (of_query or of_document):
            return texts
        masks = []
        for i, mask_BL in enumerate(texts.mask):
            count: Any = of_query if role == QUERY else of_document
            if texts.query is not None:
                count = jnp.where(texts.query[i], of_query, of_document)[:, None]
            masks.append(mask_BL & (jnp.cumsum(mask_BL, axis=1) > count))
        return dataclasses.replace(texts, mask=tuple(masks))


def split(
    spec: RetrieverSpec, *, dtype=jnp.float32, weights_only: bool = False
) -> tuple[nnx.GraphDef, dict]:
    """The model's structure and its abstract parameters; allocates no memory.

    Args:
      dtype: of matrix products.
      weights_only: to encode texts: skips what only losses need.

    Returns:
      The graph definition, for `apply`, and a nested dict of `jax.ShapeDtypeStruct`.
    """
    graphdef, state = _split(spec, dtype, weights_only)
    return graphdef, nnx.to_pure_dict(state)


# A run asks for the same model many times.
@functools.lru_cache(maxsize=32)
def _split(spec: RetrieverSpec, dtype, weights_only: bool):
    model = shapes_of(lambda: Retriever(spec, dtype=dtype, rngs=nnx.Rngs(0)))
    if weights_only:
        model.set_attributes(weights_only=True, raise_if_not_found=False)
    return nnx.split(model)


def trained(spec: RetrieverSpec, params: dict) -> tuple[RetrieverSpec, dict]:
    """A model without what is for its training alone, see `Head.training_only`."""
    without = head_class(spec.head).training_only
    if not any(getattr(spec.options, name) for name in without):
        return spec, params
    options = dataclasses.replace(spec.options, **without)

    def kept(tower: dict) -> dict:
        head = {k: v for k, v in tower["head"].items() if k not in without}
        return tower | {"head": head}

    found = kept(params)
    if "query_tower" in found:
        found["query_tower"] = kept(found["query_tower"])
    return dataclasses.replace(spec, options=options), found


def fixed(spec: RetrieverSpec) -> dict:
    """A tree of bools: what is no parameter to be learned."""
    kinds = jax.tree.map(
        lambda leaf: leaf.replace(isinstance(leaf, layers.Fixed)),
        _split(spec, jnp.float32, False)[1],
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.to_pure_dict(kinds)


def init_params(spec: RetrieverSpec, seed: int) -> dict:
    """Random parameters as a nested dict; a pure function of (spec, seed).

    Separate towers start with the same ones.
    """
    # Operation by operation on the host: as one program, a GPU's compiler needs most of
    # a minute for them.
    with _on_host():
        one = dataclasses.replace(spec, towers="shared")
        model = Retriever(one, rngs=nnx.Rngs(seed))
        params = nnx.to_pure_dict(nnx.state(model))
    return params if spec.towers == "shared" else with_query_tower(params)


def _on_host():
    """A context in which arrays are created on the CPU, if JAX has it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return contextlib.nullcontext()


def with_query_tower(params: dict, query: dict | None = None) -> dict:
    """The parameters of separate towers; without `query`, both are the same."""
    # Copies, since a training step donates each array.
    query = jax.tree.map(jnp.copy, params) if query is None else query
    return params | {QUERY_TOWER: query}


def towers_of(params: dict) -> tuple[dict, dict | None]:
    """The parameters of the document tower and, if it is separate, the query tower."""
    document = {key: value for key, value in params.items() if key != QUERY_TOWER}
    return document, params.get(QUERY_TOWER)


def after_step(params: dict, fired: dict[str, jax.Array]) -> dict:
    """Updates what a step counts instead of learning, in each tower."""
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
    masking: Masking | None = None,
    masking_keys=None,
) -> Views:
    """Encodes `{"ids": [B, L], "mask": [B, L], "query": [B]}` with these parameters.

    `query` is true for queries; leave it out if there are none, or if `role` ("query"
    or "document") is that of all texts. Several such parts, each of its own length, are
    encoded together. See `Retriever.__call__`.
    """
    parts = [texts] if isinstance(texts, Mapping) else texts
    params = prompt_rows.to_compute(low_rank.to_compute(params))
    model = nnx.merge(graphdef, params)
    return model(
        Texts.of(parts),
        role=role,
        dropout_keys=dropout_keys,
        remat=remat,
        masking=masking,
        masking_keys=masking_keys,
    )
