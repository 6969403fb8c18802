"""Files of texts with ids; the one reader of them."""

import array
import dataclasses
import functools
import io
import itertools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lsrjax.data.reading import plain
from lsrjax.data.reading.bad_records import EMPTY, SHOWN, TYPE, UTF8, BadRecord
from lsrjax.data.reading.files import read_dataset
from lsrjax.data.reading.ids import as_id, check_characters
from lsrjax.data.reading.jsonl import Lines, Reader, parse_json, refuse_truncated
from lsrjax.data.reading.parquet import ArrowRows, ParquetRows
from lsrjax.errors import InputError

ID_FIELDS = ("docid", "_id", "id", "doc_id", "pid", "query_id", "qid")
# The first of them that a row has is its text.
TEXT_FIELDS = ("text", "contents", "passage", "query")
QUERY_FIELDS = ("query", "text", "contents", "passage")
# Names in the header of a TSV file, in any case.
_ID_NAMES = (
    *ID_FIELDS,
    *("docno", "doc-id", "corpus-id", "corpus_id", "query-id"),
    *("passage_id", "document_id", "text_id", "#id"),
)
_MORE_TEXT_NAMES = ("content", "body", "document", "sentence")
_MARKED = 1024  # the offset of every 1,024th line of a .txt file is kept
_SAMPLE = 1024  # lines of TSV that decide the number of cells


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of `datasets`: a folder of `save_to_disk`, a clone or a hub id.

    Subset and split may be empty: the default one, and the only one.
    """

    dataset: str
    subset: str = ""
    split: str = ""

    def __str__(self) -> str:
        """The name, with subset and split."""
        return ":".join((self.dataset, self.subset, self.split)).rstrip(":")


def read_texts(path: str | pathlib.Path) -> Iterator[tuple[str, str]]:
    """Id and text of each of a file's texts, in its order; a text may be empty.

    In a .txt file each line is a text, and its number from 0 the id.

    Raises:
      InputError: no such file, an unknown type, or a text or id that cannot be read.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file (from {pathlib.Path.cwd()}).")
    numbered = plain.ending(path) == ".txt"
    return iter(PlainTexts(path) if numbered else open_texts(path))


class PlainTexts:
    """The lines of a .txt file as texts, their numbers from 0 the ids."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._raw, *_ = plain.opened(path)
        self._marks, self._count, offset = array.array("q"), 0, 0
        for line in self._reader(0):
            if self._count % _MARKED == 0:
                self._marks.append(offset)
            self._count += 1
            offset += len(line)

    def __len__(self) -> int:
        return self._count

    def _reader(self, offset: int) -> io.BufferedReader:
        return io.BufferedReader(Reader(self._raw, offset), 1 << 20)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self.read(0, len(self))

    def read(self, first: int, end: int) -> Iterator[tuple[str, str]]:
        """Ids and texts of a range of lines."""
        start = first // _MARKED
        if first >= end:
            return
        number = start * _MARKED
        for line in self._reader(self._marks[start]):
            if number >= end:
                return
            if number >= first:
                yield str(number), self._text(line, number)
            number += 1

    def _text(self, line: bytes, number: int) -> str:
        try:
            text = line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as e:
            raise InputError(
                f"{self._path}, line {number + 1} is not UTF-8 ({e}). Write it again."
            ) from e
        return text.rstrip("\r\n")


def with_title(title: Any, text: Any) -> Any:
    """Title and text as one text; the text alone if the title is empty."""
    return f"{title} {text}" if title and isinstance(text, str) else text


# Between title and text of `title_apart`: the control character for this.
_BETWEEN = "\x1f"


def title_apart(title: Any, text: Any) -> Any:
    """Title and text as one text that `apart` takes apart."""
    if not isinstance(text, str):
        return text
    title = title.replace(_BETWEEN, " ") if isinstance(title, str) else ""
    return f"{title}{_BETWEEN}{text}"


def apart(text: str) -> tuple[str, str]:
    """The title, maybe empty, and the text, that `title_apart` joined."""
    title, _, text = text.partition(_BETWEEN)
    return title, text


Join = Callable[[Any, Any], Any]  # title and text as one text


def open_texts(
    path: DataSet | pathlib.Path,
    join: Join = with_title,
    fields: Sequence[str] = TEXT_FIELDS,
):
    """The texts of a file or a data set, for an `Index`.

    Args:
      join: makes one text of a title and a text.
      fields: columns, of which the first that is there has the texts.

    Raises:
      InputError: an unknown type, or a file that cannot be read.
    """
    if isinstance(path, DataSet):
        table, files = read_dataset(path.dataset, path.subset, path.split)
        return _TableTexts(str(path), ArrowRows(table), files, join, fields)
    kind = plain.kind_of(path)
    if kind == plain.PARQUET:
        return _TableTexts(str(path), ParquetRows(path), [path], join, fields)
    if kind is None:
        raise InputError(
            f"{path}: unknown type {path.suffix!r} of a file of texts; known are"
            f" {plain.KNOWN}."
        )
    return _LineTexts(path, kind, join, fields)


class _LineTexts:
    def __init__(
        self, path: pathlib.Path, kind: str, join: Join, fields: Sequence[str]
    ):
        self.name, self.paths = str(path), [path]
        self._lines = Lines(path, kind)
        self._parse: Callable[[bytes, str], tuple[str, str]]
        # An empty cell of CSV is an empty text; null in JSON is none.
        empty = "" if kind == plain.CSV else None
        self._parse = functools.partial(
            _json_text, join=join, fields=fields, empty=empty
        )
        self._header = 0
        if kind == plain.TSV:
            self._parse = cells = _Cells(self._lines, join, fields)
            self._header = cells.header

    def _rows(self) -> Iterator[tuple[int, int, bytes]]:
        return (line for line in self._lines if line[0] != self._header)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number, _, line in self._rows():
            try:
                yield self._parse(line, self._lines.where(number))
            except BadRecord as error:
                refuse_truncated(error, self.name, line)
                raise

    def ids(self) -> Iterator[tuple[int, str | None]]:
        """Offset and id of each line; no id if it is broken."""
        for number, offset, line in self._rows():
            try:
                key, _ = self._parse(line, self._lines.where(number))
            except BadRecord as error:
                refuse_truncated(error, self.name, line)
                key = None
            yield offset, key

    def bad(self, offsets: Sequence[int]) -> Iterator[BadRecord]:
        number, at = 1, 0
        for offset in offsets:
            number, at = number + self._lines.ends(at, offset), offset
            line = self._lines.at(offset)
            excerpt = line[:SHOWN].decode(errors="backslashreplace")
            try:
                self._parse(line, self._lines.where(number))
            except BadRecord as e:
                place = {"file": self.name, self._lines.unit: number}
                place["excerpt"] = excerpt
                yield BadRecord(e.kind, str(e), place)

    def where(self, offset: int) -> str:
        return self._lines.where(1 + self._lines.ends(0, offset))

    def read(self, offset: int) -> tuple[str, str]:
        return self._parse(self._lines.at(offset), f"{self.name}, byte {offset}")


def _json_text(
    line: bytes, where: str, join: Join, fields: Sequence[str], empty: str | None
) -> tuple[str, str]:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise BadRecord(
            TYPE, f"{where} is {type(row).__name__}, not an object: {line[:80]!r}."
        )
    key, text = _text_columns(row, where, fields)
    own = empty if row[text] is None else row[text]
    text = _checked(join(_title(row, where), own), where)
    return as_id(row[key], where), text


class _Cells:
    """Parses TSV lines: id, text and optionally title, or as the header says."""

    def __init__(self, lines: Lines, join: Join, fields: Sequence[str]):
        self._join = join
        sample = [
            (number, self._split(line))
            for number, _, line in itertools.islice(lines, _SAMPLE)
        ]
        self.header, self._places = 0, {"id": 0, "text": 1}
        counts = Counter(len(cells) for _, cells in sample if len(cells) in (2, 3))
        self._most = 3 if counts[3] > counts[2] else 2
        if self._most == 3:
            self._places["title"] = 2
        if sample and (named := _named_cells(lines.name, sample[0][1], fields)):
            self.header, self._places = sample[0][0], named
            self._most = len(sample[0][1])

    def __call__(self, line: bytes, where: str) -> tuple[str, str]:
        try:
            cells = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as e:
            raise BadRecord(UTF8, f"{where} is not UTF-8 ({e}). Write it again.") from e
        needed = 1 + max(self._places["id"], self._places["text"])
        if len(cells) < needed or any(cells[self._most :]):
            also = f", but the others {self._most}" if len(cells) > self._most else ""
            raise BadRecord(
                TYPE,
                f"{where} has {len(cells)} cells{also}: {line[:80]!r}. A line holds id,"
                " text and maybe title, with tabs between; a text has no tabs.",
            )
        found = {
            name: cells[place]
            for name, place in self._places.items()
            if place < len(cells)
        }
        key = as_id(found["id"], where)
        return key, self._join(found.get("title"), found["text"])

    @staticmethod
    def _split(line: bytes) -> list[str]:
        return line.decode(errors="replace").rstrip("\r\n").split("\t")


def _named_cells(
    name: str, cells: Sequence[str], fields: Sequence[str]
) -> dict[str, int] | None:
    """The places of id, text and title, if the cells are a header; otherwise None."""
    bare = [cell.strip().lower() for cell in cells]
    names = [re.sub(r'^"(.*)"$', r"\1", one) for one in bare]
    words = len(names) > 1 and all(re.fullmatch(r"[#\w-]{1,24}", n) for n in names)
    ids = [place for place, n in enumerate(names) if n in _ID_NAMES]
    known = (*fields, *_MORE_TEXT_NAMES)
    texts = [names.index(one) for one in known if one in names]
    # An id that is a word may have a text that is a name here.
    other = texts and not ids and re.search(r"id|key|name", names[0]) is not None
    if not words or not (other or ids) or (not texts and ids[0]):
        return None
    said = f"{name}: its first line, {', '.join(cells)}, is a header, but"
    if names != bare:
        raise InputError(
            f"{said} its cells are quoted, and quotes are part of a text in TSV. Write"
            " it without them, or as .jsonl."
        )
    if not ids or not texts:
        what, known = ("text", tuple(fields)) if ids else ("id", ID_FIELDS)
        raise InputError(
            f"{said} names no {what}. Name it {' or '.join(known)}, or remove the line."
        )
    title = {"title": names.index("title")} if "title" in names else {}
    return {"id": ids[0], "text": texts[0]} | title


def _text_columns(
    names: Iterable[str], where: str, fields: Sequence[str]
) -> tuple[str, str]:
    chosen = []
    for what, known in (("id", ID_FIELDS), ("text", fields)):
        found = [name for name in known if name in names]
        if not found:
            raise BadRecord(
                TYPE,
                f"{where} has no {what}; its fields are {', '.join(names)}. Name it"
                f" {' or '.join(known)}.",
            )
        chosen.append(found[0])
    return chosen[0], chosen[1]


def _title(row: Mapping[str, Any], where: str) -> str | None:
    title = row.get("title")
    if title is not None and not isinstance(title, str):
        raise BadRecord(
            TYPE,
            f"{where}: the title is {title!r:.80}, not a string. Give it a text, or"
            " null.",
        )
    return title


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        kind = EMPTY if text is None else TYPE
        raise BadRecord(
            kind,
            f"{where}: the text is {text!r:.80}, not a string. Give it a text, or"
            " remove it.",
        )
    check_characters(text, f"{where}: the text")
    return text


class _TableTexts:
    def __init__(
        self,
        name: str,
        rows: ArrowRows | ParquetRows,
        paths: Sequence,
        join: Join,
        fields: Sequence[str],
    ):
        self.name, self.paths, self._rows, self._join = name, paths, rows, join
        names = rows.column_names
        key, text = _text_columns(names, name, fields)
        title = {"title": "title"} if "title" in names else {}
        rows.select({"id": key, "text": text} | title)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return map(self.read, range(len(self._rows)))

    def ids(self) -> Iterator[tuple[int, str | None]]:
        for row, key in enumerate(self._rows.values("id")):
            # A broken text is found when it is read.
            try:
                yield row, None if isinstance(key, Exception) else as_id(key, "")
            except BadRecord:
                yield row, None

    def bad(self, numbers: Sequence[int]) -> Iterator[BadRecord]:
        for number in numbers:
            try:
                self.read(number)
            except BadRecord as e:
                place = {"file": self.name, "row": number}
                yield BadRecord(e.kind, str(e), place)

    def where(self, number: int) -> str:
        return f"{self.name}, row {number} (the first is 0)"

    def read(self, number: int) -> tuple[str, str]:
        where = self.where(number)
        try:
            row = self._rows.row(number)
        except UnicodeDecodeError as e:
            raise BadRecord(UTF8, f"{where}: a text is not UTF-8 ({e}).") from e
        text = _checked(self._join(_title(row, where), row["text"]), where)
        return as_id(row["id"], where), text
