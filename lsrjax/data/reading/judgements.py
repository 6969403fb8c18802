"""Relevance judgements in the formats of BEIR and TREC."""

import math
import pathlib
import re

from lsrjax.data.reading.bad_records import SCORE, SHOWN, TYPE, UTF8, BadRecord
from lsrjax.data.reading.ids import as_id
from lsrjax.data.reading.jsonl import Lines
from lsrjax.errors import InputError

_DIGIT = re.compile(r"\d")

# Names of their columns in BEIR, mteb and TREC.
QUERY = ("query-id", "query_id", "qid")
DOCUMENT = ("corpus-id", "corpus_id", "docid", "doc_id", "pid")
GRADE = ("score", "relevance", "label", "rel")

# Query to document to grade; a grade above 0 is relevant.
Judged = dict[str, dict[str, float]]


def read_qrels(
    path: pathlib.Path,
    bad: list[BadRecord] | None = None,
    *,
    last_counts: bool = False,
) -> Judged:
    """The judgements of a file, by query and document.

    Args:
      path: lines of query, document, grade separated by tabs, with or without a header
        (BEIR); or of query, any word, document, grade separated by blanks or tabs
        (TREC).
      bad: collects the errors of broken lines; without it, they are raised.
      last_counts: of a document judged twice, the last judgement counts.

    Raises:
      BadRecord: without `bad`, a line of another shape, or, without `last_counts`, a
        document with two grades.
      InputError: no judgement, or none above 0, or a header with another order.
    """
    judged: Judged = {}
    first = True
    for number, _, line in Lines(path):
        where = f"{path}, line {number}"
        try:
            query, document, grade = _judgement(line, where, header=first)
            known = judged.setdefault(query, {}).setdefault(document, grade)
            if last_counts:
                judged[query][document] = grade
            elif known != grade:
                raise BadRecord(
                    SCORE,
                    f"{where}: the document {document!r} of the query {query!r} is"
                    f" judged {grade:g}, but {known:g} before. Remove one of the two.",
                )
        except _Header:
            pass
        except BadRecord as e:
            if bad is None:
                raise
            excerpt = line[:SHOWN].decode(errors="backslashreplace")
            place = {"file": str(path), "line": number, "excerpt": excerpt}
            bad.append(BadRecord(e.kind, str(e), place))
        first = False
    if not judged and not bad:
        raise InputError(
            f"{path} has no judgements. Lines of query-id, corpus-id and a grade are"
            " needed, with tabs between; grades above 0 are relevant."
        )
    if not any(grade > 0 for of in judged.values() for grade in of.values()):
        if bad and not judged:
            raise bad[0]
        raise InputError(
            f"{path}: none of its judgements is above 0, so no document is relevant"
            " to any query. Take the file of another split, or judge again."
        )
    return judged


class _Header(Exception):
    """The line is a header."""


def _judgement(line: bytes, where: str, header: bool) -> tuple[str, str, float]:
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as e:
        raise BadRecord(UTF8, f"{where} is not UTF-8 ({e}). Write it again.") from e
    cells = [cell.strip() for cell in text.split("\t")]
    if len(cells) == 1 and len(text.split()) == 4:
        cells = text.split()
    if header and _names_columns(text.split()):
        _check_order(text.lower().split(), where)
        raise _Header
    grade = _number(cells[-1])
    if len(cells) not in (3, 4) or grade is None or math.isnan(grade):
        raise BadRecord(
            SCORE if len(cells) in (3, 4) else TYPE,
            f"{where} is {cells!r}; query-id, corpus-id and a number are needed, with"
            " tabs between (or TREC's four: query, 0, document, number).",
        )
    return as_id(cells[0], where), as_id(cells[-2], where), grade


def _names_columns(cells: list[str]) -> bool:
    """Whether these are names, not a judgement whose grade is no number."""
    return 3 <= len(cells) <= 4 and not any(map(_DIGIT.search, cells))


def _check_order(names: list[str], where: str) -> None:
    for place, known in ((0, QUERY), (-2, DOCUMENT), (-1, GRADE)):
        for name in {*known} & {*names}:
            if names[place] != name:
                raise InputError(
                    f"{where} names the columns {', '.join(names)}. Write the query"
                    " first and, last, the document and the grade."
                )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
