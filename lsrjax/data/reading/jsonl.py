"""Lines of files, read on demand, and JSONL rows on top of them."""

import array
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lsrjax.data.reading import plain
from lsrjax.data.reading.bad_records import JSON, SHOWN, TYPE, UTF8, BadRecord
from lsrjax.data.reading.ids import as_id
from lsrjax.errors import InputError

_BOM = b"\xef\xbb\xbf"
_MARKED = 1024  # the line number of every 1,024th row is kept
_CHUNK = 1 << 20  # bytes
_LINE = 1 << 13  # bytes first read for a line
_IDS = ("id", "_id", "qid", "query_id", "docid")  # columns that may name a row


class Lines:
    """A file of lines, read by offset; blank lines are left out.

    It is not memory-mapped: if a mapped file is truncated, a bus error ends the
    process. A line's `unit` is "line", or "row" in an array or a table.
    """

    def __init__(self, path: str | os.PathLike, kind: str = plain.TSV):
        """Opens the file; errors as of `plain.opened`."""
        self.name = str(path)
        self._file, own, numbered = plain.opened(path, kind)
        self.unit = "line" if numbered else "row"
        # Only for the file itself: nobody else can change a temporary copy.
        self._state = _state(self._file) if own else None

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Number (from 1), byte offset and contents; InputError if the file changed."""
        offset = 0
        reader = io.BufferedReader(Reader(self._file), _CHUNK)
        for number, line in enumerate(reader, start=1):
            mark = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
            if line[mark:].strip():
                yield number, offset + mark, line[mark:]
            offset += len(line)
        self._check()

    def where(self, number: int) -> str:
        """A line's place for messages; the first is 1."""
        return f"{self.name}, {self.unit} {number}"

    def at(self, offset: int) -> bytes:
        """The line at an offset, without its break; InputError if the file changed."""
        # pread moves no file position, so threads do not interfere.
        size, line = _LINE, b""
        while part := os.pread(self._file.fileno(), size, offset + len(line)):
            end = part.find(b"\n")
            line += part if end < 0 else part[:end]
            if end >= 0:
                break
            size = max(size, len(line))
        self._check()
        return line

    def ends(self, start: int, stop: int) -> int:
        """The number of line breaks between two offsets."""
        return sum(
            os.pread(self._file.fileno(), min(_CHUNK, stop - at), at).count(b"\n")
            for at in range(start, stop, _CHUNK)
        )

    def _check(self) -> None:
        if self._state is None or (found := _state(self._file)) == self._state:
            return
        raise InputError(
            f"{self.name} was written to while it was being read ({self._state[0]:,}"
            f" bytes then, {found[0]:,} now). Put it back as it was and start again:"
            " what was done so far is kept."
        )


def _state(file: io.FileIO) -> tuple[int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns


class Reader(io.RawIOBase):
    """A file from an offset on, which leaves the file's own position alone."""

    def __init__(self, file: io.FileIO, offset: int = 0):
        self._file, self._at = file, offset

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer) -> int:
        """Reads what fits into the buffer."""
        count = os.preadv(self._file.fileno(), [buffer], self._at)
        self._at += count
        return count


class JsonRows:
    """Rows of a JSONL file, 8 bytes of memory each."""

    def __init__(self, path: pathlib.Path, lists: bool, kind: str = plain.JSON):
        """Scans the file for its rows; a broken line is a row that cannot be read.

        Args:
          lists: whether a line may be a list, like ColBERT's.
          kind: as of `plain.opened`; rows of arrays, CSV and TSV have no lines of their
            own, and are numbered as if they had.

        Raises:
          InputError: a truncated file, or one of broken lines only; names the line.
        """
        self._lines, self._lists = Lines(path, kind), lists
        self._fields: Mapping[str, str] = {}
        offsets, marks = array.array("q"), array.array("q")
        names: dict[str, None] = {}
        broken = None
        for number, offset, line in self._lines:
            if len(offsets) % _MARKED == 0:
                marks.append(number)
            offsets.append(offset)
            try:
                names |= dict.fromkeys(self._parse(line, self._lines.where(number)))
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
        """Keeps some columns, named by their fields."""
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
        """The kept fields of a row; missing ones are None. BadRecord if broken."""
        row = self._read(index)
        return {field: row.get(column) for field, column in self._fields.items()}

    def values(self, field: str) -> Iterator[Any]:
        """A kept field of all rows; for a broken one, the error."""
        for index in range(len(self)):
            try:
                yield self.row(index)[field]
            except BadRecord as error:
                yield error

    def place(self, index: int) -> dict[str, Any]:
        """Where a row is, for messages: its line, from 1, and its contents."""
        offset, block = int(self._offsets[index]), index // _MARKED
        start = int(self._offsets[block * _MARKED])
        line = self._lines.at(offset)
        place: dict[str, Any] = {
            "excerpt": line[:SHOWN].decode(errors="backslashreplace")
        }
        if self._lines.unit == "line":
            number = self._marks[block] + self._lines.ends(start, offset)
            place = {"line": number, "byte": offset} | place
        try:
            row = self._parse(line, "")
        except BadRecord:
            return place
        key = next((row[name] for name in _IDS if row.get(name) is not None), None)
        return place if key is None else {"id": key} | place

    def _read(self, index: int) -> dict:
        offset = int(self._offsets[index])
        where = f"{self._lines.name}, row {index} (the first is 0)"
        where += f", byte {offset}" if self._lines.unit == "line" else ""
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
                ' need config.data.format = entry("colbert", queries=…) and'
                " config.data.corpus.",
            )
        return row


def parse_json(line: bytes, where: str) -> Any:
    """The value of a line of JSON; BadRecord if it is not JSON in UTF-8."""
    try:
        # From bytes, `json` would detect UTF-16 and accept lone surrogates.
        value = json.loads(line.decode())
    except (ValueError, RecursionError) as e:
        if (count := _values_in(line)) > 1:
            raise BadRecord(
                TYPE,
                f"{where} holds {count} values of JSON: {line[:80]!r}. Write one object"
                " a line (jq -c .).",
            ) from e
        kind = UTF8 if isinstance(e, UnicodeDecodeError) else JSON
        raise BadRecord(
            kind,
            f"{where} is not JSON in UTF-8 ({e}): {line[:80]!r}. Write it again.",
        ) from e
    if isinstance(value, str) and value.startswith(plain.WRONG):
        raise BadRecord(TYPE, f"{where}: {value.removeprefix(plain.WRONG)}")
    return value


def _values_in(line: bytes) -> int:
    """The number of JSON values in a line; 0 if there is anything else."""
    text, at, count = line.decode(errors="replace").strip(), 0, 0
    try:
        while at < len(text):
            _, at = json.JSONDecoder().raw_decode(text, at)
            while at < len(text) and text[at].isspace():
                at += 1
            count += 1
    except (ValueError, RecursionError):
        return 0
    return count


def refuse_truncated(error: BadRecord, path, line: bytes) -> None:
    """Raises InputError for a broken last line without its line break."""
    if error.kind in (JSON, UTF8) and not line.endswith(b"\n"):
        raise InputError(
            f"{error} It is the last line and has no end: {path} is truncated: write it"
            " again, whole, or remove that line."
        ) from error


def _ids_and_scores(line: list, where: str) -> dict:
    """ColBERT's `[qid, pid, …]` or `[qid, [pid, score], …]` as a row."""
    qid, *documents = line or [None]
    scored = [isinstance(d, list) and len(d) == 2 for d in documents]
    bare = [isinstance(value, str | int | float) for value in (qid, *documents)]
    if not documents or not bare[0] or not (all(scored) or all(bare)):
        raise BadRecord(
            TYPE,
            f"{where} is {line!r:.80}; [qid, [pid, score], …] or [qid, pid, …] is"
            " needed, the first pid being the positive one.",
        )
    pids = [d[0] for d in documents] if all(scored) else documents
    return {
        "qid": as_id(qid, where),
        "pids": [as_id(pid, where) for pid in pids],
        "scores": [d[1] for d in documents] if all(scored) else None,
    }
