"""Rows of tables as examples, whatever their format."""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.examples import ANY, Group, Items, Pair, Text
from lsrjax.data.reading.bad_records import SHOWN, UTF8, BadRecord
from lsrjax.data.reading.corpus import Corpus
from lsrjax.data.reading.files import VERSION
from lsrjax.data.reading.formats import recognise
from lsrjax.data.reading.jsonl import JsonRows
from lsrjax.data.reading.parquet import ArrowRows, starts
from lsrjax.data.reading.rows_to_examples import (
    Lookup,
    group_in_language,
    in_language,
    language_field,
    language_of,
)
from lsrjax.errors import InputError
from lsrjax.options import Chosen

_SCORES = ("pos_scores", "neg_scores")


class TfdsRows:
    """Rows of a TFDS data source."""

    def __init__(self, data):
        self._data = data
        self._fields: Mapping[str, str] = {}

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """The data set's version."""
        return {VERSION: str(self._data.dataset_info.full_name).encode()}

    @property
    def column_names(self) -> list[str]:
        """The names of all features."""
        return list(self._data.dataset_info.features)

    def __len__(self) -> int:
        return len(self._data)

    def first_row(self) -> Mapping[str, Any]:
        """The first row, with all columns."""
        return _plain(self._data[0])

    def select(self, fields: Mapping[str, str]) -> None:
        """Keeps some columns, named by their fields."""
        self._fields = fields

    def row(self, index: int) -> Mapping[str, Any]:
        """The kept fields of a row."""
        row = self._data[index]
        return {field: _plain(row[column]) for field, column in self._fields.items()}

    def values(self, field: str) -> Iterator[Any]:
        """A kept field of all rows."""
        return (self.row(index)[field] for index in range(len(self)))


def _plain(value: Any) -> Any:
    """Converts to Python's own types: TFDS gives bytes and arrays."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


class _Records:
    """Rows of tables, one table after the other."""

    def __init__(self, tables: Sequence[tuple[str, Any]]):
        """Takes pairs of a name for errors and a table; InputError without rows."""
        parts: list[tuple[str, Any]] = [
            (name, ArrowRows(table) if hasattr(table, "to_batches") else table)
            for name, table in tables
        ]
        self._parts = [(name, part) for name, part in parts if len(part)]
        if not self._parts:
            raise InputError(
                f"{', '.join(name for name, _ in tables)}: no rows. Write the data"
                " again, or point config.data to other data."
            )
        self._starts = starts([part for _, part in self._parts])

    @property
    def versions(self) -> dict[str, str]:
        known = [(name, getattr(part, "metadata", {})) for name, part in self._parts]
        return {name: m[VERSION].decode() for name, m in known if VERSION in m}

    @property
    def columns(self) -> list[tuple[str, list[str]]]:
        return [(name, part.column_names) for name, part in self._parts]

    def first_row(self, place: int) -> Mapping[str, Any]:
        try:
            return self._parts[place][1].first_row()
        except UnicodeDecodeError as e:
            return {"not UTF-8": str(e)}

    def select(self, fields: Sequence[Mapping[str, str]]) -> None:
        self._fields = fields
        for (_, part), chosen in zip(self._parts, fields, strict=True):
            part.select(chosen)

    def values(self, field: str) -> list:
        return [value for _, part in self._parts for value in part.values(field)]

    def distinct(self, field: str) -> set:
        """The texts that tables with a field have there."""
        return {
            value
            for (_, part), fields in zip(self._parts, self._fields, strict=True)
            if field in fields
            for value in part.values(field)
            if isinstance(value, str)
        }

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts)

    def row(self, index: int) -> tuple[str, Mapping[str, Any]]:
        name, part, number = self._at(index)
        where = f"{name}, row {number} (the first is 0)"
        try:
            return where, part.row(number)
        except UnicodeDecodeError as e:
            raise BadRecord(
                UTF8, f"{where}: a text is not UTF-8 ({e}). Write the file again."
            ) from e

    def place(self, index: int) -> dict[str, Any]:
        name, part, number = self._at(index)
        place = {"file": name, "row": number}
        if isinstance(part, JsonRows):
            return place | part.place(number)
        try:
            row = part.row(number)
        except UnicodeDecodeError:
            return place
        key = {"id": row["qid"]} if "qid" in row else {}
        return place | key | {"excerpt": str(dict(row))[:SHOWN]}

    def _at(self, index: int) -> tuple[str, Any, int]:
        place = bisect.bisect_right(self._starts, index) - 1
        return *self._parts[place], index - self._starts[place]


class _Unread(Corpus):
    """Stands in for a corpus, with a text for every id in all of its languages."""

    def __init__(self, corpus: Corpus | None):
        languages = (ANY,) if corpus is None else corpus.languages
        self._text = dict.fromkeys(languages, "unread")

    def get(self, key: str, where: str) -> Text:
        return self._text


class Rows:
    """Rows of files or data sets as examples.

    Attributes:
      format: of the rows, an entry of `FORMATS` with its options.
      description: the format and how it was recognised, for the log.
      bad_texts: the errors of lines of the files of texts by id, and of judgements.
      texts: the number of the other lines.
    """

    def __init__(
        self,
        tables,
        kind: str,
        *,
        format: Chosen,
        corpus: Corpus | None = None,
        queries: Corpus | None = None,
        scores: bool = True,
        bad_judgements: Sequence[BadRecord] = (),
        field: str = "config.data",
    ):
        """The rows of one table after the other.

        Args:
          tables: each one's name for errors, and a `pyarrow.Table`, or `ParquetRows`,
            `JsonRows` or `TfdsRows`.
          format: as the config chooses it; `auto`: it is recognised by the columns.
          corpus: documents by id.
          queries: queries by id.
          bad_judgements: the errors of judgements that the rows were made of.

        Raises:
          InputError: no rows, columns of no format or of several, a column that only
            some of the tables have, or ids without a corpus.
        """
        self._records = records = _Records(tables)
        self.format, fields = _recognised(records, kind, format, field)
        entry, options = self.format.entry, self.format.options
        self._read = entry.read
        self._lookup = Lookup(corpus, queries, options)
        for needed in entry.needs:
            if getattr(self._lookup, needed) is None:
                place = "data.corpus" if needed == "corpus" else f"data.format.{needed}"
                raise InputError(
                    f"{records.columns[0][0]} is of the format {self.format.name},"
                    f" whose rows hold ids: name the files of texts in config.{place}."
                )
        if not scores:
            fields = [{f: c for f, c in m.items() if f not in _SCORES} for m in fields]
        records.select(fields)
        self._named = any("language" in own for own in fields)
        self._blind = dataclasses.replace(
            self._lookup,
            corpus=_Unread(self._lookup.corpus),
            queries=_Unread(self._lookup.queries),
        )
        by_id = [c for c in (self._lookup.corpus, self._lookup.queries) if c]
        self.bad_texts = [*bad_judgements, *(e for texts in by_id for e in texts.bad)]
        self.texts = sum(map(len, by_id))
        self._kept = None
        self.description = self.format.name
        if entry.kept:
            name = records.columns[0][0]
            self._kept, remark = entry.kept(records.values, options, name)
            self.description += f" ({remark})" if remark else ""
        if self.by_id:
            assert corpus is not None  # these formats need it
            self.description += f" (texts of {corpus.name})"

    def __len__(self) -> int:
        return len(self._records) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Pair | Group:
        return self._example(index, self._lookup)

    def peek(self, index: int) -> Pair | Group:
        """The example, with texts by id not looked up; BadRecord if bad otherwise."""
        return self._example(index, self._blind)

    def _example(self, index: int, lookup: Lookup) -> Pair | Group:
        where, row = self._records.row(self._number(index))
        example = self._read(row, where, lookup)
        if not self.format.entry.in_language or not isinstance(example, Group):
            return example
        return group_in_language(row, example, by_id=self.by_id)

    @property
    def names_languages(self) -> bool:
        """Whether rows name the language of their texts, or of their query."""
        return self._named

    @functools.cached_property
    def languages(self) -> tuple[str, ...]:
        """The languages that rows name, in order; reads all rows."""
        if not self._named:
            return ()
        found = self._records.distinct("language")
        named = {one.strip() for one in found}
        return tuple(sorted(named - {""}))

    @property
    def documents(self) -> Items[Text]:
        """The whole corpus that the rows refer to, or that accompanies them."""
        corpus = self._lookup.corpus
        return () if corpus is None else corpus.documents

    @property
    def by_id(self) -> bool:
        """Whether the rows contain ids of documents."""
        return self.format.entry.judged is not None

    def judged(self, index: int) -> tuple[str, Text, dict[str, float]]:
        """A row of ids: its name, the query, and grades by id; or BadRecord."""
        where, row = self._records.row(self._number(index))
        judged = self.format.entry.judged
        assert judged  # true with `by_id`
        query, grades = judged(row, where, self._lookup)
        return where, in_language(query, language_of(row, where)), grades

    def ids(self, index: int) -> tuple[str, list[str], list[str]] | None:
        """The ids of a row's query, its positives, and its other documents.

        None if the format has no ids of queries; BadRecord for a broken row.
        """
        where, row = self._records.row(self._number(index))
        ids = self.format.entry.ids
        return ids and ids(row, where)

    @property
    def versions(self) -> dict[str, str]:
        """The versions of data sets of a library, by name."""
        return self._records.versions

    def place(self, index: int) -> dict[str, Any]:
        """Where an example is, for messages: file, row, id and what else is known."""
        return self._records.place(self._number(index))

    def _number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return index if self._kept is None else int(self._kept[index])


def _recognised(
    records, kind, asked: Chosen, field
) -> tuple[Chosen, list[dict[str, str]]]:
    """The tables' format, and each one's fields, which may differ in the language."""
    formats: list[Chosen] = []
    known: list[dict[str, str]] = []
    for place, (name, found) in enumerate(records.columns):
        first_row = records.first_row(place)
        formats.append(recognise(found, kind, asked, name, first_row, field))
        entry, options = formats[-1].entry, formats[-1].options
        known.append(entry.fields(found, options) or {})
        if entry.in_language:
            known[-1] |= language_field(found, options, name)
    first = records.columns[0][0]
    for (name, _), its_format, fields in zip(
        records.columns, formats, known, strict=True
    ):
        if its_format.name != formats[0].name:
            raise InputError(
                f"{first} is of the format {formats[0].name}, {name} of"
                f" {its_format.name}. Train on them in separate stages."
            )
        for field in sorted((set(fields) ^ set(known[0])) - {"language"}):
            has, lacks = (name, first) if field in fields else (first, name)
            column = (fields if field in fields else known[0])[field]
            raise InputError(
                f"{has} has a column {column}, {lacks} has none. Give all of"
                " them the same columns, or train on them in separate stages."
            )
    return formats[0], known
