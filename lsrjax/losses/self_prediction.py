"""Losses that predict a text's own tokens, for pretraining without labels."""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.loss import RANKED, Loss, LossOptions
from lsrjax.models.masking import Masking
from lsrjax.models.views import Vector
from lsrjax.ops.vocab_logsumexp import SILENT
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


def bag_of_words(views, targets, options) -> dict[str, jax.Array]:
    """Cross entropy of a text's own words by its vector.

    `-mean over distinct words v of log softmax(z)[v]`, with a text's raw values z: the
    largest logits of its tokens (Xiao et al. 2023, RetroMAE-2) or, of SPLADE with the
    pooling "cls", those of its first token (Ma et al. 2024); a mean over all texts that
    have words. The words are those before any is masked.
    """
    found = [
        _own_words(views[text], ids_BL, words_BL, targets["vocabulary"])
        for text, (ids_BL, words_BL) in targets["words"].items()
    ]
    errors, counts = (jnp.concatenate(x) for x in zip(*found, strict=True))
    some = counts > 0
    mean = jnp.where(some, errors / jnp.maximum(counts, 1), 0.0).sum()
    return {"bag_of_words": mean / jnp.maximum(some.sum(), 1)}


def _own_words(views, ids_BL, words_BL, size: int) -> tuple[jax.Array, jax.Array]:
    """The sum over each text's distinct words, and their number, [B] each."""
    (raw_BV,) = (view.raw_BV for view in views.values() if isinstance(view, Vector))
    # Vectors may be padded with zeros.
    real_V = jnp.arange(raw_BV.shape[1]) < size
    log_BV = jax.nn.log_softmax(jnp.where(real_V[None], raw_BV, SILENT), axis=1)
    rows_B1 = jnp.arange(len(ids_BL))[:, None]
    own_BV = jnp.zeros(raw_BV.shape, jnp.float32)
    own_BV = own_BV.at[rows_B1, ids_BL].max(words_BL.astype(jnp.float32))
    return -(own_BV * log_BV).sum(axis=1), own_BV.sum(axis=1)


MLM = Loss(mlm, RANKED, ("masked",), MLMOptions, needs="masked LM")
BAG_OF_WORDS = Loss(bag_of_words, RANKED, ("words",), needs="masked LM")
