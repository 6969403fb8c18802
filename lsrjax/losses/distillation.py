"""Losses that compare a query's group of documents with a teacher's scores."""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.data.batching.mixing import group_sizes
from lsrjax.errors import InputError
from lsrjax.losses.loss import RANKED, Loss, RankedOptions
from lsrjax.models.views import score_groups
from lsrjax.options import no_effect, option

# The pairs of documents that `margin_mse` compares.
MARGINS = ("positive", "all")


def kl(
    scores_BG: jax.Array, teacher_scores_BG: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """KL(softmax(teacher / T) || softmax(student / T)) * T^2, mean over queries.

    The softmax is over each query's own group, without in-batch negatives (MILCO stage
    2); T^2 keeps the gradient's size (Hinton et al. 2015).
    """
    return kl_by_query(scores_BG, teacher_scores_BG, temperature).mean()


def kl_by_query(
    scores_BG: jax.Array, teacher_scores_BG: jax.Array, temperature: float
) -> jax.Array:
    """`kl` of each query, [B]."""
    teacher_BG = jax.nn.log_softmax(teacher_scores_BG / temperature, axis=1)
    student_BG = jax.nn.log_softmax(scores_BG / temperature, axis=1)
    divergence_B = (jnp.exp(teacher_BG) * (teacher_BG - student_BG)).sum(axis=1)
    return divergence_B * temperature**2


def language_kl(
    scores_BG: jax.Array, languages: int, temperature: float = 1.0
) -> jax.Array:
    """Symmetric KL between a query's score distributions in two languages, times T^2.

    `(KL(p || q) + KL(q || p)) / 2` of softmaxes over the query's own group with
    temperature T; mean over pairs of different languages and over queries (after the
    language regularization of ColBERT-X, Yang et al. 2024). ColBERT-X also averages
    over the G documents and the diagonal of the pairs: its term is this one with the
    weight `(languages - 1) / ((languages + 1) G)`.

    Args:
      scores_BG: the student's: all queries in one language, all again in the next.
      languages: L, a divisor of B; >= 2.
      temperature: T.
    """
    log_BG = jax.nn.log_softmax(scores_BG / temperature, axis=1)
    log_LEG = log_BG.reshape(languages, -1, log_BG.shape[1])
    # KL(p || q) + KL(q || p) is the sum of (p - q) (log p - log q), every term >= 0.
    steps_LLEG = log_LEG[:, None] - log_LEG[None, :]
    p_LEG = jnp.exp(log_LEG)
    both_LLE = ((p_LEG[:, None] - p_LEG[None, :]) * steps_LLEG).sum(axis=-1)
    # Every pair is counted twice; the diagonal is zero.
    pairs = languages * (languages - 1)
    return both_LLE.mean(axis=-1).sum() / (2 * pairs) * temperature**2


def margin_mse(
    scores_BG: jax.Array, teacher_scores_BG: jax.Array, margins: str = "positive"
) -> jax.Array:
    """Squared error of score differences, mean over pairs and queries.

    `((s_i - s_j) - (t_i - t_j))^2` (Hofstätter et al. 2020, arXiv 2010.02666), with the
    positive's scores first and G >= 2. The margins "positive" compare each negative
    with the positive, "all" every pair of the group.
    """
    return margin_mse_by_query(scores_BG, teacher_scores_BG, margins).mean()


def margin_mse_by_query(
    scores_BG: jax.Array, teacher_scores_BG: jax.Array, margins: str
) -> jax.Array:
    """`margin_mse` of each query, [B]."""
    G = scores_BG.shape[1]
    errors_BG = scores_BG - teacher_scores_BG
    if margins == "positive":
        return jnp.square(errors_BG[:, :1] - errors_BG[:, 1:]).mean(axis=1)
    squared_BGG = jnp.square(errors_BG[:, :, None] - errors_BG[:, None, :])
    # Every pair is counted twice; the diagonal is zero.
    return squared_BGG.sum(axis=(1, 2)) / (G * (G - 1))


@dataclasses.dataclass(frozen=True)
class LanguageKLOptions(RankedOptions):
    """Of `language_kl`."""

    temperature: float = option(1.0, "of both softmaxes", above=0)


@dataclasses.dataclass(frozen=True)
class KLOptions(LanguageKLOptions):
    """Of `kl`."""

    teacher_scale: float = option(1.0, "multiplies the teacher's scores", above=0)


@dataclasses.dataclass(frozen=True)
class MarginMSEOptions(RankedOptions):
    """Of `margin_mse`."""

    teacher_scale: float = option(1.0, "multiplies the teacher's scores", above=0)
    margins: str = option(
        "positive",
        "of each other document to the positive: positive; of all pairs: all",
        choices=MARGINS,
    )

    def check_stage(self, stage, where: str) -> None:
        """Refuses a choice of margins if there is only one."""
        if self.margins != MARGINS[0] and set(group_sizes(stage.data)) == {2}:
            because = "data.group_size is 2: a query has a single margin"
            said = no_effect("margins", self.margins, because)
            raise InputError(f"{where}.{said}")


def _kl_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BG = score_groups(views["query"], views["document"])
    teacher_BG = options.teacher_scale * targets["scores"]
    return {"kl": kl_by_query(scores_BG, teacher_BG, options.temperature)}


def _language_kl_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BG = score_groups(views["query"], views["document"])
    loss = language_kl(scores_BG, targets["languages"], options.temperature)
    return {"language_kl": loss}


def _margin_mse_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BG = score_groups(views["query"], views["document"])
    teacher_BG = options.teacher_scale * targets["scores"]
    loss_B = margin_mse_by_query(scores_BG, teacher_BG, options.margins)
    return {"margin_mse": loss_B}


KL = Loss(_kl_of_views, RANKED, ("scores",), KLOptions, by_query=True)
LANGUAGE_KL = Loss(_language_kl_of_views, RANKED, ("languages",), LanguageKLOptions)
MARGIN_MSE = Loss(
    _margin_mse_of_views, RANKED, ("scores",), MarginMSEOptions, by_query=True
)
