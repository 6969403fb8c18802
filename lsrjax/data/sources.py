"""Where training examples come from: random access to one of two kinds of example.

A text is a dict from language to wording, so that a query or a document can be shown
in any language it exists in. A source is a sequence of `Pair` or of `Group`. To add
one: write it here and add a line to `SOURCES`.
"""

import dataclasses
import glob
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


class Rows:
    """Rows of Parquet or JSONL files, or of a `datasets` data set, as examples."""

    def __init__(self, table, name: str, kind: str, columns: Mapping[str, str]):
        """Rows of a table.

        Args:
          table: a `pyarrow.Table`.
          name: where it came from, for errors.
          kind: "pair" or "group".
          columns: the table's names for the fields `english`, `translation`,
            `language` (pairs); `query`, `pos`, `neg`, `pos_scores`, `neg_scores`
            (groups).
        """
        self._columns = dict(columns)
        self._kind = kind
        self._name = name
        needed = {"pair": ("english", "translation"), "group": ("query", "pos")}[kind]
        missing = [f for f in needed if columns[f] not in table.column_names]
        if missing:
            raise InputError(
                f"{name} has no column {' or '.join(columns[f] for f in missing)}; its"
                f" columns are {', '.join(table.column_names)}. Name the columns that"
                f" hold {' and '.join(missing)} in config.data.columns."
            )
        self._table = table.select(
            [c for c in columns.values() if c in table.column_names]
        )

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> Pair | Group:
        row = {
            field: self._table[column][index].as_py()
            for field, column in self._columns.items()
            if column in self._table.column_names
        }
        where = f"{self._name}, row {index}"
        if self._kind == "pair":
            return Pair(
                id=where,
                english=_wording(row["english"], where, "english"),
                translation=_wording(row["translation"], where, "translation"),
                language=row.get("language") or ANY,
            )
        return _group(row, where)


def _wording(value: Any, where: str, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{where}: field {field!r} is {value!r}; a non-empty text is needed."
            " Remove the row or fill it in."
        )
    return value


def _group(row: Mapping[str, Any], where: str) -> Group:
    positives = [row["pos"]] if isinstance(row["pos"], str) else row["pos"]
    negatives = row.get("neg") or []
    negatives = [negatives] if isinstance(negatives, str) else negatives
    if not positives:
        raise InputError(f"{where}: no positive document. Remove the row.")
    return Group(
        id=where,
        query={ANY: _wording(row["query"], where, "query")},
        positives=[{ANY: _wording(t, where, "pos")} for t in positives],
        negatives=[{ANY: _wording(t, where, "neg")} for t in negatives],
        scores=_scores(row, len(positives), len(negatives), where),
    )


def _scores(row, num_positives: int, num_negatives: int, where: str):
    """The teacher's scores of positives and negatives, checked, or None."""
    if row.get("pos_scores") is None:
        return None
    parts = []
    for field, count in (("pos_scores", num_positives), ("neg_scores", num_negatives)):
        values = row.get(field)
        values = [values] if isinstance(values, float | int) else (values or [])
        if len(values) != count:
            raise InputError(
                f"{where}: {field} has {len(values)} teacher scores for {count}"
                " documents; each document needs one."
            )
        parts.extend(values)
    scores = np.array([np.nan if s is None else s for s in parts], np.float32)
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(
            f"{where}: teacher score {bad} is {parts[bad]}; scores must be finite."
            " Score the row again or remove it."
        )
    return scores


def read_files(pattern: str):
    """The rows of all Parquet or JSONL files that a path or glob pattern names.

    Returns:
      A `pyarrow.Table`.

    Raises:
      InputError: no such file, an unreadable or truncated one (named), or files whose
        columns differ.
    """
    import pyarrow as pa

    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise InputError(
            f"config.data.files: no file matches {pattern!r} (from"
            f" {pathlib.Path.cwd()}). Give a path or glob pattern of .parquet or"
            " .jsonl files."
        )
    tables = [_read_file(pathlib.Path(path)) for path in paths]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
        raise InputError(
            f"The files that match {pattern!r} do not have the same columns: {e}"
        ) from e


def _read_file(path: pathlib.Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        try:
            return pq.read_table(path, memory_map=True)
        except (pa.ArrowInvalid, OSError) as e:
            raise InputError(
                f"{path} ({path.stat().st_size:,} bytes) is not a whole Parquet file:"
                f" {e}. Copy or write it again."
            ) from e
    if path.suffix in (".jsonl", ".json"):
        return pa.Table.from_pylist(_json_lines(path))
    raise InputError(
        f"{path}: unknown file type {path.suffix!r}; known are .parquet and .jsonl."
    )


def _json_lines(path: pathlib.Path) -> list[dict]:
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:  # broken JSON or broken UTF-8
                raise InputError(
                    f"{path}, line {number} is not JSON ({e}): {line[:80]!r}. If it is"
                    " the last line, the file is truncated: write it again."
                ) from e
            if not isinstance(row, dict):
                raise InputError(
                    f"{path}, line {number} is {type(row).__name__}, not an object:"
                    f" {line[:80]!r}. Each line holds one example's fields by name."
                )
            rows.append(row)
    return rows


def read_dataset(name: str, subset: str, split: str):
    """The rows of a `datasets` data set: a folder of `save_to_disk`, or of the hub.

    Returns:
      A `pyarrow.Table`.
    """
    try:
        import datasets
    except ImportError as e:
        raise InputError(
            "config.data.dataset needs the package datasets: pip install"
            " 'lsrjax[hub]', or use config.data.files."
        ) from e
    try:
        if pathlib.Path(name).is_dir():
            data = datasets.load_from_disk(name)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, subset or None, split=split)
    except Exception as e:  # the library raises many unrelated types
        raise InputError(
            f"The data set {name!r} (subset {subset or 'default'!r}, split {split!r})"
            f" could not be read: {type(e).__name__}: {e}. Without the hub, point"
            " config.data.dataset to a folder written by save_to_disk, or"
            " config.data.files to Parquet or JSONL files."
        ) from e
    return data.with_format("arrow")[:]


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
    return Rows(read_files(config.files), config.files, kind, config.columns)


def _open_dataset(config, kind):
    table = read_dataset(config.dataset, config.subset, config.split)
    return Rows(table, config.dataset, kind, config.columns)


def _open_debian(config, kind):
    return debian(kind, config.split, config.fields)


SOURCES = {
    "files": _open_files,
    "datasets": _open_dataset,
    "debian": _open_debian,
}
