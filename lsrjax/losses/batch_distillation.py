"""Losses that compare all queries and documents of a batch as a teacher scores them.

The teacher encodes the batch's English texts with its own tokenizer, so every document
is compared for every query, not only a query's own group (the in-batch half of TAS-B's
dual supervision, Hofstätter et al. 2021, arXiv 2104.06967). A relevant document of
another query is no false negative here: the teacher says how relevant it is.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.contrast import check_several
from lsrjax.losses.distillation import KLOptions, MarginMSEOptions, kl_by_query
from lsrjax.losses.loss import RANKED, Loss
from lsrjax.models.views import score_all


def batch_margin_mse(
    scores_BN: jax.Array, teacher_scores_BN: jax.Array, margins: str = "positive"
) -> jax.Array:
    """Squared error of score differences over all documents of the batch.

    `((s_i - s_j) - (t_i - t_j))^2`, mean over queries and pairs of documents. Document
    `b * N / B` is query b's positive. The margins "positive" compare it with each of
    the N - 1 others, "all" every pair; N >= 2.
    """
    return batch_margin_mse_by_query(scores_BN, teacher_scores_BN, margins).mean()


def batch_margin_mse_by_query(
    scores_BN: jax.Array, teacher_scores_BN: jax.Array, margins: str
) -> jax.Array:
    """`batch_margin_mse` of each query, [B]."""
    B, N = scores_BN.shape
    errors_BN = scores_BN - teacher_scores_BN
    if margins == "positive":
        own_B = jnp.diagonal(errors_BN[:, :: N // B])
        return jnp.square(own_B[:, None] - errors_BN).sum(axis=1) / (N - 1)
    # The squares of all differences add up to 2 N times those from the mean.
    from_mean_BN = errors_BN - errors_BN.mean(axis=1, keepdims=True)
    return 2 * jnp.square(from_mean_BN).sum(axis=1) / (N - 1)


@dataclasses.dataclass(frozen=True)
class BatchKLOptions(KLOptions):
    """Of `batch_kl`."""

    def check_stage(self, stage, where: str) -> None:
        """Refuses a batch of one document."""
        check_several(stage, where)


@dataclasses.dataclass(frozen=True)
class BatchMarginMSEOptions(MarginMSEOptions):
    """Of `batch_margin_mse`."""

    def check_stage(self, stage, where: str) -> None:
        """Refuses a batch of one document."""
        check_several(stage, where)


def _batch_kl_of_views(views, targets, options) -> dict[str, jax.Array]:
    """`kl` over all documents of the batch, with a teacher's scores of them."""
    scores_BN = score_all(views["query"], views["document"])
    teacher_BN = options.teacher_scale * targets["all_scores"]
    return {"batch_kl": kl_by_query(scores_BN, teacher_BN, options.temperature)}


def _batch_margin_mse_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BN = score_all(views["query"], views["document"])
    teacher_BN = options.teacher_scale * targets["all_scores"]
    loss_B = batch_margin_mse_by_query(scores_BN, teacher_BN, options.margins)
    return {"batch_margin_mse": loss_B}


KL = Loss(_batch_kl_of_views, RANKED, ("all_scores",), BatchKLOptions, by_query=True)
MARGIN_MSE = Loss(
    _batch_margin_mse_of_views,
    RANKED,
    ("all_scores",),
    BatchMarginMSEOptions,
    by_query=True,
)
