"""Lines of files, read when they are asked for, and rows of JSONL by them."""

import array
import json
import mmap
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lsrjax.data.bad_records import JSON, SHOWN, TYPE, UTF8, BadRecord
from lsrjax.errors import InputError

_BOM = b"\xef\xbb\xbf"
_MARKED = 1024  # the line's number is kept of every so manyth row
_CHUNK = 1 << 20  # bytes
_IDS = ("id", "_id", "qid", "query_id", "docid")  # columns that may name a row


class Lines:
    """A file of lines, mapped into memory; blank lines are left out.

    Attributes:
      name: the file's path.
    """

    def __init__(self, path: pathlib.Path):
        """Maps the file; nothing is read."""
        self.name = str(path)
        with open(path, "rb") as file:
            # An empty file cannot be mapped.
            empty = not path.stat().st_size
            self._bytes = (
                b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            )

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Number (the first is 1), offset in bytes and contents of each line."""
        # Pages read through the map would count as the process's memory.
        with open(self.name, "rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                mark = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
                if line[mark:].strip():
                    yield number, offset + mark, line[mark:]
                offset += len(line)

    def at(self, offset: int) -> bytes:
        """The line that starts at an offset, without its end."""
        # `bytes.find` and slices of a map take no position: threads do not interfere.
        end = self._bytes.find(b"\n", offset)
        return self._bytes[offset : end if end >= 0 else len(self._bytes)]

    def ends(self, start: int, stop: int) -> int:
        """Lines that end between two offsets."""
        return sum(
            self._bytes[at : min(at + _CHUNK, stop)].count(b"\n")
            for at in range(start, stop, _CHUNK)
        )


class JsonRows:
    """Rows of a JSONL file; 8 bytes of memory each.

    Attributes:
      column_names: the fields that any of the rows has.
    """

    def __init__(self, path: pathlib.Path, lists: bool):
        """Reads the file through, to find its rows.

        A broken line is a row that cannot be read.

        Args:
          path: the file.
          lists: whether a line may be a list, as ColBERT's are.

        Raises:
          InputError: a file that is truncated, or has broken lines only (the file and
            line are named).
        """
        self._lines, self._lists = Lines(path), lists
        self._fields: Mapping[str, str] = {}
        offsets, marks = array.array("q"), array.array("q")
        names: dict[str, None] = {}
        broken = None
        for number, offset, line in self._lines:
            if len(offsets) % _MARKED == 0:
                marks.append(number)
            offsets.append(offset)
            try:
                names |= dict.fromkeys(self._parse(line, f"{path}, line {number}"))
            except BadRecord as error:
                refuse_truncated(error, path, line)
                broken = broken or error
        if broken and not names:
            raise broken
        self._offsets = np.frombuffer(offsets, np.int64) if offsets else np.zeros(0)
        self._marks = marks
        self.column_names = list(names)

    def __len__(self) -> int:
        return len(self._offsets)

    def select(self, fields: Mapping[str, str]) -> None:
        """Keeps some columns, under the names of their fields."""
        self._fields = fields

    def first_row(self) -> Mapping[str, Any]:
        """The first row that is not broken, whichever columns are kept."""
        for index in range(len(self)):
            try:
                return self._read(index)
            except BadRecord:
                continue
        return {}

    def row(self, index: int) -> Mapping[str, Any]:
        """The kept fields of a row; those it lacks are None.

        Raises:
          BadRecord: the line is broken.
        """
        row = self._read(index)
        return {field: row.get(column) for field, column in self._fields.items()}

    def values(self, field: str) -> Iterator[Any]:
        """A kept field of all rows; of a broken one, the error."""
        for index in range(len(self)):
            try:
                yield self.row(index)[field]
            except BadRecord as error:
                yield error

    def place(self, index: int) -> dict[str, Any]:
        """Where a row is, for people: its line, the first being 1, and its contents."""
        offset, block = int(self._offsets[index]), index // _MARKED
        start = int(self._offsets[block * _MARKED])
        line = self._lines.at(offset)
        place = {
            "line": self._marks[block] + self._lines.ends(start, offset),
            "byte": offset,
            "excerpt": line[:SHOWN].decode(errors="backslashreplace"),
        }
        try:
            row = self._parse(line, "")
        except BadRecord:
            return place
        key = next((row[name] for name in _IDS if row.get(name) is not None), None)
        return place if key is None else {"id": key} | place

    def _read(self, index: int) -> dict:
        offset = int(self._offsets[index])
        where = f"{self._lines.name}, row {index} (the first is 0), byte {offset}"
        return self._parse(self._lines.at(offset), where)

    def _parse(self, line: bytes, where: str) -> dict:
        row = parse_json(line, where)
        if self._lists and isinstance(row, list):
            row = _ids_and_scores(row, where)
        if not isinstance(row, dict):
            raise BadRecord(
                TYPE,
                f"{where} is {type(row).__name__}, not an object: {line[:80]!r}. Each"
                " line holds one example's fields by name; lines of ids, as ColBERT's,"
                " need config.data.queries and config.data.corpus.",
            )
        return row


def parse_json(line: bytes, where: str) -> Any:
    """What a line of JSON holds.

    Raises:
      BadRecord: it is not JSON, or not in UTF-8.
    """
    try:
        # Of bytes, `json` would take some for UTF-16, and halves of characters.
        return json.loads(line.decode())
    except (ValueError, RecursionError) as e:
        kind = UTF8 if isinstance(e, UnicodeDecodeError) else JSON
        raise BadRecord(
            kind,
            f"{where} is not JSON in UTF-8 ({e}): {line[:80]!r}. Write it again.",
        ) from e


def refuse_truncated(error: BadRecord, path, line: bytes) -> None:
    """Ends the run where a broken line is the last one and has no end.

    Raises:
      InputError: the file is truncated.
    """
    if error.kind in (JSON, UTF8) and not line.endswith(b"\n"):
        raise InputError(
            f"{error} It is the last line and has no end: {path} is truncated: write it"
            " again, whole, or remove that line."
        ) from error


def _ids_and_scores(line: list, where: str) -> dict:
    """ColBERT's `[qid, pid, …]` or `[qid, [pid, score], …]`, by name."""
    qid, *documents = line or [None]
    scored = [isinstance(d, list) and len(d) == 2 for d in documents]
    plain = [isinstance(value, str | int) for value in (qid, *documents)]
    if not documents or not plain[0] or not (all(scored) or all(plain)):
        raise BadRecord(
            TYPE,
            f"{where} is {line!r:.80}; [qid, [pid, score], …] or [qid, pid, …] is"
            " needed, the first pid being the positive one.",
        )
    pids = [d[0] for d in documents] if all(scored) else documents
    return {
        "qid": str(qid),
        "pids": [str(pid) for pid in pids],
        "scores": [d[1] for d in documents] if all(scored) else None,
    }
