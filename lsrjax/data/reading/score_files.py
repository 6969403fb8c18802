"""Scores of queries and documents by id, as others publish them."""

import array
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsrjax.data.reading.bad_records import SCORE, BadRecord
from lsrjax.data.reading.files import read_files
from lsrjax.data.reading.ids import as_id
from lsrjax.errors import InputError

_QUERIES = ("qid", "query_id", "query-id")
_DOCUMENTS = (
    *("pids", "document_ids", "doc_ids", "docids"),
    *("doc_id", "docid", "document_id", "pid", "corpus-id", "doc-id"),
)
_SCORES = ("scores", "score")
_LARGEST = 3.4e38  # float32

KNOWN = """Known rows, of JSONL (.gz, .zst), Parquet, or CSV and TSV with names:
  [qid, [pid, score], …] (ColBERT; the mT5 scores of Translate-Distill)
  query_id, document_ids, scores: lists of a query (PyLate; the BGE scores of MS MARCO)
  query_id (or qid), doc_id (or docid, pid), score: a pair"""


class Scores:
    """Scores by query and document; 4 bytes and a reference for each."""

    def __init__(self, files: str, field: str):
        """Reads files of scores.

        Args:
          files: paths, folders or patterns with commas between.
          field: that names them, for errors.

        Raises:
          InputError: no such file, rows of no known shape, or a line that is wrong:
            named, with what is wrong.
        """
        self._of: dict[str, tuple[list[str], array.array]] = {}
        for path, rows in read_files(files, lists=True, field=field):
            self._read(path, rows)

    def _read(self, path: str, rows) -> None:
        names = rows.column_names
        found = [
            next((name for name in known if name in names), None)
            for known in (_QUERIES, _DOCUMENTS, _SCORES)
        ]
        if None in found:
            raise InputError(
                f"{path}: its columns are {', '.join(names)}. These are no scores by"
                f" id. {KNOWN}"
            )
        rows.select(dict(zip(("query", "documents", "scores"), found, strict=True)))
        for index in range(len(rows)):
            try:
                self._add(rows.row(index), f"{path}, {_place(rows, index)}")
            except (UnicodeDecodeError, ValueError) as error:
                raise InputError(str(error)) from error

    def _add(self, row: Any, where: str) -> None:
        query = as_id(row["query"], where)
        documents, scores = row["documents"], row["scores"]
        if not isinstance(documents, list):
            documents, scores = [documents], [scores]
        if not isinstance(scores, list) or len(scores) != len(documents):
            count = len(scores) if isinstance(scores, list) else 0
            raise BadRecord(
                SCORE,
                f"{where}: {count} scores for {len(documents)} documents; each needs"
                " one.",
            )
        keys, values = self._of.setdefault(query, ([], array.array("f")))
        for key, score in zip(documents, scores, strict=True):
            keys.append(sys.intern(as_id(key, where)))
            values.append(_number(score, where))

    def __len__(self) -> int:
        """Queries."""
        return len(self._of)

    def of(self, query: str, documents: Sequence[str]) -> list[float | None]:
        """The scores of some documents of a query; None of one without.

        Raises:
          InputError: a pair has two different scores.
        """
        keys, values = self._of.get(query, ((), array.array("f")))
        known: dict[str, float] = {}
        for key, value in zip(keys, values, strict=True):
            if known.setdefault(key, value) != value:
                raise InputError(
                    f"The document {key!r} of the query {query!r} has the scores"
                    f" {known[key]:g} and {value:g}. Leave one of them out."
                )
        # The shortest decimals of float32 values.
        return [
            float(str(np.float32(known[key]))) if key in known else None
            for key in documents
        ]


def _place(rows, index: int) -> str:
    """Line or row of a table, for errors."""
    place = rows.place(index) if hasattr(rows, "place") else {}
    return (
        f"line {place['line']}" if "line" in place else f"row {index} (the first is 0)"
    )


def _number(value: Any, where: str) -> float:
    try:
        # CSV and TSV have texts.
        number = float(value) if isinstance(value, str) else value
        wrong = isinstance(number, bool) or not abs(number) <= _LARGEST
    except (TypeError, ValueError):
        wrong = True
    if wrong or math.isnan(number):
        raise BadRecord(
            SCORE, f"{where}: a score is {value!r:.80}; a finite number is needed."
        )
    return number
