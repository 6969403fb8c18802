"""A stage's requirements on examples, to find bad ones before they are drawn."""

import dataclasses
from collections.abc import Mapping

from lsrjax.data.batching.drawing import SHARED, shared_languages
from lsrjax.data.batching.negatives import Choice
from lsrjax.data.examples import Group


@dataclasses.dataclass(frozen=True)
class Documents:
    """Requirements on the documents of a group.

    Attributes:
      choice: how they are chosen; None if negatives do not come from the group.
      size: documents of a group, positives included.
      mixing: as `GroupBatches.mixing`.
    """

    choice: Choice | None
    size: int
    mixing: str
    languages: Mapping[str, float]

    def __call__(self, group: Group) -> None:
        """Raises BadRecord if some draw from the group cannot be trained on."""
        texts = group.positives
        if self.choice is not None and self.size > 1:
            self.choice.check(group, self.size)
            texts = [*texts, *group.negatives]
        if self.mixing in SHARED:
            shared_languages(group.id, texts, self.mixing, self.languages)
