"""Group DRO: groups of queries with a high loss count more in it.

The weights q of K groups are part of the train state and follow the exponentiated
gradient of their losses, so that the worst group's loss is minimized (Sagawa et al.
2020, arXiv 1911.08731, algorithm 1; for retrieval over clusters of queries COCO-DR, Yu
et al. 2022, arXiv 2210.15212, has a variant).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# The part of a train state: by group, [K], the logarithm of its weight ("log"), its
# loss when a batch had it last ("losses"), and whether one has had it, 0 or 1 ("seen").
KEY = "group_weights"


@dataclasses.dataclass(frozen=True)
class Weighed:
    """A batch weighed by its groups.

    Attributes:
      examples_B: each query's weight in the loss.
      state: the groups' part of the train state after the step.
      counts_K: the batch's queries in each group.
    """

    examples_B: jax.Array
    state: dict[str, jax.Array]
    counts_K: jax.Array

    def shown(self) -> dict[str, jax.Array]:
        """Scalars for the log."""
        return {
            "worst_group_loss": self.state["losses"].max(),
            "largest_group_weight": jnp.exp(self.state["log"]).max(),
        }

    def by_group(self) -> dict[str, jax.Array]:
        """Sums over each group's queries and their number, [2, K], by name."""
        sums_K = self.state["losses"] * self.counts_K
        weights_K = jnp.exp(self.state["log"]) * self.counts_K
        return {
            "loss": jnp.stack([sums_K, self.counts_K]),
            "group_weight": jnp.stack([weights_K, self.counts_K]),
        }


@dataclasses.dataclass(frozen=True)
class Groups:
    """Weighs `count` groups; `rate` is the step size of their weights."""

    count: int
    rate: float

    def init(self) -> dict[str, dict[str, jax.Array]]:
        """The part of a train state: equal weights; empty without groups."""
        if not self.count:
            return {}
        zeros = jnp.zeros(self.count, jnp.float32)
        seen = jnp.zeros(self.count, jnp.int32)
        return {
            KEY: {"log": zeros - jnp.log(self.count), "losses": zeros, "seen": seen}
        }

    def weigh(
        self, state: Mapping[str, Any], losses_B: jax.Array, group_B: jax.Array
    ) -> Weighed:
        """Updates the weights by a batch's losses, and weighs its queries by them.

        With m of K groups in the batch, the loss is `K / m * sum(q_g L_g)` over them,
        L_g the mean over a group's queries: with all groups that of Sagawa et al., with
        equal weights the mean over the batch's groups. Every weight grows by its
        group's latest loss, or by the mean of the others' if no batch has had it:
        otherwise groups would gain weight by being frequent.

        Args:
          state: the train state before the step.
          losses_B: of the queries.
          group_B: their groups, in 0..K - 1.
        """
        losses_B = jax.lax.stop_gradient(losses_B)
        is_KB = group_B[None, :] == jnp.arange(self.count)[:, None]
        counts_K = is_KB.sum(axis=1)
        here_K = counts_K > 0
        before = state[KEY]
        means_K = jnp.where(is_KB, losses_B, 0.0).sum(axis=1)
        means_K /= jnp.maximum(counts_K, 1)
        losses_K = jnp.where(here_K, means_K, before["losses"])
        seen_K = before["seen"] | here_K
        mean = (losses_K * seen_K).sum() / seen_K.sum()
        latest_K = jnp.where(seen_K == 1, losses_K, mean)
        log_K = jax.nn.log_softmax(before["log"] + self.rate * latest_K)
        weight_K = jnp.exp(log_K) / jnp.maximum(counts_K, 1)
        scale = self.count / here_K.sum()
        examples_B = scale * jnp.where(is_KB, weight_K[:, None], 0.0).sum(axis=0)
        after = {"log": log_K, "losses": losses_K, "seen": seen_K}
        return Weighed(examples_B, after, counts_K)
