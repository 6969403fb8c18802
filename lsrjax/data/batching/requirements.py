"""A stage's requirements on examples, to find bad ones before they are drawn."""

import dataclasses
from collections.abc import Collection, Mapping

from lsrjax.data.batching.drawing import SHARED, UNSTATED, shared_languages
from lsrjax.data.batching.negatives import Choice
from lsrjax.data.examples import ANY, ENGLISH, Group, Text
from lsrjax.data.reading.bad_records import LANGUAGE, BadRecord


@dataclasses.dataclass(frozen=True)
class Documents:
    """Requirements on the documents of a group.

    Attributes:
      choice: how they are chosen; None if negatives do not come from the group.
      size: documents of a group, positives included.
      mixing: as `GroupBatches.mixing`.
      english: whether a teacher reads the texts in English.
      stated: whether the student needs each text's language.
    """

    choice: Choice | None
    size: int
    mixing: str
    languages: Mapping[str, float]
    english: bool = False
    stated: bool = False

    def __call__(self, group: Group) -> None:
        """Raises BadRecord if some draw from the group cannot be trained on."""
        texts = group.positives
        if self.choice is not None and self.size > 1:
            self.choice.check(group, self.size)
            texts = [*texts, *group.negatives]
        if self.english and not all(map(_in_english, (group.query, *texts))):
            raise BadRecord(
                LANGUAGE,
                f"{group.id}: its query or a document is not in English, in which the"
                " loss's teacher reads it. Translate it, or leave out the row.",
            )
        if self.stated:
            check_stated(group.id, "query", group.query)
            for text in texts:
                check_stated(group.id, "document", text)
        if self.mixing in SHARED:
            shared_languages(group.id, texts, self.mixing, self.languages)


def check_stated(where: str, name: str, languages: Collection[str]) -> None:
    """Raises BadRecord if a text's language is not stated."""
    if ANY in languages:
        raise BadRecord(LANGUAGE, f"{where}: {UNSTATED.format(text=name)}")


def _in_english(text: Text) -> bool:
    return ENGLISH in text or ANY in text
