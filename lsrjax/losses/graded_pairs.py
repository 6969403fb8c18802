"""Losses over pairs of texts with labels of their similarity.

All pairs of a batch are compared: those of a query and any of its documents. Labels
are read as the rows' scores (docs/training.md, "Graded labels").
"""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.loss import RANKED, Loss, RankedOptions
from lsrjax.models.views import Dense, Views, score_groups
from lsrjax.options import option

SIMILARITIES = ("cosine", "score")


def cosent(
    similarity_P: jax.Array, labels_P: jax.Array, temperature: float
) -> jax.Array:
    """log(1 + sum of exp((s_j - s_i) / T)), over pairs i of a higher label than j.

    CoSENT (Su 2022; Huang et al. 2024), for P pairs of texts.
    """
    higher_PP = labels_P[:, None] > labels_P[None, :]
    steps_PP = (similarity_P[None, :] - similarity_P[:, None]) / temperature
    steps_PP = jnp.where(higher_PP, steps_PP, -jnp.inf)
    return jax.nn.logsumexp(jnp.append(steps_PP, 0.0))


def cosine(queries: Views, documents: Views) -> jax.Array:
    """Scores of each query with its G documents over the roots of their own, [B, G].

    A text's own score is that with itself. So of vectors it is the cosine, of views of
    tokens MaxSim divided by the geometric mean of both texts' with themselves. 0 if a
    text's own score is 0.
    """
    scaled = {
        name: dataclasses.replace(documents[name], scale=query.scale)
        for name, query in queries.items()
    }
    own_B1, own_N1 = score_groups(queries, queries), score_groups(scaled, scaled)
    scores_BG = score_groups(queries, documents)
    squares_BG = own_B1 * own_N1.reshape(scores_BG.shape)
    known_BG = squares_BG > 0
    # Also where it is not used, the gradient is finite.
    root_BG = jnp.sqrt(jnp.where(known_BG, squares_BG, 1.0))
    return jnp.where(known_BG, scores_BG / root_BG, 0.0)


def angle_similarity(queries: Views, documents: Views) -> jax.Array:
    """The similarity of AnglE of each query with its G documents, [B, G].

    Li and Li 2023, arXiv 2309.12871, as their code has it: with the halves of an
    embedding as the real and imaginary parts of complex numbers, the absolute sum of
    the real and the imaginary part of the product of one with the other's conjugate,
    both of length 1. An embedding of odd size has a 0 added.
    """
    queries, documents = _of_even_size(queries), _of_even_size(documents)
    turned: Views = {}
    for name, view in documents.items():
        assert isinstance(view, Dense)  # what the loss needs of a head
        first_Nd, last_Nd = jnp.split(view.embedding_BD, 2, axis=1)
        turned_ND = jnp.concatenate([-last_Nd, first_Nd], axis=1)
        turned[name] = dataclasses.replace(view, embedding_BD=turned_ND)
    return jnp.abs(cosine(queries, documents) + cosine(queries, turned))


def _of_even_size(views: Views) -> Views:
    found: Views = {}
    for name, view in views.items():
        assert isinstance(view, Dense)
        odd = view.embedding_BD.shape[1] % 2
        padded_BD = jnp.pad(view.embedding_BD, ((0, 0), (0, odd)))
        found[name] = dataclasses.replace(view, embedding_BD=padded_BD)
    return found


@dataclasses.dataclass(frozen=True)
class PairOptions(RankedOptions):
    """Of losses over graded pairs."""

    temperature: float = option(0.05, "similarities are divided by it", above=0)


@dataclasses.dataclass(frozen=True)
class CosentOptions(PairOptions):
    """Of `cosent`."""

    similarity: str = option(
        "cosine",
        "of two texts: cosine (of late interaction: MaxSim over the geometric mean of"
        " each text's with itself) or score",
        choices=SIMILARITIES,
    )


def _cosent_of_views(views, targets, options) -> dict[str, jax.Array]:
    measure = cosine if options.similarity == SIMILARITIES[0] else score_groups
    similarity_BG = measure(views["query"], views["document"])
    return {"cosent": _of_labels(similarity_BG, targets, options)}


def _angle_of_views(views, targets, options) -> dict[str, jax.Array]:
    """The objective of `cosent` with AnglE's similarity of embeddings."""
    similarity_BG = angle_similarity(views["query"], views["document"])
    return {"angle": _of_labels(similarity_BG, targets, options)}


def _of_labels(similarity_BG, targets, options) -> jax.Array:
    labels_P = targets["scores"].ravel()
    return cosent(similarity_BG.ravel(), labels_P, options.temperature)


COSENT = Loss(
    _cosent_of_views, RANKED, ("scores",), CosentOptions, compares_queries=True
)
ANGLE = Loss(
    _angle_of_views,
    RANKED,
    ("scores",),
    PairOptions,
    needs="embedding",
    compares_queries=True,
)
