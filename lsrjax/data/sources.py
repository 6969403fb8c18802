"""Where training examples come from: random access to one of two kinds of example.

A text is a dict from language to wording, so that a query or a document can be shown
in any language it exists in. A source is a sequence of `Pair` or of `Group`. To add
one: write it here and add a line to `SOURCES`.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.tables import read_datasets, read_files
from lsrjax.errors import InputError

Text = Mapping[str, str]

ENGLISH = "en"
ANY = "*"  # the language of a text whose language the file does not say


@dataclasses.dataclass(frozen=True)
class Pair:
    """One text in English and in another language.

    Attributes:
      id: names the example in errors.
      english: the English wording.
      translation: the other one.
      language: of the translation.
    """

    id: str
    english: str
    translation: str
    language: str


@dataclasses.dataclass(frozen=True)
class Group:
    """A query and its documents.

    Attributes:
      id: names the example in errors.
      query: the query, by language.
      positives: relevant documents, by language.
      negatives: other documents, by language.
      scores: the teacher's scores of the positives, then of the negatives; None where
        there are none.
    """

    id: str
    query: Text
    positives: Sequence[Text]
    negatives: Sequence[Text]
    scores: np.ndarray | None = None


# What a row of each kind of example holds.
FIELDS = {
    "pair": ("english", "translation", "language"),
    "group": ("query", "pos", "neg", "pos_scores", "neg_scores"),
}
_NEEDED = {"pair": ("english", "translation"), "group": ("query", "pos")}


class Rows:
    """Rows of Parquet or JSONL files, or of `datasets` data sets, as examples."""

    def __init__(
        self,
        tables: Sequence[tuple[str, Any]],
        kind: str,
        columns: Mapping[str, str],
    ):
        """The rows of one table after the other.

        Args:
          tables: where each came from, for errors, and a `pyarrow.Table`.
          kind: "pair" or "group".
          columns: the tables' names for the fields `english`, `translation`,
            `language` (pairs); `query`, `pos`, `neg`, `pos_scores`, `neg_scores`
            (groups).

        Raises:
          InputError: no rows, a column that is missing, or one that only some of the
            tables have.
        """
        tables = [(name, table) for name, table in tables if table.num_rows] or tables
        if not any(table.num_rows for _, table in tables):
            raise InputError(
                f"{', '.join(name for name, _ in tables)}: no rows. Write the data"
                " again, or point config.data to other data."
            )
        self._kind = kind
        # Record batches are found by bisection; a table of many chunks is not.
        self._batches, self._starts, self._rows = [], [], 0
        known = _known_fields(tables, kind, columns)
        for (name, table), fields in zip(tables, known, strict=True):
            chosen = table.select([columns[f] for f in fields]).rename_columns(fields)
            first = self._rows
            for batch in chosen.to_batches():
                self._batches.append((name, self._rows - first, batch))
                self._starts.append(self._rows)
                self._rows += batch.num_rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Pair | Group:
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        place = bisect.bisect_right(self._starts, index) - 1
        name, first, batch = self._batches[place]
        offset = index - self._starts[place]
        where = f"{name}, row {first + offset} (the first is 0)"
        try:
            (row,) = batch.slice(offset, 1).to_pylist()
        except UnicodeDecodeError as e:
            raise InputError(
                f"{where}: a text is not UTF-8 ({e}). Write the file again."
            ) from e
        if self._kind == "pair":
            return Pair(
                id=where,
                english=_wording(row["english"], where, "english"),
                translation=_wording(row["translation"], where, "translation"),
                language=row.get("language") or ANY,
            )
        return _group(row, where)


def _known_fields(tables, kind, columns) -> list[list[str]]:
    """The fields that each table has; all but the language must be the same in all."""
    known = []
    for name, table in tables:
        found = table.column_names
        missing = [f for f in _NEEDED[kind] if columns[f] not in found]
        if missing:
            raise InputError(
                f"{name} has no column {' or '.join(columns[f] for f in missing)}; its"
                f" columns are {', '.join(found)}. Name the columns that hold"
                f" {' and '.join(missing)} in config.data.columns."
            )
        known.append([f for f in FIELDS[kind] if columns[f] in found])
    for (name, _), fields in zip(tables, known, strict=True):
        for field in sorted((set(fields) ^ set(known[0])) - {"language"}):
            first = tables[0][0]
            has, lacks = (name, first) if field in fields else (first, name)
            raise InputError(
                f"{has} has a column {columns[field]}, {lacks} has none. Give all of"
                " them the same columns, or train on them in separate stages."
            )
    return known


def _wording(value: Any, where: str, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{where}: field {field!r} is {value!r}; a non-empty text is needed."
            " Remove the row or fill it in."
        )
    return value


def _group(row: Mapping[str, Any], where: str) -> Group:
    positives = _as_list(row["pos"], where, "pos")
    negatives = _as_list(row.get("neg"), where, "neg")
    if not positives:
        raise InputError(f"{where}: no positive document. Remove the row.")
    return Group(
        id=where,
        query={ANY: _wording(row["query"], where, "query")},
        positives=[{ANY: _wording(t, where, "pos")} for t in positives],
        negatives=[{ANY: _wording(t, where, "neg")} for t in negatives],
        scores=_scores(row, len(positives), len(negatives), where),
    )


def _as_list(value: Any, where: str, field: str) -> list:
    """One text stands for a list of one, as in triples; null for an empty list."""
    if value is None:
        return []
    if not isinstance(value, str | list):
        raise InputError(
            f"{where}: field {field!r} is {value!r}; a list of texts is needed. Put the"
            " row right or remove it."
        )
    return [value] if isinstance(value, str) else value


def _scores(row, num_positives: int, num_negatives: int, where: str):
    """The teacher's scores of positives and negatives, checked, or None."""
    if row.get("pos_scores") is None and row.get("neg_scores") is None:
        return None
    parts = []
    for field, count in (("pos_scores", num_positives), ("neg_scores", num_negatives)):
        values = row.get(field)
        values = [values] if isinstance(values, float | int) else (values or [])
        if len(values) != count:
            raise InputError(
                f"{where}: {field} has {len(values)} teacher scores for {count}"
                " documents; each document needs one. Score the row again or remove"
                " it."
            )
        parts.extend(values)
    for place, score in enumerate(parts):
        if not isinstance(score, float | int) or not math.isfinite(score):
            raise InputError(
                f"{where}: teacher score {place} (positives first) is {score!r}; a"
                " finite number is needed. Score the row again or remove it."
            )
    return np.array(parts, np.float32)


def debian(kind: str, split: str, fields: Sequence[str] = ("title", "text")):
    """The embedded Debian descriptions: pairs of translations, or title -> text.

    Args:
      kind: "pair" (English and a translation of the same title or text) or "group"
        (query: a title, positive: the text, each in every language there is).
      split: "train", "dev" or "test".
      fields: for pairs, which of "title" and "text" to give.
    """
    from lsrjax.data import embedded

    data = embedded.load(split)
    wordings = {"title": data.titles, "text": data.texts}
    if kind == "pair":
        return InMemory(
            [
                Pair(f"{name}/{field}/{language}", english, translation, language)
                for field in fields
                for language in data.languages
                if language != ENGLISH
                for name, translation in wordings[field][language].items()
                if (english := wordings[field][ENGLISH].get(name))
            ]
        )
    return InMemory(
        [
            Group(
                id=name,
                query=_all_languages(data, "titles", name),
                positives=[_all_languages(data, "texts", name)],
                negatives=[],
            )
            for name in data.texts[ENGLISH]
        ]
    )


def _all_languages(data, field: str, name: str) -> Text:
    by_language = getattr(data, field)
    return {
        language: by_language[language][name]
        for language in data.languages
        if name in by_language[language]
    }


class InMemory:
    """A source over a list of examples."""

    def __init__(self, examples: Sequence[Pair | Group]):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Pair | Group:
        return self._examples[index]


class WithNegatives:
    """A source of groups with negatives from a corpus and a teacher's scores added."""

    def __init__(
        self,
        source,
        corpus: Sequence[Text],
        negatives: np.ndarray,
        scores: np.ndarray | None,
    ):
        """Adds `corpus[negatives[i]]` to group i.

        Args:
          source: groups; only the first positive of each is kept.
          corpus: documents, by language.
          negatives: [len(source), K] positions in the corpus; -1 = none.
          scores: [len(source), 1 + K] of the positive and the negatives, or None.
        """
        self._source = source
        self._corpus = corpus
        self._negatives = negatives
        self._scores = scores

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Group:
        group = self._source[index]
        known = self._negatives[index] >= 0
        return dataclasses.replace(
            group,
            positives=group.positives[:1],
            negatives=[self._corpus[i] for i in self._negatives[index][known]],
            scores=None
            if self._scores is None
            else self._scores[index][np.append(True, known)],
        )


def open_source(config, kind: str):
    """The source that `config` (a stage's `data`) names, as examples of `kind`."""
    return SOURCES[config.source](config, kind)


def _open_files(config, kind):
    return Rows(read_files(config.files), kind, config.columns)


def _open_dataset(config, kind):
    tables = read_datasets(config.dataset, config.split)
    return Rows(tables, kind, config.columns)


def _open_debian(config, kind):
    return debian(kind, config.split, config.fields)


SOURCES = {
    "files": _open_files,
    "datasets": _open_dataset,
    "debian": _open_debian,
}
