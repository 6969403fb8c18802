"""Losses over lists of documents with grades of relevance, one list for each query.

Grades are read as the rows' scores (docs/training.md, "Graded labels").
"""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.distributed.sharding import constrain
from lsrjax.losses.contrast import same_text
from lsrjax.losses.loss import RANKED, Loss, RankedOptions
from lsrjax.models.views import score_all, score_groups
from lsrjax.options import option

# Finite, so that an excluded document's probability of 0 times it is 0.
_EXCLUDED = -1e30
# Of the square root's argument, whose gradient is infinite at 0.
_ROOT_EPS = 1e-15


def listnet(
    scores_BN: jax.Array,
    grades_BN: jax.Array,
    temperature: float = 1.0,
    grade_temperature: float = 1.0,
) -> jax.Array:
    """Cross entropy of softmaxes of grades and of scores, mean over queries.

    The probabilities of each document to be the first (ListNet's top one, Cao et al.
    2007). Its gradient is that of the KL divergence.
    """
    target_BN = jax.nn.softmax(grades_BN / grade_temperature, axis=1)
    student_BN = jax.nn.log_softmax(scores_BN / temperature, axis=1)
    return -(target_BN * student_BN).sum(axis=1).mean()


def wasserstein(
    scores_BN: jax.Array,
    grades_BN: jax.Array,
    temperature: float = 1.0,
    grade_temperature: float = 1.0,
) -> jax.Array:
    """Squared 2-Wasserstein distance between softmaxes of scores and of grades.

    Between two normal distributions over N documents, with the means and covariances
    of the queries' probabilities (SyCL, Esfandiarpoor et al. 2025, arXiv 2503.23239):
    `|m - n|^2 + tr(S + T - 2 (S^1/2 T S^1/2)^1/2)`. With `S = X X^t` and `T = Y Y^t`,
    the trace of that root is the sum of the singular values of `X^t Y`, which has the
    size of the batch (Mathiasen and Hvilshøj 2020, arXiv 2009.14075).
    """
    B = len(scores_BN)
    student_BN = jax.nn.softmax(scores_BN / temperature, axis=1)
    target_BN = jax.nn.softmax(grades_BN / grade_temperature, axis=1)
    student_N, target_N = student_BN.mean(axis=0), target_BN.mean(axis=0)
    spread = max(B - 1, 1) ** 0.5
    X_BN, Y_BN = (student_BN - student_N) / spread, (target_BN - target_N) / spread
    product_BB = jnp.matmul(X_BN, Y_BN.T, precision=jax.lax.Precision.HIGHEST)
    singular_B = jnp.linalg.svd(constrain(product_BB, None, None), compute_uv=False)
    root = jnp.sqrt(jnp.square(singular_B) + _ROOT_EPS).sum()
    means = jnp.square(student_N - target_N).sum()
    return means + jnp.square(X_BN).sum() + jnp.square(Y_BN).sum() - 2 * root


@dataclasses.dataclass(frozen=True)
class GradedOptions(RankedOptions):
    """Of losses over graded lists."""

    temperature: float = option(1.0, "scores are divided by it", above=0)
    grade_temperature: float = option(1.0, "grades are divided by it", above=0)


@dataclasses.dataclass(frozen=True)
class ListNetOptions(GradedOptions):
    """Of `listnet`."""

    in_batch: bool = option(
        False,
        "a list has the documents of other queries, too, with the grade 0; texts equal"
        " to the first document, and those of the same query, are left out",
    )

    def targets(self) -> tuple[str, ...]:
        """The texts' identities, if the list is the batch."""
        return ("keys",) * self.in_batch


def _in_batch(views, targets) -> tuple[jax.Array, jax.Array]:
    """Scores and grades of all documents of the batch, [B, N].

    A query's own documents are never left out.
    """
    scores_BN = score_all(views["query"], views["document"])
    grades_BG = targets["scores"]
    B, G = grades_BG.shape
    own_BB1 = jnp.eye(B, dtype=bool)[:, :, None]
    grades_BN = jnp.where(own_BB1, grades_BG[None], 0.0).reshape(B, B * G)
    equal_BN = same_text(targets["query_key"], targets["document_key"])
    excluded_BN = equal_BN & ~jnp.repeat(own_BB1[:, :, 0], G, axis=1)
    scores_BN = jnp.where(excluded_BN, _EXCLUDED, scores_BN)
    return scores_BN, jnp.where(excluded_BN, _EXCLUDED, grades_BN)


def _listnet_of_views(views, targets, options) -> dict[str, jax.Array]:
    if options.in_batch:
        lists = _in_batch(views, targets)
    else:
        scores_BG = score_groups(views["query"], views["document"])
        lists = scores_BG, targets["scores"]
    loss = listnet(*lists, options.temperature, options.grade_temperature)
    return {"listnet": loss}


def _wasserstein_of_views(views, targets, options) -> dict[str, jax.Array]:
    lists = _in_batch(views, targets)
    loss = wasserstein(*lists, options.temperature, options.grade_temperature)
    return {"wasserstein": loss}


LISTNET = Loss(_listnet_of_views, RANKED, ("scores",), ListNetOptions)
WASSERSTEIN = Loss(_wasserstein_of_views, RANKED, ("scores", "keys"), GradedOptions)
