"""Texts by id, read from their files on demand.

An index in memory takes 16 bytes a text, whatever the length of ids and texts: a hash
of the id and the place of the text. The id found there is compared with the one asked
for, so hash collisions do no harm. The indexes of large files are kept between runs.
"""

import functools
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from lsrjax import paths as named
from lsrjax.data.examples import ANY, Items, Text
from lsrjax.data.reading import plain
from lsrjax.data.reading.bad_records import EMPTY, ID, BadRecord
from lsrjax.data.reading.id_index import Index
from lsrjax.data.reading.texts import DATASETS, name_subset_split, open_texts
from lsrjax.errors import InputError


class Corpus:
    """Texts by id, each in every language whose files have the id."""

    def __init__(self, files: str, field: str, strict: bool = True):
        """Indexes the files; no text is kept in memory.

        Args:
          files: paths, folders or glob patterns, or `datasets:` and a folder or hub id
            with optional subset and split, separated by commas; each with or without
            its language and a colon: `"en:docs.en.tsv,de:d.de.tsv"`,
            `"en:datasets:me/docs"`, `"datasets:me/docs:subset:train"`. JSONL, CSV and
            Parquet files and data sets have an id, a text and optionally a title; TSV
            files contain id, text and optionally title.
          strict: a broken line is an error; otherwise its text is left out and the
            error is in `bad`.

        Raises:
          InputError: no such file, a truncated one, an id with two texts, or only
            broken lines.
        """
        self.name = files
        parts = _parts(files, field)
        self._indexes = {
            language: Index([open_texts(part) for part in found])
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


def parse(files: str) -> list[tuple[str, str]]:
    """(language, pattern) of each part of `"en:a.tsv,de:b.tsv"`; `*` if it has none."""
    return [_language(part) for part in named.split(files, lambda p: _language(p)[1])]


def _language(part: str) -> tuple[str, str]:
    # Before `:/` is a scheme, as in `file:///docs.tsv`; but `en:/docs.tsv`.
    match = re.fullmatch(r"([A-Za-z][\w-]*):(?!//)(.+)", part)
    if (
        match is None
        or part.startswith((DATASETS, "file:"))
        or pathlib.Path(part).exists()
    ):
        return ANY, part
    return match[1], match[2]


def _parts(files: str, field: str) -> dict[str, list[str | pathlib.Path]]:
    parts: dict[str, list[str | pathlib.Path]] = {}
    for language, pattern in parse(files):
        found = (
            [pattern]
            if pattern.startswith(DATASETS)
            else [*map(pathlib.Path, named.files(pattern, field, plain.is_known))]
        )
        if not found:
            raise InputError(
                f"{field}: no file matches {pattern!r} (from {pathlib.Path.cwd()})."
                f" Give paths of files of texts ({plain.KNOWN}), as in"
                " 'en:docs.en.tsv,de:docs.de.tsv', or 'datasets:' and a folder of"
                " save_to_disk or a hub id."
            )
        parts.setdefault(language, []).extend(found)
    return parts


def state(files: str, field: str) -> tuple:
    """Changes with a corpus's contents; for hub data sets, only with the name.

    Raises:
      InputError: no such file.
    """
    stats = [(path, path.stat()) for path in paths(files, field)]
    return (files, *((str(path), s.st_size, s.st_mtime_ns) for path, s in stats))


def paths(files: str, field: str) -> list[pathlib.Path]:
    """The files of a corpus, also of local data sets; InputError if none."""
    found = []
    for part in (part for parts in _parts(files, field).values() for part in parts):
        if isinstance(part, str):
            folder = pathlib.Path(named.local(name_subset_split(part)[0], field))
            found += sorted(folder.rglob("*.arrow")) if folder.is_dir() else []
        else:
            found.append(part)
    return found
