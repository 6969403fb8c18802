"""Vectors as lines of JSON: `{"id": "d1", "vector": {"term": 1.5}}`.

Beside a file of lines, `<file>.about.json` says what they are made of and the order of
the columns. Lines of other programs without it are read as well: their terms are those
that occur, in alphabetical order.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax import json_files
from lsrjax.data.reading.ids import as_id
from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.vector_formats.vectors import (
    DENSE,
    SPARSE,
    TOKENS,
    About,
    Block,
    Matrix,
    Vectors,
    checked,
)


def about_path(path: pathlib.Path) -> pathlib.Path:
    """Where a file of lines has its `About`."""
    return path.with_name(f"{path.name}.about.json")


class JsonlVectors(Vectors):
    """The vectors of a `.jsonl`."""

    def __init__(self, path: pathlib.Path, about: About | None = None, rows: int = -1):
        """Counts the lines, and finds the terms of a file that does not name them.

        Args:
          about: of a part of a folder, whose manifest says it, and `rows`, its texts.

        Raises:
          InputError: a line is no vector, or the file has changed since it was written.
        """
        self._path = path
        beside = about_path(path)
        if about is None and beside.is_file():
            about, rows = json_files.read_json(
                beside, f"Remove it to read {path.name} alone.", lambda v: _own(path, v)
            )
        if about is None:
            about, rows = self._look()
        super().__init__(str(path), about, rows)
        names = about.terms or ()
        self._columns = {name: column for column, name in enumerate(names)}

    def _lines(self) -> Iterator[tuple[str, Any, str]]:
        """Id, vector and place of each line."""
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{self._path}, line {number}"
                try:
                    row = json.loads(line.decode(), parse_constant=_not_finite)
                    key, vector = row["id"], row["vector"]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise InputError(
                        f"{where} is no JSON object with an id and a vector ({error}):"
                        f" {line[:80]!r}. Encode again."
                    ) from error
                yield as_id(key, where), vector, where

    def _look(self) -> tuple[About, int]:
        """What the lines of another program hold."""
        terms: set[str] = set()
        kinds, columns, rows = set(), 0, 0
        for _, vector, where in self._lines():
            rows += 1
            kinds.add(_kind(vector, where))
            if isinstance(vector, dict):
                terms.update(vector)
            elif vector:
                first = vector[0]
                columns = len(first) if isinstance(first, list) else len(vector)
        if len(kinds) > 1:
            raise InputError(
                f"{self._path} has vectors of several kinds: {', '.join(sorted(kinds))}"
            )
        (kind,) = kinds or {SPARSE}
        if kind == SPARSE:
            return About(kind, len(terms), sorted(terms)), rows
        return About(kind, columns), rows

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        """As of `Vectors`."""
        ids: list[str] = []
        vectors: list[Any] = []
        seen = 0
        for key, vector, where in self._lines():
            ids.append(key)
            vectors.append(self._values(vector, where))
            if len(ids) == rows:
                seen += rows
                yield checked(ids, self._matrix(vectors), self.name)
                ids, vectors = [], []
        if ids:
            yield checked(ids, self._matrix(vectors), self.name)
        if seen + len(ids) != len(self):
            raise InputError(
                f"{self.name} has {seen + len(ids):,} lines, but had {len(self):,} when"
                " it was written. Encode again."
            )

    def _values(self, vector: Any, where: str) -> Any:
        if _kind(vector, where, self.kind) != self.kind:
            raise InputError(f"{where}: its vector is not {self.kind} like the others.")
        shape = {
            SPARSE: (len(vector),),
            DENSE: (self.columns,),
            TOKENS: (len(vector), self.columns),
        }[self.kind]
        numbers = [*vector.values()] if self.kind == SPARSE else vector
        try:
            found = np.array(numbers, np.float32)
            found = found if vector else found.reshape(shape)
            if found.shape != shape:
                raise ValueError(f"its shape is {found.shape}, not {shape}")
            if self.kind != SPARSE:
                return found
            return [self._columns[term] for term in vector], found
        except KeyError as error:
            raise InputError(f"{where}: {error} is none of its terms.") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{where}: its vector is damaged ({error}).") from error

    def _matrix(self, vectors: list[Any]) -> Matrix:
        if self.kind == DENSE:
            return sparse.csr_matrix(np.stack(vectors))
        lengths = [len(one[1] if self.kind == SPARSE else one) for one in vectors]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if self.kind == TOKENS:
            return TokenMatrix(np.concatenate(vectors), starts)
        columns = np.fromiter((c for one, _ in vectors for c in one), np.int64)
        values = np.concatenate([values for _, values in vectors])
        shape = (len(vectors), self.columns)
        matrix = sparse.csr_matrix((values, columns, starts), shape=shape)
        matrix.sort_indices()
        return matrix


def _own(path: pathlib.Path, values: dict) -> tuple[About, int]:
    if (size := path.stat().st_size) != values["bytes"]:
        raise InputError(
            f"{path.name} has {size:,} bytes, but had {values['bytes']:,} when it was"
            " written."
        )
    return About.of(values), int(values["rows"])


def _kind(vector: Any, where: str, default: str = DENSE) -> str:
    if isinstance(vector, dict):
        return SPARSE
    if not isinstance(vector, list):
        raise InputError(f"{where}: the vector is {vector!r:.80}, no object or list.")
    if not vector:
        return default if default != SPARSE else TOKENS
    return TOKENS if isinstance(vector[0], list) else DENSE


def _not_finite(name: str) -> float:
    raise ValueError(f"it has the number {name}")


def shortest(weights: np.ndarray, whole: bool) -> list[str]:
    """The shortest decimals of float32 values, or the digits of whole ones."""
    if whole:
        return [str(int(weight)) for weight in weights.tolist()]
    return [*map(str, weights)]
