"""MILCO's first stage: the student's logits imitate an English teacher's."""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.loss import PAIR, Loss, LossOptions
from lsrjax.models.views import Vector, Views
from lsrjax.options import option


@dataclasses.dataclass(frozen=True)
class AlignmentOptions(LossOptions):
    """Of `alignment`."""

    below_zero: str = option(
        "kept",
        "raw logits below zero: kept | zero (0 on both sides, without a gradient, which"
        " padding makes of them in the reference)",
        choices=("kept", "zero"),
    )


def alignment(
    raw_BV: jax.Array, teacher_raw_BV: jax.Array, below_zero: str = "kept"
) -> jax.Array:
    """MILCO's sparse alignment: MSE of raw pooled logits where either is positive.

    `sum(mask * (r - t)^2) / max(sum(mask), 1)` with `mask = (r > 0) | (t > 0)`; one
    mean over the whole batch, no log, no relu (MILCO, ICLR 2026, stage 1). The frozen
    teacher reads the English text. In the reference, padded positions take part in the
    maximum as 0, so that the r and t of all texts but the longest of a batch are at
    least 0: `below_zero = "zero"`, of every text, whether it is padded or not.
    """
    if below_zero == "zero":
        raw_BV, teacher_raw_BV = jax.nn.relu(raw_BV), jax.nn.relu(teacher_raw_BV)
    mask_BV = (raw_BV > 0) | (teacher_raw_BV > 0)
    squared_BV = jnp.where(mask_BV, jnp.square(raw_BV - teacher_raw_BV), 0.0)
    return squared_BV.sum() / jnp.maximum(mask_BV.sum(), 1)


def _alignment_of_views(views, targets, options) -> dict[str, jax.Array]:
    (teacher,) = targets["teacher"]["teacher"].values()
    return {
        name: alignment(_pivot(views[name]).raw_BV, teacher.raw_BV, options.below_zero)
        for name in ("translation", "english")
    }


def _pivot(views: Views) -> Vector:
    """The vectors over the teacher's vocabulary: of several, the first."""
    return next(view for view in views.values() if isinstance(view, Vector))


ENTRY = Loss(_alignment_of_views, PAIR, ("views",), AlignmentOptions, needs="logits")
