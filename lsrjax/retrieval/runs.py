"""TREC run files: of each query, its documents with ranks and scores."""

import gzip
import math
import os
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import TextIO, cast

import numpy as np

from lsrjax.errors import InputError

_COLUMNS = "query Q0 document rank score tag"


def write_run(
    path: str | os.PathLike[str],
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    hits: np.ndarray,
    scores: np.ndarray,
    tag: str = "lsrjax",
) -> None:
    """Writes the six columns of TREC; a path ending in .gz is packed.

    trec_eval orders by the score, in float32, and not by the rank, and turns documents
    of equal scores around. So a score that is not below the one before it is written as
    the next lower float32, which keeps the order of `hits` everywhere.

    Args:
      hits: [Q, depth] positions in `document_ids`, best first; -1 for none.
      scores: [Q, depth], finite.

    Raises:
      InputError: an id with a space, which the format cannot hold.
    """
    check_ids(query_ids, "query")
    path = pathlib.Path(path)
    tag = "_".join(tag.split()) or "lsrjax"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with _open(path, temporary, "wt") as file:
            for key, found, own in zip(query_ids, hits, scores, strict=True):
                last = np.float32(math.inf)
                for rank, (place, score) in enumerate(zip(found, own, strict=True), 1):
                    if place < 0:
                        break
                    document = document_ids[place]
                    check_ids([document], "document")
                    below = np.nextafter(last, np.float32(-math.inf))
                    last = min(np.float32(score), below)
                    file.write(f"{key} Q0 {document} {rank} {last!s} {tag}\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_run(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Of each query, the score of each of its documents, in the order of the file.

    Raises:
      InputError: a line without six columns, a score that is not a finite number, or a
        document twice for a query; names the line.
    """
    path = pathlib.Path(path)
    found: dict[str, dict[str, float]] = {}
    try:
        with _open(path, path, "rt") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    _add(found, line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a TREC run: {error}.") from error
    return found


def _add(found: dict[str, dict[str, float]], line: str, where: str) -> None:
    cells = line.split()
    if len(cells) != 6:
        raise InputError(
            f"{where} has {len(cells)} columns, not the six of a TREC run ({_COLUMNS}):"
            f" {line.strip()[:80]!r}."
        )
    query, _, document, _, score, _ = cells
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: the score {score!r} is not a finite number.")
    own = found.setdefault(query, {})
    if document in own:
        raise InputError(
            f"{where}: the document {document!r} is there twice for the query"
            f" {query!r}. Keep its best line."
        )
    own[document] = value


def unfit(ids: Iterable[str]) -> str | None:
    """The first of some ids that no run can hold: it is empty or has a space."""
    return next((key for key in ids if key.split() != [key]), None)


def check_ids(ids: Iterable[str], kind: str) -> None:
    """Raises InputError for an id of a kind that no run can hold."""
    if (key := unfit(ids)) is not None:
        raise InputError(
            f"The {kind} id {key!r} is empty or has a space, which no TREC run can"
            " hold. Change the id."
        )


def _open(named: pathlib.Path, path: pathlib.Path, mode: str) -> TextIO:
    opener = gzip.open if named.suffix == ".gz" else open
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"
    return cast(TextIO, opener(path, mode, encoding=encoding))
