"""The two kinds of training example.

A text is a dict from language to wording, so that a query or a document can be shown
in any language it exists in.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

Text = Mapping[str, str]
Item = TypeVar("Item", covariant=True)

ENGLISH = "en"
ANY = "*"  # the language of a text whose language the file does not say


class Items(Protocol[Item]):
    """What can be read by number: a list, or a file that reads what it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))


@dataclasses.dataclass(frozen=True)
class Pair:
    """One text in English and in another language.

    Attributes:
      id: names the example in errors.
      english: the English wording.
      translation: the other one.
      language: of the translation.
    """

    id: str
    english: str
    translation: str
    language: str


@dataclasses.dataclass(frozen=True)
class Group:
    """A query and its documents.

    Attributes:
      id: names the example in errors.
      query: the query, by language.
      positives: relevant documents, by language.
      negatives: other documents, by language.
      scores: the teacher's scores of the positives, then of the negatives; None where
        there are none.
    """

    id: str
    query: Text
    positives: Sequence[Text]
    negatives: Sequence[Text]
    scores: np.ndarray | None = None


class InMemory:
    """A source over a list of examples."""

    def __init__(self, examples: Sequence[Pair | Group], description="in memory"):
        self._examples = examples
        self.description = description

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Pair | Group:
        return self._examples[index]
