"""MILCO's first stage: the student's logits imitate an English teacher's."""

import jax
import jax.numpy as jnp

from lsrjax.losses.loss import PAIR, Loss
from lsrjax.models.views import Vector, Views


def alignment(raw_BV: jax.Array, teacher_raw_BV: jax.Array) -> jax.Array:
    """MILCO's sparse alignment: MSE of raw pooled logits where either is positive.

    `sum(mask * (r - t)^2) / max(sum(mask), 1)` with `mask = (r > 0) | (t > 0)`; one
    mean over the whole batch, no log, no relu (MILCO, ICLR 2026, stage 1). The frozen
    teacher reads the English text.
    """
    mask_BV = (raw_BV > 0) | (teacher_raw_BV > 0)
    squared_BV = jnp.where(mask_BV, jnp.square(raw_BV - teacher_raw_BV), 0.0)
    return squared_BV.sum() / jnp.maximum(mask_BV.sum(), 1)


def _alignment_of_views(views, targets, options) -> dict[str, jax.Array]:
    (teacher,) = targets["teacher"]["teacher"].values()
    return {
        name: alignment(_pivot(views[name]).raw_BV, teacher.raw_BV)
        for name in ("translation", "english")
    }


def _pivot(views: Views) -> Vector:
    """The vectors over the teacher's vocabulary: of several, the first."""
    return next(view for view in views.values() if isinstance(view, Vector))


ENTRY = Loss(_alignment_of_views, PAIR, ("views",), needs="logits")
