"""Embedding distillation: queries and documents take over a teacher's own vectors.

The teacher reads the English texts, so the vectors of a text in any language come near
that of its English wording (Reimers and Gurevych 2020, arXiv 2004.09813); with a MILCO
head and an English SPLADE, term by term.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.loss import RANKED, Loss, LossOptions
from lsrjax.models.views import Dense, Vector, Views
from lsrjax.options import option


def squared_distance(left_BD: jax.Array, right_BD: jax.Array) -> jax.Array:
    """Squared Euclidean distance of two vectors, [B].

    The MSELoss and SparseMSELoss of sentence-transformers are this over the vectors'
    size, which zeros at the end would change.
    """
    return jnp.square(left_BD - right_BD).sum(axis=1)


def cosine_distance(left_BD: jax.Array, right_BD: jax.Array) -> jax.Array:
    """One minus the cosine of two vectors, [B]; 1 if one is empty."""
    return 1 - (_unit(left_BD) * _unit(right_BD)).sum(axis=1)


def _unit(x_BD: jax.Array) -> jax.Array:
    squares_B1 = jnp.square(x_BD).sum(axis=1, keepdims=True)
    empty_B1 = squares_B1 == 0
    # An empty vector's gradient would be infinite.
    return jnp.where(empty_B1, 0.0, x_BD * jax.lax.rsqrt(squares_B1 + empty_B1))


DISTANCES = {"mse": squared_distance, "cosine": cosine_distance}


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions(LossOptions):
    """Of `embedding`."""

    distance: str = option(
        "mse",
        "to the teacher's vector: mse (summed over its numbers) | cosine",
        choices=tuple(DISTANCES),
    )


def _embedding_of_views(views, targets, options) -> dict[str, jax.Array]:
    """The distance of queries and documents to a teacher's vectors, means of each."""
    distance, found = DISTANCES[options.distance], {}
    B = len(_vectors(views["query"]))
    for text in RANKED:
        own, teacher = views[text], targets["teacher"][text]
        distances = distance(_vectors(own), _vectors(teacher))
        found[f"embedding_{text}"] = distances.reshape(B, -1).mean(axis=1)
    return found


def _vectors(views: Views) -> jax.Array:
    """The vectors of the view that has one for each text."""
    for view in views.values():
        if isinstance(view, Vector):
            return view.weights_BV
        if isinstance(view, Dense):
            return view.embedding_BD
    raise ValueError(f"None of the views {', '.join(views)} is one vector of a text.")


ENTRY = Loss(
    _embedding_of_views,
    RANKED,
    ("views",),
    EmbeddingOptions,
    needs="one vector",
    by_query=True,
)
