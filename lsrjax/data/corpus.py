"""Texts by id, read from their files when they are asked for.

An index in memory takes 16 bytes a text, whatever the length of ids and texts: a hash
of the id and the place of the text. What is found there is compared with the id itself,
so that two ids of one hash are never taken for each other. The indexes of large files
are kept between runs.
"""

import glob
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lsrjax.data.arrow import ArrowRows, ParquetRows
from lsrjax.data.bad_records import EMPTY, ID, SCORE, SHOWN, TYPE, UTF8, BadRecord
from lsrjax.data.examples import ANY, Text
from lsrjax.data.index import Index
from lsrjax.data.lines import Lines, parse_json, refuse_truncated
from lsrjax.data.tables import read_dataset
from lsrjax.errors import InputError

ID_FIELDS = ("docid", "_id", "id", "doc_id", "pid", "query_id", "qid")
TEXT_FIELDS = ("text", "contents", "passage", "query")
_SUFFIXES = (".jsonl", ".json", ".tsv", ".parquet")
_DATASETS = "datasets:"


class Corpus:
    """Texts by id, each in every language whose files have the id."""

    def __init__(self, files: str, field: str, strict: bool = True):
        """Indexes the files; no text is kept in memory.

        Args:
          files: paths or glob patterns, or `datasets:` and a folder of `save_to_disk`
            or a hub id with maybe its subset and split, separated by commas; each with
            its language before a colon or without one: `"en:docs.en.tsv,de:d.de.tsv"`,
            `"en:datasets:me/docs"`, `"datasets:me/docs:subset:train"`. JSONL and
            Parquet files and data sets have an id, a text and maybe a title; TSV files
            hold id, text and maybe title.
          field: the config's field, for errors.
          strict: a broken line is an error; if not, its text is left out, and `bad`
            tells.

        Raises:
          InputError: no such file, a truncated one, an id that occurs twice, no line
            that is not broken.
        """
        self.name = files
        parts = _parts(files, field)
        self._indexes = {
            language: Index([_open(part) for part in found])
            for language, found in parts.items()
        }
        if self.bad and (strict or not len(self)):
            raise self.bad[0]

    @property
    def bad(self) -> list[BadRecord]:
        """The lines or rows that cannot be read."""
        return [error for index in self._indexes.values() for error in index.bad]

    def __len__(self) -> int:
        """Texts of the language that has most."""
        return max(map(len, self._indexes.values()))

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the files; `*` where a file has none."""
        return tuple(self._indexes)

    def get(self, key: str, where: str) -> Text:
        """The text of an id, by language.

        Args:
          key: the id.
          where: the row that asks, for errors.

        Raises:
          BadRecord: no language has the id, or its text is empty or broken.
        """
        try:
            found = {
                language: text
                for language, index in self._indexes.items()
                if (text := index.get(key)) is not None
            }
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
            check_characters(text, f"{named} in {self.name}")
        return found


def check_characters(text: str, where: str) -> None:
    """Refuses halves of characters, which JSON can hold and no tokenizer takes.

    Args:
      text: any.
      where: what it is, for errors.

    Raises:
      BadRecord: it cannot be written in UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise BadRecord(
            UTF8, f"{where} is not text: {e}. Write it again, or remove the row."
        ) from e


def read_texts(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Id and text of each of a file's texts, in its order.

    Args:
      path: as of a corpus, or .txt, whose lines are texts and their numbers, from 0,
        the ids.

    Raises:
      InputError: no such file, an unknown type, or a broken line.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file (from {pathlib.Path.cwd()}).")
    return _numbered_lines(path) if path.suffix == ".txt" else iter(_open(path))


def _numbered_lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as e:
                raise InputError(
                    f"{path}, line {number + 1} is not UTF-8 ({e}). Write it again."
                ) from e
            yield str(number), text.rstrip("\r\n")


def parse(files: str) -> list[tuple[str, str]]:
    """(language, pattern) of each part of `"en:a.tsv,de:b.tsv"`; `*` without one."""
    parts = []
    for part in filter(None, map(str.strip, files.split(","))):
        match = re.fullmatch(r"([A-Za-z][\w-]*):(.+)", part)
        bare = match is None or part.startswith(_DATASETS)
        parts.append((ANY, part) if bare else (match[1], match[2]))
    return parts


def _parts(files: str, field: str) -> dict[str, list[str | pathlib.Path]]:
    """The files and data sets by language."""
    parts: dict[str, list[str | pathlib.Path]] = {}
    for language, pattern in parse(files):
        found = (
            [pattern]
            if pattern.startswith(_DATASETS)
            else sorted(map(pathlib.Path, glob.glob(pattern, recursive=True)))
        )
        if not found:
            raise InputError(
                f"{field}: no file matches {pattern!r} (from {pathlib.Path.cwd()})."
                f" Give paths of {', '.join(_SUFFIXES)} files, as in"
                " 'en:docs.en.tsv,de:docs.de.tsv', or 'datasets:' and a folder of"
                " save_to_disk or a hub id."
            )
        parts.setdefault(language, []).extend(found)
    return parts


def state(files: str, field: str) -> tuple:
    """Differs when a corpus of the same name has other contents.

    Of a data set of the hub, its name is all that is told.

    Raises:
      InputError: no such file.
    """
    stats = [(path, path.stat()) for path in paths(files, field)]
    return (files, *((str(path), s.st_size, s.st_mtime_ns) for path, s in stats))


def paths(files: str, field: str) -> list[pathlib.Path]:
    """The files of a corpus; of data sets, those of a folder.

    Raises:
      InputError: no such file.
    """
    found = []
    for part in (part for parts in _parts(files, field).values() for part in parts):
        if isinstance(part, str):
            folder = pathlib.Path(_name_subset_split(part)[0])
            found += sorted(folder.rglob("*.arrow")) if folder.is_dir() else []
        else:
            found.append(part)
    return found


def _name_subset_split(part: str) -> tuple[str, str, str]:
    """Those of `datasets:name:subset:split`; empty where they are not said."""
    name, subset, split, *more = [*part[len(_DATASETS) :].split(":"), "", ""]
    if not name or any(more):
        raise InputError(
            f"{part!r} is not datasets:NAME, datasets:NAME:SUBSET or"
            " datasets:NAME:SUBSET:SPLIT (SUBSET may be empty)."
        )
    return name, subset, split


def with_title(title: Any, text: Any) -> Any:
    """Title and text as one text; the text alone where the title is empty."""
    return f"{title} {text}" if title and isinstance(text, str) else text


def as_id(value: Any) -> str:
    """An id as a string: files write the same one as 7 or as "7"."""
    return value if isinstance(value, str) else str(value)


def _open(path: str | pathlib.Path):
    if isinstance(path, str):
        table, paths = read_dataset(*_name_subset_split(path))
        return _TableTexts(path, ArrowRows(table), paths)
    if path.suffix == ".parquet":
        return _TableTexts(str(path), ParquetRows(path), [path])
    if path.suffix in (".jsonl", ".json"):
        return _LineTexts(path, _json_text)
    if path.suffix == ".tsv":
        return _LineTexts(path, _tsv_text)
    raise InputError(
        f"{path}: unknown type {path.suffix!r} of a file of texts; known are"
        f" {', '.join(_SUFFIXES)}."
    )


class _LineTexts:
    """A file of one text a line."""

    def __init__(self, path: pathlib.Path, parse_line):
        self.name, self.paths = str(path), [path]
        self._lines, self._parse = Lines(path), parse_line

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Id and text of each line."""
        for number, _, line in self._lines:
            yield self._parse(line, f"{self.name}, line {number}")

    def ids(self) -> Iterator[tuple[int, str | None]]:
        """Offset and id of each line; no id, where it is broken."""
        for number, offset, line in self._lines:
            try:
                key, _ = self._parse(line, f"{self.name}, line {number}")
            except BadRecord as error:
                refuse_truncated(error, self.name, line)
                key = None
            yield offset, key

    def bad(self, offsets: Sequence[int]) -> Iterator[BadRecord]:
        """What is wrong with the lines at some offsets, which are in order."""
        number, at = 1, 0
        for offset in offsets:
            number, at = number + self._lines.ends(at, offset), offset
            line = self._lines.at(offset)
            excerpt = line[:SHOWN].decode(errors="backslashreplace")
            try:
                self._parse(line, f"{self.name}, line {number}")
            except BadRecord as e:
                place = {"file": self.name, "line": number, "excerpt": excerpt}
                yield BadRecord(e.kind, str(e), place)

    def read(self, offset: int) -> tuple[str, str]:
        """Id and text of the line at an offset."""
        return self._parse(self._lines.at(offset), f"{self.name}, byte {offset}")


def _json_text(line: bytes, where: str) -> tuple[str, str]:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise BadRecord(
            TYPE, f"{where} is {type(row).__name__}, not an object: {line[:80]!r}."
        )
    key, text = _text_columns(row, where)
    text = _checked(with_title(row.get("title"), row[text]), where)
    return _checked_id(row[key], where), text


def _tsv_text(line: bytes, where: str) -> tuple[str, str]:
    try:
        cells = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as e:
        raise BadRecord(UTF8, f"{where} is not UTF-8 ({e}). Write it again.") from e
    if len(cells) not in (2, 3):
        raise BadRecord(
            TYPE,
            f"{where} has {len(cells)} cells: {line[:80]!r}. A line holds id, text and"
            " maybe title, with tabs between.",
        )
    key, text, *title = cells
    return key, with_title("".join(title), text)


def _text_columns(names: Iterable[str], where: str) -> tuple[str, str]:
    """Which of the names are the id's and the text's."""
    chosen = []
    for what, known in (("id", ID_FIELDS), ("text", TEXT_FIELDS)):
        found = [name for name in known if name in names]
        if not found:
            raise BadRecord(
                TYPE,
                f"{where} has no {what}; its fields are {', '.join(names)}. Name it"
                f" {' or '.join(known)}.",
            )
        chosen.append(found[0])
    return chosen[0], chosen[1]


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        kind = EMPTY if text is None else TYPE
        raise BadRecord(kind, f"{where}: the text is {text!r:.80}, not a string.")
    return text


def _checked_id(key: Any, where: str) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise BadRecord(TYPE, f"{where}: the id is {key!r:.80}, not a string.")
    return as_id(key)


class _TableTexts:
    """Texts of the rows of a table."""

    def __init__(self, name: str, rows: ArrowRows | ParquetRows, paths: Sequence):
        self.name, self.paths, self._rows = name, paths, rows
        names = rows.column_names
        key, text = _text_columns(names, name)
        title = {"title": "title"} if "title" in names else {}
        rows.select({"id": key, "text": text} | title)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Id and text of each row."""
        return map(self.read, range(len(self._rows)))

    def ids(self) -> Iterator[tuple[int, str | None]]:
        """Row number and id of each row; no id, where it is broken."""
        for row, key in enumerate(self._rows.values("id")):
            # What is wrong with a text shows when it is asked for.
            wrong = key is None or isinstance(key, Exception)
            yield row, None if wrong else as_id(key)

    def bad(self, numbers: Sequence[int]) -> Iterator[BadRecord]:
        """What is wrong with some rows."""
        for number in numbers:
            try:
                self.read(number)
            except BadRecord as e:
                place = {"file": self.name, "row": number}
                yield BadRecord(e.kind, str(e), place)

    def read(self, number: int) -> tuple[str, str]:
        """Id and text of a row."""
        where = f"{self.name}, row {number} (the first is 0)"
        try:
            row = self._rows.row(number)
        except UnicodeDecodeError as e:
            raise BadRecord(UTF8, f"{where}: a text is not UTF-8 ({e}).") from e
        text = _checked(with_title(row.get("title"), row["text"]), where)
        return _checked_id(row["id"], where), text


def read_qrels(
    path: pathlib.Path, bad: list[BadRecord] | None = None
) -> dict[str, tuple[list[str], list[str]]]:
    """BEIR's relevance judgements: query to documents above 0, and to the others.

    Args:
      path: a TSV file with a header: query-id, corpus-id, score.
      bad: takes what is wrong with lines that are broken; without it, they are errors.

    Raises:
      BadRecord: a line that is not of three cells, the last a number.
    """
    judged: dict[str, tuple[list[str], list[str]]] = {}
    for number, _, line in Lines(path):
        if number == 1:
            continue
        try:
            query, document, relevant = _judgement(line, f"{path}, line {number}")
        except BadRecord as e:
            if bad is None:
                raise
            excerpt = line[:SHOWN].decode(errors="backslashreplace")
            place = {"file": str(path), "line": number, "excerpt": excerpt}
            bad.append(BadRecord(e.kind, str(e), place))
            continue
        judged.setdefault(query, ([], []))[0 if relevant else 1].append(document)
    return judged


def _judgement(line: bytes, where: str) -> tuple[str, str, bool]:
    """Query, document, and whether it is relevant."""
    try:
        cells = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as e:
        raise BadRecord(UTF8, f"{where} is not UTF-8 ({e}). Write it again.") from e
    needed = "query-id, corpus-id and a number are needed, with tabs between."
    if len(cells) != 3:
        raise BadRecord(TYPE, f"{where} is {cells!r}; {needed}")
    query, document, score = cells
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise BadRecord(SCORE, f"{where} is {cells!r}; {needed}")
    return query, document, value > 0
