"""A retriever: an encoder, and a head that turns its hidden states into views."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax import reps, sharding
from lsrjax.models.encoder import Encoder, EncoderConfig
from lsrjax.models.heads import head_class


@dataclasses.dataclass(frozen=True)
class RetrieverSpec:
    """Everything that fixes a retriever's parameters and its computation.

    Attributes:
      head: a name in `lsrjax.models.heads.HEADS`, or a dotted one.
      encoder: the encoder's sizes.
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

    def expands(self, text: str) -> tuple[str, ...]:
        """Views that may weigh tokens of the encoder which a text does not have."""
        return head_class(self.head).expands(self, text)

    @property
    def rules(self) -> tuple[sharding.Rule, ...]:
        """Where parameters lie that the table of `lsrjax.sharding` does not know."""
        return head_class(self.head).rules


class Retriever(nnx.Module):
    """Encodes token ids into views."""

    def __init__(self, spec: RetrieverSpec, *, dtype=jnp.float32, rngs: nnx.Rngs):
        """Random parameters (float32); `dtype` is what matrix products run in."""
        self.encoder = Encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.head = head_class(spec.head)(spec, dtype=dtype, rngs=rngs)
        self.expand_id = spec.expand_id

    def __call__(
        self, ids_BL, mask_BL, *, query_B=None, dropout_keys_B=None, remat="none"
    ) -> reps.Views:
        """Encodes a batch of texts.

        Args:
          ids_BL: token ids.
          mask_BL: 1 at tokens, 0 at padding.
          query_B: true for queries; None: there are none.
          dropout_keys_B: a key for each text; without, the model is deterministic.
          remat: what the backward pass computes again, see `lsrjax.models.encoder`.
        """
        attended_BL = mask_BL
        if self.expand_id >= 0:
            attended_BL = mask_BL.astype(bool) & (ids_BL != self.expand_id)
        hidden_BLD = self.encoder(
            ids_BL,
            mask_BL,
            attended_BL=attended_BL,
            dropout_keys_B=dropout_keys_B,
            remat=remat,
        )
        word_embeddings_VD = self.encoder.embeddings.word.embedding[...]
        return self.head(hidden_BLD, ids_BL, mask_BL, word_embeddings_VD, query_B)


def split(spec: RetrieverSpec, *, dtype=jnp.float32) -> tuple[nnx.GraphDef, dict]:
    """The model's structure and its abstract parameters (no memory is taken).

    Returns:
      The graph definition, for `apply`, and a nested dict of `jax.ShapeDtypeStruct`.
    """
    model = nnx.eval_shape(lambda: Retriever(spec, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def init_params(spec: RetrieverSpec, seed: int) -> dict:
    """Random parameters as a nested dict; a pure function of (spec, seed)."""

    @jax.jit
    def init():
        model = Retriever(spec, rngs=nnx.Rngs(seed))
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    return init()


def apply(
    graphdef: nnx.GraphDef,
    params: dict,
    text: dict,
    *,
    dropout_keys_B=None,
    remat="none",
) -> reps.Views:
    """Encodes `{"ids": [B, L], "mask": [B, L], "query": [B]}` with these parameters.

    `query` is true for queries; it may be left out where there are none.
    """
    model = nnx.merge(graphdef, params)
    return model(
        text["ids"],
        text["mask"],
        query_B=text.get("query"),
        dropout_keys_B=dropout_keys_B,
        remat=remat,
    )


def apply_batch(
    graphdef: nnx.GraphDef,
    params: dict,
    texts: dict,
    counts: dict[str, int],
    *,
    chunk: int = 0,
    remat: str = "none",
    dropout_key: jax.Array | None = None,
) -> dict[str, reps.Views]:
    """Encodes the texts of a batch, cut as `lsrjax.data.shapes.cut` does.

    Args:
      graphdef: of the model.
      params: of the model.
      texts: `{"parts", "place", "text"}` of every device, laid end to end. A device's
        texts are ordered by name, then by example.
      counts: texts of an example, by name, in order.
      chunk: texts that a device encodes at a time; for more, the encoding is computed
        again in the backward pass. 0: all at once, nothing again.
      remat: what the backward pass computes again, see `lsrjax.models.encoder`.
      dropout_key: with one, what is dropped of a text depends on its name and place in
        the batch, not on how the batch is cut. Without one nothing is dropped.

    Returns:
      By name, the views of the texts in the order of the examples.
    """
    devices = sharding.axis_size(sharding.DATA)
    place_dn, text_dn = (texts[k].reshape(devices, -1) for k in ("place", "text"))
    number_dn = _numbers(devices, place_dn.shape[1], counts)
    query_dn = _are_queries(devices, place_dn.shape[1], counts)
    pieces, first = [], 0
    for part in texts["parts"]:
        last = first + len(part["ids"]) // devices
        keys_B = None
        if dropout_key is not None:
            chosen_dn = jnp.take_along_axis(number_dn, text_dn[:, first:last], axis=1)
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
                dropout_key, chosen_dn.reshape(-1)
            )
        query_B = jnp.take_along_axis(query_dn, text_dn[:, first:last], axis=1)
        part = part | {"query": query_B.reshape(-1)}
        pieces.append(_apply_part(graphdef, params, part, keys_B, chunk, remat))
        first = last
    views = {
        name: _in_order([piece[name] for piece in pieces], place_dn, text_dn)
        for name in pieces[0]
    }
    return _by_name(views, devices, counts)


def tokens_of(
    texts: dict, counts: dict[str, int]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The token ids of a batch's texts and their mask, [B, L] each, by name.

    Args:
      texts: as `apply_batch` takes them.
      counts: texts of an example, by name, in order.
    """
    devices = sharding.axis_size(sharding.DATA)
    place_dn, text_dn = (texts[k].reshape(devices, -1) for k in ("place", "text"))
    pieces = [(part["ids"], part["mask"]) for part in texts["parts"]]
    return _by_name(_in_order(pieces, place_dn, text_dn), devices, counts)


def _numbers(devices: int, n: int, counts: dict[str, int]) -> jax.Array:
    """A number for each text of each device, [devices, n]: by name, then by example."""
    examples = n // sum(counts.values())
    numbers, first = [], 0
    for count in counts.values():
        total = devices * examples * count
        numbers.append(first + jnp.arange(total).reshape(devices, -1))
        first += total
    return jnp.concatenate(numbers, axis=1)


def _are_queries(devices: int, n: int, counts: dict[str, int]) -> jax.Array:
    """Whether each text of each device is a query, [devices, n]."""
    examples = n // sum(counts.values())
    of_one = [
        jnp.full((devices, examples * count), name == "query")
        for name, count in counts.items()
    ]
    return jnp.concatenate(of_one, axis=1)


def _by_name(views: reps.Views, devices: int, counts: dict[str, int]):
    found, first, total = {}, 0, sum(counts.values())
    for name, count in counts.items():

        def of(x, first=first, last=first + count):
            examples = len(x) // devices // total
            x = x.reshape(devices, examples * total, *x.shape[1:])
            x = x[:, first * examples : last * examples]
            return x.reshape(-1, *x.shape[2:])

        found[name] = jax.tree.map(of, views)
        first += count
    return found


def _apply_part(graphdef, params, part, keys_B, chunk: int, remat: str) -> reps.Views:
    """`apply`, `chunk` texts of each device at a time."""
    devices = sharding.axis_size(sharding.DATA)
    count = len(part["ids"]) // devices

    def encode(text_and_keys):
        text, keys_B = text_and_keys
        return apply(graphdef, params, text, dropout_keys_B=keys_B, remat=remat)

    if not chunk or chunk >= count:
        return encode((part, keys_B))
    chunks = math.ceil(count / chunk)

    def divide(x):
        """[devices * count, ...] to [chunks, devices * chunk, ...], filled up."""
        x = x.reshape(devices, count, *x.shape[1:])
        extra = chunks * chunk - count
        # Texts are filled up with copies of a device's first one, which are cut off.
        x = jnp.concatenate([x, jnp.repeat(x[:, :1], extra, axis=1)], axis=1)
        x = x.reshape(devices, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(chunks, devices * chunk, *x.shape[3:])

    def join(x):
        x = x.reshape(chunks, devices, chunk, *x.shape[2:]).swapaxes(0, 1)
        x = x.reshape(devices, chunks * chunk, *x.shape[3:])[:, :count]
        return x.reshape(devices * count, *x.shape[2:])

    views = jax.lax.map(jax.checkpoint(encode), jax.tree.map(divide, (part, keys_B)))
    return jax.tree.map(join, views)


def _in_order(pieces: list[reps.View], place_dn, text_dn):
    """The parts' views as one, every device's texts in their order."""
    devices = len(place_dn)

    def join(*leaves):
        # Of shorter texts, bags hold fewer terms and multi-vectors fewer tokens.
        widest = max(leaf.shape[1] for leaf in leaves)
        rows_dn = jnp.concatenate(
            [
                jnp.pad(
                    leaf,
                    ((0, 0), (0, widest - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)),
                ).reshape(devices, -1, widest, *leaf.shape[2:])
                for leaf in leaves
            ],
            axis=1,
        )
        in_order_dn = jax.vmap(_permuted)(rows_dn, place_dn, text_dn)
        return in_order_dn.reshape(-1, *in_order_dn.shape[2:])

    return jax.tree.map(join, *pieces)


@jax.custom_vjp
def _permuted(x_n, place_n, text_n):
    """`x[place]`, whose gradient is a gather too: `text` is the inverse of `place`."""
    return x_n[place_n]


def _permuted_fwd(x_n, place_n, text_n):
    return x_n[place_n], text_n


def _permuted_bwd(text_n, g_n):
    return g_n[text_n], None, None


_permuted.defvjp(_permuted_fwd, _permuted_bwd)
