"""A retriever: an encoder, and a head that turns its hidden states into views."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax import reps
from lsrjax.models.encoder import Encoder, EncoderConfig
from lsrjax.models.heads import HEADS


@dataclasses.dataclass(frozen=True)
class RetrieverSpec:
    """Everything that fixes a retriever's parameters and its computation.

    Attributes:
      head: a name in `lsrjax.models.heads.HEADS`.
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

    def to_dict(self) -> dict:
        """As JSON-serialisable values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RetrieverSpec":
        """The spec that `to_dict` wrote."""
        values = dict(values)
        values["encoder"] = EncoderConfig(**values["encoder"])
        values["special_ids"] = tuple(values["special_ids"])
        return cls(**values)

    @property
    def views(self) -> dict[str, int]:
        """The views and the sizes of their vocabularies, in index order."""
        if self.head == "splade":
            return {"terms": self.encoder.vocab_size}
        views = {"pivot": self.pivot_vocab_size}
        if self.lexecho:
            views["source"] = self.encoder.vocab_size
        return views


class Retriever(nnx.Module):
    """Encodes token ids into views."""

    def __init__(self, spec: RetrieverSpec, *, dtype=jnp.float32, rngs: nnx.Rngs):
        """Random parameters (float32); `dtype` is what matrix products run in."""
        self.encoder = Encoder(spec.encoder, dtype=dtype, rngs=rngs)
        self.head = HEADS[spec.head](spec, dtype=dtype, rngs=rngs)

    def __call__(self, ids_BL, mask_BL, *, dropout_key=None) -> reps.Views:
        """Encodes a batch of texts.

        Args:
          ids_BL: token ids.
          mask_BL: 1 at tokens, 0 at padding.
          dropout_key: a key for dropout; without one the model is deterministic.
        """
        hidden_BLD = self.encoder(ids_BL, mask_BL, dropout_key=dropout_key)
        word_embeddings_VD = self.encoder.embeddings.word.embedding[...]
        return self.head(hidden_BLD, ids_BL, mask_BL, word_embeddings_VD)


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


def apply(graphdef: nnx.GraphDef, params: dict, text: dict, *, dropout_key=None):
    """Encodes `text = {"ids": [B, L], "mask": [B, L]}` with the given parameters."""
    model = nnx.merge(graphdef, params)
    return model(text["ids"], text["mask"], dropout_key=dropout_key)
