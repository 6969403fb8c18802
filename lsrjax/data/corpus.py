"""Texts by id, read from their files when they are asked for.

An index in memory takes 16 bytes a text, whatever the length of ids and texts: a hash
of the id and the place of the text. What is found there is compared with the id itself,
so that two ids of one hash are never taken for each other. The indexes of large files
are kept between runs.
"""

import csv
import glob
import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lsrjax.data.arrow import ArrowRows, ParquetRows
from lsrjax.data.examples import ANY, Text
from lsrjax.data.index import Index
from lsrjax.data.lines import Lines
from lsrjax.data.tables import read_dataset
from lsrjax.errors import InputError

ID_FIELDS = ("docid", "_id", "id", "doc_id", "pid", "query_id", "qid")
TEXT_FIELDS = ("text", "contents", "passage", "query")
_SUFFIXES = (".jsonl", ".json", ".tsv", ".parquet")
_DATASETS = "datasets:"


class Corpus:
    """Texts by id, each in every language whose files have the id."""

    def __init__(self, files: str, field: str):
        """Indexes the files; no text is kept in memory.

        Args:
          files: paths or glob patterns, or `datasets:` and a folder of `save_to_disk`
            or a hub id with maybe its subset and split, separated by commas; each with
            its language before a colon or without one: `"en:docs.en.tsv,de:d.de.tsv"`,
            `"en:datasets:me/docs"`, `"datasets:me/docs:subset:train"`. JSONL and
            Parquet files and data sets have an id, a text and maybe a title; TSV files
            hold id, text and maybe title.
          field: the config's field, for errors.

        Raises:
          InputError: no such file, a broken line, an id that occurs twice.
        """
        self.name = files
        parts = _parts(files, field)
        self._indexes = {
            language: Index([_open(part) for part in found])
            for language, found in parts.items()
        }

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
          InputError: no language has the id, or its text is empty.
        """
        found = {
            language: text
            for language, index in self._indexes.items()
            if (text := index.get(key)) is not None
        }
        if not found:
            raise InputError(
                f"{where}: the id {key!r} is not in {self.name} ({len(self):,} texts)."
                " Name the files that go with these ids, or remove the row."
            )
        for language, text in found.items():
            if not text.strip():
                raise InputError(
                    f"{where}: the text of the id {key!r}"
                    f"{'' if language == ANY else f' in {language}'} in {self.name} is"
                    " empty. Fill it in, or remove the row."
                )
        return found


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
    found = []
    for part in (part for parts in _parts(files, field).values() for part in parts):
        paths = [part]
        if isinstance(part, str):
            folder = pathlib.Path(_name_subset_split(part)[0])
            paths = sorted(folder.rglob("*.arrow")) if folder.is_dir() else []
            found.append(part)
        stats = [(path, path.stat()) for path in paths]
        found += [(str(path), s.st_size, s.st_mtime_ns) for path, s in stats]
    return tuple(found)


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

    def ids(self) -> Iterator[tuple[int, str]]:
        """Offset and id of each line."""
        for number, offset, line in self._lines:
            yield offset, self._parse(line, f"{self.name}, line {number}")[0]

    def read(self, offset: int) -> tuple[str, str]:
        """Id and text of the line at an offset."""
        return self._parse(self._lines.at(offset), f"{self.name}, byte {offset}")


def _json_text(line: bytes, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as e:
        raise InputError(
            f"{where} is not JSON in UTF-8 ({e}): {line[:80]!r}. Write it again."
        ) from e
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is {type(row).__name__}, not an object: {line[:80]!r}."
        )
    key, text = _text_columns(row, where)
    return as_id(row[key]), _checked(with_title(row.get("title"), row[text]), where)


def _tsv_text(line: bytes, where: str) -> tuple[str, str]:
    try:
        cells = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as e:
        raise InputError(f"{where} is not UTF-8 ({e}). Write it again.") from e
    if len(cells) not in (2, 3):
        raise InputError(
            f"{where} has {len(cells)} cells: {line[:80]!r}. A line holds id, text and"
            " maybe title, with tabs between."
        )
    key, text, *title = cells
    return key, with_title("".join(title), text)


def _text_columns(names: Iterable[str], where: str) -> tuple[str, str]:
    """Which of the names are the id's and the text's."""
    chosen = []
    for what, known in (("id", ID_FIELDS), ("text", TEXT_FIELDS)):
        found = [name for name in known if name in names]
        if not found:
            raise InputError(
                f"{where} has no {what}; its fields are {', '.join(names)}. Name it"
                f" {' or '.join(known)}."
            )
        chosen.append(found[0])
    return chosen[0], chosen[1]


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: the text is {text!r:.80}, not a string.")
    return text


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

    def ids(self) -> Iterator[tuple[int, str]]:
        """Row number and id of each row."""
        for row, key in enumerate(self._rows.values("id")):
            yield row, as_id(key)

    def read(self, number: int) -> tuple[str, str]:
        """Id and text of a row."""
        where = f"{self.name}, row {number} (the first is 0)"
        try:
            row = self._rows.row(number)
        except UnicodeDecodeError as e:
            raise InputError(f"{where}: a text is not UTF-8 ({e}).") from e
        text = with_title(row.get("title"), row["text"])
        return as_id(row["id"]), _checked(text, where)


def read_qrels(path: pathlib.Path) -> dict[str, tuple[list[str], list[str]]]:
    """BEIR's relevance judgements: query to documents above 0, and to the others.

    Args:
      path: a TSV file with a header: query-id, corpus-id, score.

    Raises:
      InputError: a line that is not of three cells, the last a number.
    """
    judged: dict[str, tuple[list[str], list[str]]] = {}
    lines = io.StringIO(path.read_text(encoding="utf-8"))
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, start=1):
        if number == 1 or not row:
            continue
        try:
            query, document, score = row
            relevant = float(score) > 0
        except ValueError:
            raise InputError(
                f"{path}, line {number} is {row!r}; query-id, corpus-id and a number"
                " are needed, with tabs between."
            ) from None
        judged.setdefault(query, ([], []))[0 if relevant else 1].append(document)
    return judged
