"""Losses: functions of scores or of representations, averaged over the batch.

To add one: write it here with its source, and add a line to `LOSSES`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsrjax import reps


def alignment(raw_BV: jax.Array, teacher_raw_BV: jax.Array) -> jax.Array:
    """MILCO's sparse alignment: MSE of raw pooled logits where either is positive.

    `sum(mask * (r - t)^2) / max(sum(mask), 1)` with `mask = (r > 0) | (t > 0)`; one
    mean over the whole batch, no log, no relu (MILCO, ICLR 2026, stage 1).

    Args:
      raw_BV: the student's pooled logits.
      teacher_raw_BV: the frozen teacher's, on the English text.
    """
    mask_BV = (raw_BV > 0) | (teacher_raw_BV > 0)
    squared_BV = jnp.where(mask_BV, jnp.square(raw_BV - teacher_raw_BV), 0.0)
    return squared_BV.sum() / jnp.maximum(mask_BV.sum(), 1)


def kl(
    scores_BG: jax.Array, teacher_scores_BG: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """KL(softmax(teacher / T) || softmax(student / T)) * T^2, mean over queries.

    The softmax runs over each query's own group; no in-batch negatives (MILCO stage
    2; T^2 keeps the gradient's size, Hinton et al. 2015).
    """
    teacher_BG = jax.nn.log_softmax(teacher_scores_BG / temperature, axis=1)
    student_BG = jax.nn.log_softmax(scores_BG / temperature, axis=1)
    divergence_B = (jnp.exp(teacher_BG) * (teacher_BG - student_BG)).sum(axis=1)
    return divergence_B.mean() * temperature**2


def infonce(scores_BN: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Cross entropy of the positive among all documents of the batch.

    Document `b * N / B` is query b's positive, the rest of its group are hard
    negatives, the other groups in-batch negatives (van den Oord et al. 2018).
    """
    B, N = scores_BN.shape
    positives_B1 = (jnp.arange(B) * (N // B))[:, None]
    log_probs_BN = jax.nn.log_softmax(scores_BN / temperature, axis=1)
    return -jnp.take_along_axis(log_probs_BN, positives_B1, axis=1).mean()


def _alignment_of_views(views, targets) -> dict[str, jax.Array]:
    (teacher,) = targets["teacher"].values()
    return {
        name: alignment(_pivot(views[name]).raw_BV, teacher.raw_BV)
        for name in ("translation", "english")
    }


def _pivot(views: reps.Views) -> reps.Vector:
    (vector,) = (view for view in views.values() if isinstance(view, reps.Vector))
    return vector


def _kl_of_views(views, targets, temperature, teacher_scale) -> dict[str, jax.Array]:
    scores_BG = reps.score_groups(views["query"], views["document"])
    return {"kl": kl(scores_BG, teacher_scale * targets["scores"], temperature)}


def _infonce_of_views(views, targets, temperature) -> dict[str, jax.Array]:
    scores_BN = reps.score_all(views["query"], views["document"])
    return {"infonce": infonce(scores_BN, temperature)}


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of `LOSSES`.

    Attributes:
      fn: `(views by text, targets, **options) -> {part: scalar}`; the parts add up.
      texts: which texts of a batch the student encodes for it.
      target: what a teacher has to supply: "views" (its representations of the
        English text), "scores" (of each query's documents) or "" (nothing).
      options: the fields of `config.loss` that it reads.
    """

    fn: Callable[..., dict[str, jax.Array]]
    texts: tuple[str, ...]
    target: str
    options: tuple[str, ...] = ()


LOSSES: dict[str, Loss] = {
    "alignment": Loss(_alignment_of_views, ("translation", "english"), "views"),
    "kl": Loss(
        _kl_of_views, ("query", "document"), "scores", ("temperature", "teacher_scale")
    ),
    "infonce": Loss(_infonce_of_views, ("query", "document"), "", ("temperature",)),
}
