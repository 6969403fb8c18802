"""Plain texts as groups: the query and the positive are parts of one text."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY, Group, Items
from lsrjax.data.reading.corpus import Corpus, parse, state
from lsrjax.data.reading.texts import apart, title_apart
from lsrjax.data.text_pairs import Maker, PlainText

EMBEDDED = "embedded"  # in place of files: the texts that ship with the package


class _Files(Items[tuple[str, str, str]]):
    """The texts of files or data sets in one language."""

    def __init__(self, places: Any, field: str):
        self.corpus = Corpus(places, field, strict=False, join=title_apart)
        self._documents = self.corpus.documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        """Id, title and text."""
        key, text = self._documents.item(index)
        return key, *apart(next(iter(text.values())))


class _Embedded(Items[tuple[str, str, str]]):
    """The texts of a split of the embedded data in one language."""

    def __init__(self, split: embedded.Split, language: str):
        self._titles, self._texts = split.titles[language], split.texts[language]
        self._ids = list(self._texts)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        """Id, title and text."""
        key = self._ids[index]
        return key, self._titles[key], self._texts[key]


class PlainTexts:
    """Texts as groups of a query and a positive, drawn anew whenever one is shown.

    Outside of training, where a group is only read, its draw is a function of its
    number. A text in several languages is several groups, each in its own.

    Attributes:
      bad_texts: the errors of lines that cannot be read.
      texts: the number of the others.
      languages: that the texts are stated to be in.
    """

    def __init__(self, by_language: Mapping[str, Items], make: Maker, name: str):
        """Takes (id, title, text) by language."""
        self._texts = by_language
        self._languages = list(by_language)
        self.languages = tuple(one for one in by_language if one != ANY)
        self._starts = np.cumsum([0, *map(len, by_language.values())])
        self._make = make
        self.description = f"texts of {name}, pairs: {make.pairs.name}"
        corpora = [t.corpus for t in by_language.values() if isinstance(t, _Files)]
        self.bad_texts = [error for corpus in corpora for error in corpus.bad]
        self.texts = len(self)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Group:
        """A group; BadRecord if there is no pair of its text."""
        language, key, title, text = self._at(index)
        where = f"the text {key!r}" + f" in {language}" * (language != ANY)
        plain = PlainText(title, text, where)

        def draw(rng: np.random.Generator):
            query, positive = ({language: one} for one in self._make(plain, rng))
            return query, positive

        query, positive = draw(np.random.default_rng(index))
        return Group(where, query, [positive], [], draw=draw)

    @property
    def names_languages(self) -> bool:
        """Whether each text's language is stated."""
        return bool(self.languages)

    def place(self, index: int) -> dict[str, Any]:
        """Where a text is, for messages."""
        language, key, *_ = self._at(index)
        return {"file": self.description, "row": index, "id": key, "language": language}

    def _at(self, index: int) -> tuple[str, str, str, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        language = self._languages[part]
        return language, *self._texts[language][index - int(self._starts[part])]


def open_texts(files: Any, split: str, make: Maker, field: str) -> PlainTexts:
    """The texts of a config's files, or of a split of the embedded data.

    Raises:
      InputError: no such file, or one that cannot be read.
    """
    if files == EMBEDDED:
        data = embedded.load(split)
        found = {language: _Embedded(data, language) for language in data.languages}
        return PlainTexts(found, make, f"the embedded data, {split}")
    by_language = _files(json.dumps(files), field, state(files, field))
    names = ", ".join(str(place) for _, place in parse(files))
    return PlainTexts(by_language, make, names)


# A run opens its data to look at it, and again to train.
@functools.lru_cache(maxsize=2)
def _files(places: str, field: str, state: tuple) -> dict[str, _Files]:
    given = json.loads(places)
    if isinstance(given, dict) and "dataset" not in given:
        return {
            language: _Files({language: own}, field) for language, own in given.items()
        }
    return {ANY: _Files(given, field)}
