"""The two kinds of training example.

A text is a dict from language to wording, so that a query or a document can be shown
in any of its languages.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

Text = Mapping[str, str]
Item = TypeVar("Item", covariant=True)

ENGLISH = "en"
ANY = "*"  # an unstated language


class Items(Protocol[Item]):
    """A sequence by number: a list, or a file that is read on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))


@dataclasses.dataclass(frozen=True)
class Pair:
    """One text in English and in another language; `id` names it in errors."""

    id: str
    english: str
    translation: str
    language: str


@dataclasses.dataclass(frozen=True)
class Group:
    """A query and its documents.

    The teacher's scores are of the positives, then of the negatives.

    Attributes:
      draw: of a text alone: another query and positive, from a generator of random
        numbers; None: they are the group's own.
    """

    id: str
    query: Text
    positives: Sequence[Text]
    negatives: Sequence[Text]
    scores: np.ndarray | None = None
    draw: Callable[[np.random.Generator], tuple[Text, Text]] | None = dataclasses.field(
        default=None, repr=False
    )

    def drawn(self, rng: np.random.Generator) -> "Group":
        """The group as it is shown once."""
        if self.draw is None:
            return self
        query, positive = self.draw(rng)
        return dataclasses.replace(self, query=query, positives=[positive], draw=None)


class InMemory:
    """A source over a list of examples."""

    def __init__(self, examples: Sequence[Pair | Group], description="in memory"):
        self._examples = examples
        self.description = description

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Pair | Group:
        return self._examples[index]
