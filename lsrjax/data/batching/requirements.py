"""What a stage asks of its examples, so that a bad one is told before it is drawn."""

import dataclasses
from collections.abc import Mapping

from lsrjax.data.batching.drawing import shared_languages
from lsrjax.data.batching.negatives import Choice
from lsrjax.data.examples import Group


@dataclasses.dataclass(frozen=True)
class Documents:
    """Of the documents of a group.

    Attributes:
      choice: how they are chosen; None where negatives are not those of the group.
      size: how many a group has, positives included.
      mixing: as `GroupBatches.mixing`.
      languages: weights by language of documents.
    """

    choice: Choice | None
    size: int
    mixing: str
    languages: Mapping[str, float]

    def __call__(self, group: Group) -> None:
        """Checks a group.

        Raises:
          BadRecord: whatever is drawn of it, or some of it, cannot be trained on.
        """
        texts = group.positives
        if self.choice is not None and self.size > 1:
            self.choice.check(group, self.size)
            texts = [*texts, *group.negatives]
        if self.mixing != "passages":
            shared_languages(group.id, texts, self.mixing, self.languages)
