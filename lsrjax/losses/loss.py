"""What a loss is: an entry of `lsrjax.losses.table.LOSSES`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import jax

from lsrjax.errors import InputError
from lsrjax.models.masking import Masking
from lsrjax.models.views import Dense, Views
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

    def shorter(
        self, views: dict[str, Views]
    ) -> Iterator[tuple[str, float, dict[str, Views]]]:
        """Views by text that the loss is also of: a part's suffix, a weight, views."""
        yield from ()

    def check_views(self, sizes: Mapping[str, int], where: str) -> None:
        """Refuses options that contradict the sizes of the student's views, by name."""


def _bad_sizes(sizes: tuple[int, ...]) -> str | None:
    if all(size > 0 for size in sizes) and len(set(sizes)) == len(sizes):
        return None
    return "give different sizes, each > 0"


def _bad_prefix_weights(weights: tuple[float, ...]) -> str | None:
    return None if all(weight > 0 for weight in weights) else "give numbers > 0"


@dataclasses.dataclass(frozen=True)
class RankedOptions(LossOptions):
    """The options of losses over scores, which prefixes of embeddings have too."""

    because: ClassVar = {"prefixes": "there are no prefixes"}

    prefixes: tuple[int, ...] = option(
        (),
        "sizes: the loss is also of an embedding's first numbers (Matryoshka)",
        problem=_bad_sizes,
        when="one embedding",
    )
    prefix_weights: tuple[float, ...] = option(
        (),
        "of the losses of `prefixes`; empty: 1 each",
        problem=_bad_prefix_weights,
        when="prefixes",
    )

    def problem(self) -> str | None:
        """Refuses as many weights as there are no prefixes."""
        given = len(self.prefix_weights)
        if not (given and self.prefixes) or given == len(self.prefixes):
            return None
        return (
            f"prefix_weights has {given} weights for"
            f" {len(self.prefixes)} prefixes. Give each its own."
        )

    def shorter(self, views):
        """The prefixes of embeddings (Kusupati et al. 2022)."""
        weights = self.prefix_weights or (1.0,) * len(self.prefixes)
        for size, weight in zip(self.prefixes, weights, strict=True):
            yield (
                f"_{size}",
                weight,
                {text: _prefix(of, size) for text, of in views.items()},
            )

    def check_views(self, sizes, where):
        """Refuses prefixes that are no shorter than the embedding."""
        for name, whole in sizes.items():
            if long := [size for size in self.prefixes if size >= whole]:
                raise InputError(
                    f"{where}.prefixes has {long[0]}, but the embedding (view {name!r})"
                    f" has {whole} numbers. Give sizes below it; the loss of the whole"
                    " is always there."
                )


def _prefix(views: Views, size: int) -> Views:
    return {
        name: view.prefix(size)
        for name, view in views.items()
        if isinstance(view, Dense)
    }


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
