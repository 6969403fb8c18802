"""What a loss is: an entry of `lsrjax.losses.table.LOSSES`."""

import dataclasses
from collections.abc import Callable

import jax

from lsrjax.models.masking import Masking
from lsrjax.options import Options, option

# The texts that losses are of.
PAIR, RANKED = ("translation", "english"), ("query", "document")
# The inputs of losses in addition to the student's texts.
TARGETS = {
    "views": "a teacher's representations of the English text",
    "scores": "a teacher's scores of each query's documents",
    "keys": "identities of the texts of queries and documents, [B, 2] and [B, G, 2]",
    "languages": "how many languages every query is in, an int; round robin only",
    "words": "(ids, which of them are words) by text, [B, L] each; before masking",
    "masked": "a `models.masking.Predicted` by text; the student reads texts masked",
}


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """The options that every loss has; a loss may add its own."""

    weight: float = option(1.0, "in the sum of losses", above=0)

    def targets(self) -> tuple[str, ...]:
        """Additional `TARGETS` that the options require."""
        return ()

    def masking(self) -> Masking | None:
        """How tokens of the student's texts are masked; None: not for this loss."""
        return None


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of `LOSSES`.

    Attributes:
      fn: `(views by text, targets, options) -> {part: scalar}`; the parts add up.
      texts: of a batch, that the student encodes for it.
      targets: that it compares them with, from `TARGETS`.
      Options: a dataclass of its options.
      needs: of a head, from `lsrjax.models.layers.GIVEN`.
    """

    fn: Callable[..., dict[str, jax.Array]]
    texts: tuple[str, ...]
    targets: tuple[str, ...] = ()
    Options: type[LossOptions] = LossOptions
    needs: str = ""
