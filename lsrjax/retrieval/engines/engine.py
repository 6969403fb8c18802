"""What search engines have in common.

An engine numbers documents from 0 in the order of the vectors; a document without a
weight has its number, too.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from scipy import sparse

from lsrjax import json_files
from lsrjax.errors import InputError
from lsrjax.retrieval.search import Several
from lsrjax.retrieval.vector_formats.vectors import (
    About,
    Block,
    Matrix,
    Vectors,
    checked,
)

_SHAPE = "shape.json"

Hits = tuple[np.ndarray, np.ndarray]
Documents: TypeAlias = Matrix | Several


class InMemory(Vectors):
    """`Vectors` of a matrix."""

    def __init__(self, ids: Sequence[str], matrix: Matrix, about: About):
        """Ids and vectors of N texts."""
        super().__init__("vectors in memory", about, matrix.shape[0])
        self._ids, self._matrix = ids, matrix

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        """As of `Vectors`."""
        for start in range(0, len(self), rows):
            place = slice(start, start + rows)
            yield checked(list(self._ids[place]), self._matrix[place], self.name)


class Engine(Protocol):
    """An open index."""

    def search(self, queries: Any, depth: int) -> Hits:
        """The documents with the highest scores.

        Args:
          queries: Q rows, `Documents` of the kind that was indexed.

        Returns:
          hits [Q, depth] int32, document numbers, best first, -1 for no hit; and scores
          [Q, depth] float32, 0 for no hit.
        """

    def vectors(self, documents: np.ndarray) -> Documents:
        """The vectors of some documents, as the engine stores them."""

    def close(self) -> None:
        """Releases files and connections."""


def write_shape(folder: pathlib.Path, vectors: Vectors) -> None:
    """Writes the numbers of documents and columns into an engine's folder."""
    shape = {"documents": len(vectors), "columns": vectors.columns}
    json_files.write_json(folder / _SHAPE, shape)


def read_shape(folder: pathlib.Path) -> tuple[int, int]:
    """The numbers of documents and columns."""
    return json_files.read_json(
        folder / _SHAPE,
        "Build the index again.",
        lambda v: (v["documents"], v["columns"]),
    )


def nothing(queries: int, depth: int) -> Hits:
    """The result without a hit."""
    hits = np.full((queries, depth), -1, np.int32)
    return hits, np.zeros((queries, depth), np.float32)


def check_weights(
    matrix: sparse.csr_matrix, name: str, first: int, most: float
) -> None:
    """Refuses weights that an engine for sparse vectors cannot hold.

    Args:
      name: of the engine.
      first: number of the first document.
      most: the largest weight that it can store.

    Raises:
      InputError: a weight is negative or too large.
    """
    wrong = np.flatnonzero((matrix.data < 0) | (matrix.data > most))
    if len(wrong):
        row = int(np.searchsorted(matrix.indptr, wrong[0], side="right")) - 1
        raise InputError(
            f"The engine {name!r} takes weights from 0 to {most:,g}; document number"
            f" {first + row:,} has {matrix.data[wrong[0]]:g}. Use --engine exact."
        )
