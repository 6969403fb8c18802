"""What a loss is: an entry of `lsrjax.losses.table.LOSSES`."""

import dataclasses
from collections.abc import Callable

import jax

from lsrjax.options import Options, option

# The texts that losses are of.
PAIR, RANKED = ("translation", "english"), ("query", "document")
# The inputs of losses in addition to the student's texts.
TARGETS = {
    "views": "a teacher's representations of the English text",
    "all_scores": "the scores that a teacher's representations of the English texts"
    " give every query and document of the batch, [B, N]",
    "scores": "a teacher's scores of each query's documents",
    "keys": "identities of the texts of queries and documents, [B, 2] and [B, G, 2]",
    "positives": "how many of a query's documents, its first, are positive, an int",
    "languages": "how many languages every query is in, an int; round robin only",
}


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """The options that every loss has; a loss may add its own."""

    weight: float = option(1.0, "in the sum of losses", above=0)

    def targets(self) -> tuple[str, ...]:
        """Additional `TARGETS` that the options require."""
        return ()


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of `LOSSES`.

    Attributes:
      fn: `(views by text, targets, options) -> {part: scalar}`; the parts add up.
        A part [B] stands for its mean.
      texts: of a batch, that the student encodes for it.
      targets: that it compares them with, from `TARGETS`.
      Options: a dataclass of its options.
      needs: of a head, from `lsrjax.models.layers.GIVEN`.
      by_query: its parts are [B], of each query, so that queries can be weighed.
      compares_queries: scores of different queries are compared with each other, so
        that one document of each is enough for the target `scores`.
    """

    fn: Callable[..., dict[str, jax.Array]]
    texts: tuple[str, ...]
    targets: tuple[str, ...] = ()
    Options: type[LossOptions] = LossOptions
    needs: str = ""
    by_query: bool = False
    compares_queries: bool = False
