"""Lines of files, read when they are asked for, and rows of JSONL by them."""

import array
import json
import mmap
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lsrjax.errors import InputError

_BOM = b"\xef\xbb\xbf"
_CHECKED = 2048  # rows whose types are compared at a time


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


class JsonRows:
    """Rows of a JSONL file; 8 bytes of memory each.

    Attributes:
      column_names: the fields that any of the rows has.
    """

    def __init__(self, path: pathlib.Path, lists: bool):
        """Reads the file through, to find its rows and what is broken.

        Args:
          path: the file.
          lists: whether a line may be a list, as ColBERT's are.

        Raises:
          InputError: a line that is no object in JSON, or a field of several types
            (the file and line are named).
        """
        self._lines, self._lists = Lines(path), lists
        self._fields: Mapping[str, str] = {}
        offsets = array.array("q")
        types: dict[str, Any] = {}
        rows: list[dict] = []
        for number, offset, line in self._lines:
            offsets.append(offset)
            rows.append(self._parse(line, f"{path}, line {number}"))
            if len(rows) == _CHECKED:
                _add_types(types, rows, path, len(offsets) - len(rows))
                rows = []
        _add_types(types, rows, path, len(offsets) - len(rows))
        self._offsets = np.frombuffer(offsets, np.int64) if offsets else np.zeros(0)
        self.column_names = list(types)

    def __len__(self) -> int:
        return len(self._offsets)

    def select(self, fields: Mapping[str, str]) -> None:
        """Keeps some columns, under the names of their fields."""
        self._fields = fields

    def first_row(self) -> Mapping[str, Any]:
        """The first row, whichever columns are kept."""
        return self._read(0)

    def row(self, index: int) -> Mapping[str, Any]:
        """The kept fields of a row; those it lacks are None."""
        row = self._read(index)
        return {field: row.get(column) for field, column in self._fields.items()}

    def values(self, field: str) -> Iterator[Any]:
        """A kept field of all rows."""
        return (self.row(index)[field] for index in range(len(self)))

    def _read(self, index: int) -> dict:
        offset = int(self._offsets[index])
        where = f"{self._lines.name}, row {index} (the first is 0), byte {offset}"
        return self._parse(self._lines.at(offset), where)

    def _parse(self, line: bytes, where: str) -> dict:
        try:
            row = json.loads(line)
        except ValueError as e:  # broken JSON or broken UTF-8
            raise InputError(
                f"{where} is not JSON in UTF-8 ({e}): {line[:80]!r}. If it is the last"
                " line, the file is truncated: write it again."
            ) from e
        if self._lists and isinstance(row, list):
            row = _ids_and_scores(row, where)
        if not isinstance(row, dict):
            raise InputError(
                f"{where} is {type(row).__name__}, not an object: {line[:80]!r}. Each"
                " line holds one example's fields by name; lines of ids, as ColBERT's,"
                " need config.data.queries and config.data.corpus."
            )
        return row


def _ids_and_scores(line: list, where: str) -> dict:
    """ColBERT's `[qid, pid, …]` or `[qid, [pid, score], …]`, by name."""
    qid, *documents = line or [None]
    scored = [isinstance(d, list) and len(d) == 2 for d in documents]
    plain = [isinstance(value, str | int) for value in (qid, *documents)]
    if not documents or not plain[0] or not (all(scored) or all(plain)):
        raise InputError(
            f"{where} is {line!r:.80}; [qid, [pid, score], …] or [qid, pid, …] is"
            " needed, the first pid being the positive one."
        )
    pids = [d[0] for d in documents] if all(scored) else documents
    return {
        "qid": str(qid),
        "pids": [str(pid) for pid in pids],
        "scores": [d[1] for d in documents] if all(scored) else None,
    }


def _add_types(types: dict[str, Any], rows: list[dict], path, first: int) -> None:
    """Takes the types of the rows' fields into `types`.

    Args:
      types: of the fields of the rows before, by name; changed.
      rows: a row may lack fields that others have.
      path: the file, for errors.
      first: number of the first of the rows.

    Raises:
      InputError: a field of another type than in the rows before.
    """
    import pyarrow as pa

    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        before = types.get(name, pa.null())
        try:
            types[name] = _common_type(before, values)
        except (pa.ArrowException, OverflowError) as e:
            place = _misfit(before, values)
            raise InputError(
                f"{path}, row {first + place} (the first is 0): field {name!r} is"
                f" {values[place]!r:.80}, of another type than in the rows before"
                f" ({e}). Give the field one type in all rows."
            ) from e


def _common_type(before, values: list):
    """The Arrow type of values of one and of more values; an error if there is none."""
    import pyarrow as pa

    schemas = [pa.schema([("field", t)]) for t in (before, pa.array(values).type)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _misfit(before, values: list) -> int:
    """The place of the first value that does not go with those before it."""
    import pyarrow as pa

    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _common_type(before, values[:middle])
            good = middle
        except (pa.ArrowException, OverflowError):
            bad = middle
    return bad - 1
