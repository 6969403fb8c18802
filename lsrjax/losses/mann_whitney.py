"""The loss that separates relevant from other scores, whatever the query."""

import jax
import jax.numpy as jnp

from lsrjax.losses.contrast import OnePositive, same_text
from lsrjax.losses.loss import RANKED, Loss
from lsrjax.models.views import score_all


def mann_whitney(
    scores_BN: jax.Array,
    temperature: float = 1.0,
    excluded_BN: jax.Array | None = None,
) -> jax.Array:
    """Mean of -log sigmoid((s+ - s-) / T) over positives and all the batch's negatives.

    A bound of the area over the ROC curve, which is the share of such pairs in the
    wrong order (Mann and Whitney's U): at least log 2 times it. Scores of different
    queries are compared, too (MW loss, Sheikholeslami et al. 2025, arXiv 2510.00137,
    whose formula for a batch sums over the negatives).

    Args:
      scores_BN: of every query and document; document `b * N / B` is query b's
        positive.
      temperature: T.
      excluded_BN: documents that are not negatives of a query; positives are kept.
    """
    B, N = scores_BN.shape
    G = N // B
    positives_B = jnp.diagonal(scores_BN[:, ::G])
    negative_BN = jnp.arange(N)[None, :] != (jnp.arange(B) * G)[:, None]
    if excluded_BN is not None:
        negative_BN &= ~excluded_BN

    def against(positive):
        wrong_BN = jax.nn.softplus((scores_BN - positive) / temperature)
        return jnp.where(negative_BN, wrong_BN, 0.0).sum()

    # One positive at a time: [B, B, N] would exceed the encoder's memory.
    sums_B = jax.lax.map(jax.checkpoint(against), positives_B)
    return sums_B.mean() / jnp.maximum(negative_BN.sum(), 1)


def _mann_whitney_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BN = score_all(views["query"], views["document"])
    excluded_BN = None
    if options.mask_same_text:
        excluded_BN = same_text(targets["query_key"], targets["document_key"])
    return {"mann_whitney": mann_whitney(scores_BN, options.temperature, excluded_BN)}


ENTRY = Loss(_mann_whitney_of_views, RANKED, (), OnePositive)
