"""The loss that tells a document's query from other documents."""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.contrast import OnePositive, same_text
from lsrjax.losses.loss import RANKED, Loss
from lsrjax.models.views import Views, score_all, score_groups


def passage_centric(
    own_B: jax.Array,
    others_BN: jax.Array,
    temperature: float = 1.0,
    excluded_BN: jax.Array | None = None,
) -> jax.Array:
    """Cross entropy of a positive's query among the query and other documents.

    The passage-centric term of PAIR (Ren et al. 2021, arXiv 2108.06027), which has it
    with the weight 0.1 beside 0.9 of the query-centric one (`infonce`): a positive's
    score with its query is above those with negatives.

    Args:
      own_B: scores of each positive with its query.
      others_BN: scores of each positive with every document of the batch, of which
        document `b * N / B` is itself, which is left out.
      temperature: divides the scores.
      excluded_BN: documents that are no negatives of a positive.
    """
    B, N = others_BN.shape
    itself_BN = jnp.arange(N)[None, :] == (jnp.arange(B) * (N // B))[:, None]
    if excluded_BN is not None:
        itself_BN |= excluded_BN
    logits_BN = jnp.where(itself_BN, -jnp.inf, others_BN / temperature)
    own_B1 = own_B[:, None] / temperature
    logits_BM = jnp.concatenate([own_B1, logits_BN], axis=1)
    return (jax.nn.logsumexp(logits_BM, axis=1) - own_B1[:, 0]).mean()


def _positives(queries: Views, documents: Views) -> Views:
    """The first document of each query's group, scored as a query."""
    B = len(jax.tree.leaves(queries)[0])
    return {
        name: dataclasses.replace(
            jax.tree.map(
                lambda leaf: leaf.reshape(B, -1, *leaf.shape[1:])[:, 0],
                documents[name],
            ),
            scale=query.scale,
        )
        for name, query in queries.items()
    }


def _passage_centric_of_views(views, targets, options) -> dict[str, jax.Array]:
    queries, documents = views["query"], views["document"]
    positives = _positives(queries, documents)
    # MaxSim depends on the order: both scores are sums over the positive's tokens.
    own_B = score_groups(positives, queries)[:, 0]
    others_BN = score_all(positives, documents)
    excluded_BN = None
    if options.mask_same_text:
        excluded_BN = same_text(targets["query_key"], targets["document_key"])
    loss = passage_centric(own_B, others_BN, options.temperature, excluded_BN)
    return {"passage_centric": loss}


ENTRY = Loss(_passage_centric_of_views, RANKED, (), OnePositive)
