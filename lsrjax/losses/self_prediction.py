"""Losses that predict a text's own tokens, for pretraining without labels."""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.loss import RANKED, Loss, LossOptions
from lsrjax.models.masking import Masking
from lsrjax.options import option


@dataclasses.dataclass(frozen=True)
class MLMOptions(LossOptions):
    """Of `mlm`."""

    rate: float = option(
        0.15, "share of a text's tokens that are masked", above=0, below=1
    )
    hidden: float = option(
        0.8, "share of these that the mask token replaces", low=0, high=1
    )
    random: float = option(
        0.1, "share of these that any token replaces; the rest stays", low=0, high=1
    )

    def problem(self) -> str | None:
        """Refuses shares of more than all."""
        if self.hidden + self.random <= 1:
            return None
        return f"hidden is {self.hidden} and random {self.random}, more than 1 together"

    def masking(self) -> Masking:
        """How tokens are masked."""
        return Masking(self.rate, self.hidden, self.random)


def mlm(views, targets, options) -> dict[str, jax.Array]:
    """Cross entropy of masked tokens (BERT, Devlin et al. 2019).

    A mean over all masked tokens of the batch. All other losses of the sum see the
    masked texts, too, as in coCondenser (Gao and Callan 2022).
    """
    predicted = targets["masked"].values()
    errors = [one.error_B.sum() for one in predicted]
    counts = [one.count_B.sum() for one in predicted]
    return {"mlm": sum(errors) / jnp.maximum(sum(counts), 1)}


MLM = Loss(mlm, RANKED, ("masked",), MLMOptions, needs="masked LM")
