"""Queries as bags of their own words, which need no encoder."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.models.layers import Head
from lsrjax.options import Options, option


@dataclasses.dataclass(frozen=True)
class QueryOptions(Options):
    """The option of heads whose queries may be bags of words."""

    queries: str = option(
        "encoded",
        "encoded | static (inference-free: a learned weight for each distinct word) |"
        " words (SPLADE-doc, DeepImpact: each weighs 1); neither is encoded",
        choices=("encoded", "static", "words"),
        when="ranking loss",
    )


class WordQueries(Head):
    """Base of heads over the encoder's vocabulary whose queries may be bags of words.

    With the option `queries` other than "encoded", a query is a bag of its own words
    without special tokens, and needs no encoder: each distinct word has its learned
    weight in `static` ("static": inference-free, Geng et al. 2024), or 1 ("words":
    SPLADE-doc, Formal et al. 2021; DeepImpact, Mallia et al. 2021).
    """

    @staticmethod
    def encodes_queries(options) -> bool:
        """Whether queries are more than bags of words."""
        return options.queries == "encoded"

    @staticmethod
    def learns_queries(options) -> bool:
        """Whether training affects queries, that is, unless each word weighs 1."""
        return options.queries != "words"

    def __init__(self, spec):
        """Adds `static`, the words' weights, if they are learned."""
        self.special_ids = spec.special_ids
        self.size = spec.encoder.vocab_size
        if spec.options.queries == "static":
            # Special tokens are not words: their zeros are never read or changed.
            special = jnp.asarray(spec.special_ids, jnp.int32)
            self.static = nnx.Param(jnp.ones(self.size).at[special].set(0))
        else:
            self.static = None

    def words(self, ids_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """Which tokens are words: neither padding nor special, [B, L] bool."""
        keep_BL = mask_BL.astype(bool)
        for special in self.special_ids:
            keep_BL &= ids_BL != special
        return keep_BL
