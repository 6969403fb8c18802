"""The documents of a task: ids in memory, texts read from their files on demand."""

import array
import dataclasses
import itertools
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from lsrjax.data.reading.corpus import spelled_otherwise
from lsrjax.data.reading.id_index import id_hash
from lsrjax.data.reading.texts import QUERY_FIELDS, open_texts
from lsrjax.errors import InputError

_OFFSET_BITS = 44  # of a place: 16 TB a file; the bits above are the file's number


class Texts(Sequence[str]):
    """Texts in files, by position."""

    def __init__(self, files: Sequence[Any], places: np.ndarray):
        """Reads nothing yet.

        Args:
          files: as of `open_texts`.
          places: [N] int64 file's number and offset of each text.
        """
        self._files, self._places = files, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, chosen: int) -> str: ...
    @overload
    def __getitem__(self, chosen: slice) -> list[str]: ...
    def __getitem__(self, chosen):
        if isinstance(chosen, slice):
            return [self._read(place)[1] for place in self._places[chosen].tolist()]
        return self._read(int(self._places[chosen]))[1]

    def _read(self, place: int) -> tuple[str, str]:
        number, offset = divmod(place, 1 << _OFFSET_BITS)
        return self._files[number].read(offset)

    def file(self, chosen: int) -> int:
        """The number of a text's file."""
        return int(self._places[chosen]) >> _OFFSET_BITS

    def where(self, chosen: int) -> str:
        """The file of a text and its place in it."""
        number, offset = divmod(int(self._places[chosen]), 1 << _OFFSET_BITS)
        return self._files[number].where(offset)


@dataclasses.dataclass(frozen=True)
class Documents:
    """Ids and texts of a corpus, and how many texts with a repeated id were left out.

    `ids` and `texts` are equally long.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, wanted: Collection[str]) -> dict[str, int]:
        """The positions of ids, by id; unknown ones are left out."""
        wanted = {*wanted, *map(spelled_otherwise, wanted)}
        return {key: place for place, key in enumerate(self.ids) if key in wanted}


def in_memory(rows: Iterable[tuple[str, str]], name: str) -> Documents:
    """Documents from ids and texts; InputError if an id has two texts."""
    found: dict[str, str] = {}
    repeated = 0
    for key, text in rows:
        repeated += key in found
        if found.setdefault(key, text) != text:
            raise InputError(
                f"{name}: the id {key!r} occurs twice, with different texts. Remove"
                " one of the two."
            )
    return Documents(list(found), list(found.values()), repeated)


def in_files(paths: Sequence[pathlib.Path], *, last_counts: bool = False) -> Documents:
    """Documents from files of texts; 8 bytes a text, and the ids, stay in memory.

    Equal texts with the same id are one document.

    Args:
      paths: JSONL, TSV, CSV or Parquet, maybe packed.
      last_counts: of different texts with the same id, the last one is the document,
        which stands where the id occurs first.

    Raises:
      InputError: no text or a broken one, or, without `last_counts`, an id with two.
    """
    files = [open_texts(path) for path in paths]
    ids, hashes, places = [], array.array("q"), array.array("q")
    for number, file in enumerate(files):
        for offset, key in file.ids():
            if key is None:
                raise next(file.bad([offset]))
            ids.append(key)
            hashes.append(id_hash(key))
            places.append(number << _OFFSET_BITS | offset)
    if not ids:
        raise InputError(f"{paths[0]} has no documents. Fetch the corpus again.")
    where = np.array(places, np.int64)
    texts = Texts(files, where)
    again = _repeated(ids, np.array(hashes, np.int64))
    for first, later in again:
        if last_counts:
            where[first] = where[later]
        elif texts[first] != texts[later]:
            raise InputError(
                f"{texts.where(first)} and {texts.where(later)}: the id"
                f" {ids[first]!r} occurs twice, with different texts. Remove one of"
                " the two."
            )
    if again:
        kept = np.ones(len(ids), bool)
        kept[[later for _, later in again]] = False
        ids = list(itertools.compress(ids, kept.tolist()))
        texts = Texts(files, where[kept])
    return Documents(ids, texts, len(again))


def _repeated(ids: Sequence[str], hashes: np.ndarray) -> list[tuple[int, int]]:
    """The first place of an id and each later one, in the order of the files."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    suspects = np.union1d(order[1:][same], order[:-1][same])
    first: dict[str, int] = {}
    found = []
    for place in suspects.tolist():
        known = first.setdefault(ids[place], place)
        if known != place:
            found.append((known, place))
    return found


def queries(paths: Sequence[pathlib.Path]) -> Iterator[tuple[str, str]]:
    """Id and text of each query in files."""
    for path in paths:
        yield from open_texts(path, fields=QUERY_FIELDS)
