"""Texts by id, read from their files on demand.

An index in memory takes 16 bytes a text, whatever the length of ids and texts: a hash
of the id and the place of the text. The id found there is compared with the one asked
for, so hash collisions do no harm. The indexes of large files are kept between runs.
"""

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax import paths as named
from lsrjax.data.examples import ANY, Items, Text
from lsrjax.data.reading import plain
from lsrjax.data.reading.bad_records import EMPTY, ID, BadRecord
from lsrjax.data.reading.id_index import Index
from lsrjax.data.reading.texts import (
    TEXT_FIELDS,
    DataSet,
    Join,
    open_texts,
    with_title,
)
from lsrjax.errors import InputError


class Corpus:
    """Texts by id, each in every language whose files have the id."""

    def __init__(
        self,
        places: Any,
        field: str,
        strict: bool = True,
        join: Join = with_title,
        fields: Sequence[str] = TEXT_FIELDS,
    ):
        """Indexes the files; no text is kept in memory.

        Args:
          places: as `data.corpus`, see `parse`. JSONL, CSV and Parquet files and data
            sets have an id, a text and optionally a title; TSV files contain id, text
            and optionally title.
          strict: a broken line is an error; otherwise its text is left out and the
            error is in `bad`.
          join: makes one text of a title and a text.
          fields: columns, of which the first that is there has the texts.

        Raises:
          InputError: no such file, a truncated one, an id with two texts, or only
            broken lines.
        """
        self.name = ", ".join(str(place) for _, place in parse(places))
        parts = _parts(places, field)
        self._indexes = {
            language: Index([open_texts(part, join, fields) for part in found])
            for language, found in parts.items()
        }
        if self.bad and (strict or not len(self)):
            raise self.bad[0]

    @property
    def bad(self) -> list[BadRecord]:
        """The errors of lines or rows that cannot be read."""
        return [error for index in self._indexes.values() for error in index.bad]

    def __len__(self) -> int:
        """The number of texts in the largest language."""
        return max(map(len, self._indexes.values()))

    @functools.cached_property
    def documents(self) -> "Documents":
        """All texts, in the order of the files."""
        return Documents(self, list(self._indexes.values()))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the files; `*` for a file without one."""
        return tuple(self._indexes)

    def get(self, key: str, where: str) -> Text:
        """The text of an id, by language; BadRecord if missing, empty or broken."""
        try:
            found = self.texts_of(key) or self.texts_of(spelled_otherwise(key))
        except BadRecord as e:
            raise BadRecord(e.kind, f"{where}: the text of the id {key!r}: {e}") from e
        if not found:
            raise BadRecord(
                ID,
                f"{where}: the id {key!r} is not in {self.name} ({len(self):,} texts)."
                " Name the files that go with these ids, or remove the row.",
            )
        for language, text in found.items():
            named = f"{where}: the text of the id {key!r}"
            named += "" if language == ANY else f" in {language}"
            if not text.strip():
                raise BadRecord(
                    EMPTY,
                    f"{named} in {self.name} is empty. Fill it in, or remove the row.",
                )
        return found

    def texts_of(self, key: str) -> Text:
        """The text of an id, by language, unchecked; empty for an unknown id."""
        return {
            language: text
            for language, index in self._indexes.items()
            if (text := index.get(key)) is not None
        }


class Documents(Items[Text]):
    """The texts of a corpus, by place: those of its first language, then the others."""

    def __init__(self, corpus: Corpus, indexes: Sequence[Index]):
        """Orders the places of all ids, 8 bytes each; reads no text."""
        self._corpus, self._indexes = corpus, indexes
        self._places, known = [], np.zeros(0, np.int64)
        for index in indexes:
            hashes, places = index.in_order()
            self._places.append(places[~np.isin(hashes, known)])
            known = np.concatenate([known, hashes])
        self._starts = np.cumsum([0, *map(len, self._places)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: int) -> Text:
        """A text by language, possibly empty; BadRecord if broken."""
        return self.item(place)[1]

    def item(self, place: int) -> tuple[str, Text]:
        """The id of a text, and the text by language."""
        if not 0 <= place < len(self):
            raise IndexError(f"document {place} of {len(self)}")
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        at = self._places[part][place - self._starts[part]]
        key, text = self._indexes[part].read(int(at))
        if len(self._indexes) == 1:
            return key, {self._corpus.languages[0]: text}
        return key, self._corpus.texts_of(key)


def spelled_otherwise(key: str) -> str:
    """A whole number with the `.0` of a float removed or added."""
    return re.sub(r"(?<=\d)\.0$", "", key) if key.endswith(".0") else f"{key}.0"


def parse(places: Any) -> list[tuple[str, str | DataSet]]:
    """(language, place) of each of several places of texts; `*` if it has none.

    Args:
      places: a path, folder or glob pattern, a data set as `{"dataset": "me/docs",
        "subset": "…", "split": "…"}`, a list of these, or a dict of them by language.

    Raises:
      TypeError: anything else.
    """
    if isinstance(places, Mapping) and "dataset" not in places:
        if not all(isinstance(language, str) for language in places):
            raise TypeError(places)
        return [(language, p) for language in places for p in _listed(places[language])]
    return [(ANY, place) for place in _listed(places)]


def _listed(places: Any) -> list[str | DataSet]:
    several = places if isinstance(places, list | tuple) else [places]
    found = [DataSet(**p) if isinstance(p, Mapping) else p for p in several if p != ""]
    for place in found:
        named = vars(place).values() if isinstance(place, DataSet) else [place]
        if not all(isinstance(name, str) for name in named):
            raise TypeError(places)
    return found


def problem(places: Any) -> str | None:
    """A complaint about a config's places of texts."""
    try:
        parse(places)
    except TypeError:
        return (
            'give a path, {"dataset": …, "subset": …, "split": …}, a list of these, or'
            ' a dict of them by language, such as {"en": "docs.en.tsv"}'
        )
    return None


def _parts(places: Any, field: str) -> dict[str, list[DataSet | pathlib.Path]]:
    parts: dict[str, list[DataSet | pathlib.Path]] = {}
    for language, place in parse(places):
        if isinstance(place, DataSet):
            parts.setdefault(language, []).append(place)
            continue
        found = named.files(place, field, plain.is_known)
        if not found:
            raise InputError(
                f"{field}: no file matches {place!r} (from {pathlib.Path.cwd()})."
                f" Give paths of files of texts ({plain.KNOWN}), as in"
                ' {"en": "docs.en.tsv", "de": "docs.de.tsv"}, or a folder of'
                ' save_to_disk or a hub id, {"dataset": "me/docs"}.'
            )
        parts.setdefault(language, []).extend(map(pathlib.Path, found))
    return parts


def state(places: Any, field: str) -> tuple:
    """Changes with a corpus's contents; for hub data sets, only with the name.

    Raises:
      InputError: no such file.
    """
    stats = [(path, path.stat()) for path in paths(places, field)]
    return (
        *parse(places),
        *((str(path), s.st_size, s.st_mtime_ns) for path, s in stats),
    )


def paths(places: Any, field: str) -> list[pathlib.Path]:
    """The files of a corpus, also of local data sets; InputError if none."""
    found = []
    for part in (part for parts in _parts(places, field).values() for part in parts):
        if isinstance(part, DataSet):
            folder = pathlib.Path(named.local(part.dataset, field))
            found += sorted(folder.rglob("*.arrow")) if folder.is_dir() else []
        else:
            found.append(part)
    return found
