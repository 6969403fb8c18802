"""What heads return, and how two of them are scored.

A head turns a batch of texts into *views*: a dict from the view's name to one of
the representations below. SPLADE has the view `terms`, MILCO has `pivot` and, with
LexEcho, `source`, and with n-grams `surface`; dense retrievers have `dense`, ColBERT
has `tokens`. The score of a query and a document is the sum over views of the views'
scores. Losses use scores, regularizers use representations; nothing else of a model is
visible outside it.

Vectors are divided over `data` by texts and over `model` by terms. A vocabulary that
does not divide is padded with zeros, which no score or regularizer uses.

Axes: B queries, N documents, G documents of one query, V vocabulary, K kept terms,
L tokens (of a document: M), D dimensions of an embedding.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lsrjax.distributed.sharding import DATA, MODEL, axis_size, constrain

# Of 2^16 numbers below the first, or of any in float32 times the second, the sum of
# squares is far from infinite, and from what is treated as zero.
_LARGE, _SMALLER = 1e15, 2.0**-80


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vector:
    """A weight for every term of a vocabulary.

    Attributes:
      weights_BV: term weights, as scored and indexed.
      raw_BV: the values before the activation (for SPLADE the pooled logits), which
        the alignment loss compares.
      scale: of its score in the sum over views; that of the queries is used.
    """

    weights_BV: jax.Array
    raw_BV: jax.Array
    scale: float = dataclasses.field(
        default=1.0, kw_only=True, metadata={"static": True}
    )

    def score_all(self, documents: "Vector") -> jax.Array:
        """Dot products of every query with every document, [B, N]."""
        # There are fewer queries: they go to the devices of the documents.
        queries_BV = constrain(self.weights_BV, None, MODEL)
        return constrain(queries_BV @ documents.weights_BV.T, None, DATA)

    def score_groups(self, documents: "Vector") -> jax.Array:
        """Dot products of each query with its own group, [B, G]; N = B * G."""
        B, V = self.weights_BV.shape
        return jnp.einsum(
            "bv,bgv->bg", self.weights_BV, documents.weights_BV.reshape(B, -1, V)
        )

    def row_sums(self) -> jax.Array:
        """Sum of each text's weights, [B]."""
        return self.weights_BV.sum(axis=1)

    def column_means(self) -> jax.Array:
        """Mean over the batch of each term's weight, [V]."""
        return self.weights_BV.mean(axis=0)

    def active_terms(self) -> jax.Array:
        """Number of terms with a non-zero weight in each text, [B]."""
        return (self.weights_BV != 0).sum(axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Code(Vector):
    """A sparse code of an embedding: a weight for every latent of an autoencoder.

    Attributes:
      error_B1: mean squared error of its reconstruction.
      error_4k_B1: the same with four times as many active latents.
      rest_BD: the residual of the embedding that the dead latents reconstruct.
      error_dead_B1: mean squared error of theirs; 0 if none is dead.
    """

    error_B1: jax.Array
    error_4k_B1: jax.Array
    rest_BD: jax.Array
    error_dead_B1: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bag:
    """Weights of a few terms of a vocabulary; a repeated term counts as their sum.

    Attributes:
      weights_BK: their weights; 0 at padding.
      scale: of its score in the sum over views; that of the queries is used.
    """

    ids_BK: jax.Array
    weights_BK: jax.Array
    size: int = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})

    def score_all(self, documents: "Bag") -> jax.Array:
        """Sum of s_q * s_d over pairs of equal ids, [B, N]."""

        def one_query(query):
            ids_K, weights_K = query
            equal_NKJ = documents.ids_BK[:, None, :] == ids_K[None, :, None]
            return jnp.einsum(
                "k,nj,nkj->n",
                weights_K,
                documents.weights_BK,
                equal_NKJ.astype(weights_K.dtype),
            )

        # One query at a time: [B, N, K, K] would exceed the encoder's memory.
        queries = (
            constrain(self.ids_BK, None, None),
            constrain(self.weights_BK, None, None),
        )
        return jax.lax.map(jax.checkpoint(one_query), queries)

    def score_groups(self, documents: "Bag") -> jax.Array:
        """Sum of s_q * s_d over pairs of equal ids in each query's group, [B, G]."""
        # One query of each device at a time: [B, G, K, K] would exceed the encoder's
        # memory.
        shards = axis_size(DATA)

        def divided(x_NK):
            x_SBGK = x_NK.reshape(shards, len(self.ids_BK) // shards, -1, x_NK.shape[1])
            return x_SBGK.swapaxes(0, 1)

        def one_query(texts):
            (query_S1K, weights_S1K), (ids_SGJ, weights_SGJ) = texts
            equal_SGKJ = query_S1K[..., None] == ids_SGJ[:, :, None]
            return jnp.einsum(
                "sk,sgj,sgkj->sg",
                weights_S1K[:, 0],
                weights_SGJ,
                equal_SGKJ.astype(weights_SGJ.dtype),
            )

        texts = jax.tree.map(
            divided,
            ((self.ids_BK, self.weights_BK), (documents.ids_BK, documents.weights_BK)),
        )
        scores_BSG = jax.lax.map(jax.checkpoint(one_query), texts)
        return scores_BSG.swapaxes(0, 1).reshape(len(self.ids_BK), -1)

    def row_sums(self) -> jax.Array:
        """Sum of each text's weights, [B]."""
        return self.weights_BK.sum(axis=1)

    def column_means(self) -> jax.Array:
        """Mean over the batch of each term's weight, [size]."""
        sums_M = jnp.zeros(self.size, self.weights_BK.dtype)
        return sums_M.at[self.ids_BK].add(self.weights_BK) / self.ids_BK.shape[0]

    def active_terms(self) -> jax.Array:
        """Number of distinct terms with a non-zero weight in each text, [B]."""
        K = self.ids_BK.shape[1]
        active_BK = self.weights_BK != 0
        repeats_BKJ = (self.ids_BK[:, :, None] == self.ids_BK[:, None, :]) & active_BK[
            :, None, :
        ]
        earlier_KJ = jnp.tril(jnp.ones((K, K), bool), k=-1)
        first_BK = ~(repeats_BKJ & earlier_KJ).any(axis=2)
        return (active_BK & first_BK).sum(axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """One embedding of a text.

    Attributes:
      scale: as of `Bag`.
      unit: it has length 1, and so do its prefixes.
    """

    embedding_BD: jax.Array
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    unit: bool = dataclasses.field(default=False, metadata={"static": True})

    def prefix(self, size: int) -> "Dense":
        """The embedding of its first `size` numbers (Kusupati et al. 2022)."""
        x_BD = self.embedding_BD[:, :size]
        if self.unit:
            x_BD = normalized(x_BD)
        return dataclasses.replace(self, embedding_BD=x_BD)

    def score_all(self, documents: "Dense") -> jax.Array:
        """Dot products of every query with every document, [B, N]."""
        queries_BD = constrain(self.embedding_BD, None, None)
        return constrain(queries_BD @ documents.embedding_BD.T, None, DATA)

    def score_groups(self, documents: "Dense") -> jax.Array:
        """Dot products of each query with its own group, [B, G]; N = B * G."""
        B, D = self.embedding_BD.shape
        return jnp.einsum(
            "bd,bgd->bg", self.embedding_BD, documents.embedding_BD.reshape(B, -1, D)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MultiVector:
    """An embedding of each token, scored by late interaction.

    The score is the sum over the query's tokens of the largest dot product with a token
    of the document (MaxSim, Khattab and Zaharia 2020); 0 if the document has no token.

    Padding has a false `mask_BL`; `scale` as of `Bag`.
    """

    tokens_BLD: jax.Array
    mask_BL: jax.Array
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})

    def score_all(self, documents: "MultiVector") -> jax.Array:
        """MaxSim of every query with every document, [B, N]."""

        def one_query(query):
            tokens_LD, mask_L = query
            products_NLM = jnp.einsum("ld,nmd->nlm", tokens_LD, documents.tokens_BLD)
            return _max_sim(products_NLM, mask_L[None], documents.mask_BL)

        # One query at a time: [B, N, L, M] would exceed the encoder's memory.
        queries = (
            constrain(self.tokens_BLD, None, None, None),
            constrain(self.mask_BL, None, None),
        )
        return jax.lax.map(jax.checkpoint(one_query), queries)

    def score_groups(self, documents: "MultiVector") -> jax.Array:
        """MaxSim of each query with its own group, [B, G]; N = B * G."""
        B = len(self.tokens_BLD)
        tokens_BGMD, mask_BGM = (
            x.reshape(B, -1, *x.shape[1:])
            for x in (documents.tokens_BLD, documents.mask_BL)
        )
        products_BGLM = jnp.einsum("bld,bgmd->bglm", self.tokens_BLD, tokens_BGMD)
        return _max_sim(products_BGLM, self.mask_BL[:, None], mask_BGM)


def _max_sim(products_xLM, mask_xL, mask_xM) -> jax.Array:
    """Sum over L of the maximum over M, within the masks."""
    lowest = jnp.finfo(products_xLM.dtype).min
    best_xL = jnp.where(mask_xM[..., None, :], products_xLM, lowest).max(axis=-1)
    keep_xL = mask_xL & mask_xM.any(axis=-1)[..., None]
    return jnp.where(keep_xL, best_xL, 0.0).sum(axis=-1)


View = Vector | Bag | Dense | MultiVector
Views = dict[str, View]

# Views with a weight for each term, which can be regularized and indexed.
SPARSE = (Vector, Bag)


def normalized(x) -> jax.Array:
    """Scales vectors of the last axis to length 1; zeros stay zeros."""
    # The squares of large ones would be infinite. A power of two changes no digit.
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=-1, keepdims=True))
    x = x * jnp.where(largest > _LARGE, _SMALLER, 1.0)
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def bad_weights(
    weights: tuple[float, ...], views: tuple[str, ...] = ("dense", "terms", "tokens")
) -> str | None:
    """What is wrong with weights of these views."""
    count = {2: "two", 3: "three"}[len(views)]
    if len(weights) == len(views) and all(w >= 0 for w in weights) and any(weights):
        return None
    named = f"{', '.join(views[:-1])} and {views[-1]}"
    return f"give {count} numbers >= 0, of the views {named}, one of them > 0"


def weighted(views: Views, scales: Iterable[float]) -> Views:
    """The views with the scales of their scores in the sum over views."""
    return {
        name: dataclasses.replace(view, scale=scale)
        for (name, view), scale in zip(views.items(), scales, strict=True)
    }


def score_all(queries: Views, documents: Views) -> jax.Array:
    """Scores of every query with every document, [B, N], summed over views."""
    return _sum(q.scale * q.score_all(d) for q, d in _paired(queries, documents))


def score_groups(queries: Views, documents: Views) -> jax.Array:
    """Scores of each query with its own G documents, [B, G], summed over views.

    Documents `b * G` to `b * G + G - 1` are the group of query `b`.
    """
    return _sum(q.scale * q.score_groups(d) for q, d in _paired(queries, documents))


def _paired(queries: Views, documents: Views) -> Iterator[tuple[Any, Any]]:
    """The queries and the documents of each view, which have one class."""
    return ((query, documents[name]) for name, query in queries.items())


def _sum(scores: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, scores)
