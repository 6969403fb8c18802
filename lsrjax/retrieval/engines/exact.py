"""The engine `exact`: reads every vector for each search, and misses nothing."""

import dataclasses
import pathlib
from typing import Any, NoReturn

import numpy as np
from scipy import sparse

from lsrjax import json_files, options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval import maxsim
from lsrjax.retrieval.engines.engine import Documents, Hits
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import Several, TopHits, search
from lsrjax.retrieval.several_views import SEVERAL
from lsrjax.retrieval.vector_formats.vectors import (
    DENSE,
    SPARSE,
    TOKENS,
    Matrix,
    Vectors,
)

_VIEWS = "views.json"


class Exact:
    """Files of each view's vectors, which a search reads in blocks, memory-mapped.

    Scores and the order of hits are those of `lsrjax.retrieval.search.search`.
    """

    kinds = (SPARSE, DENSE, TOKENS, SEVERAL)
    searching = ("block", "batch")

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the engine."""

        block: int = option(4096, "documents scored at once", low=1)
        batch: int = option(128, "queries scored at once", low=1)

    @staticmethod
    def build(folder: pathlib.Path, vectors: Vectors, options: Options) -> None:
        """Writes the vectors, in the memory of a block."""
        views: list[dict[str, Any]] = []
        ends: list[int] = []
        for _, block in vectors.blocks():
            parts = block.parts if isinstance(block, Several) else [block]
            if not views:
                views = [_view(part) for part in parts]
                ends = [0] * len(parts)
                for number in range(len(parts)):
                    _append(folder, number, "starts.i64", np.zeros(1, "<i8"))
            for number, part in enumerate(parts):
                ends[number] = _write(folder, number, part, ends[number])
        json_files.write_json(folder / _VIEWS, {"views": views})

    @staticmethod
    def open(folder: pathlib.Path, options: Options) -> "ExactEngine":
        """Opens the files of `build`."""
        return ExactEngine(folder, options)


class ExactEngine:
    """An open index of `Exact`."""

    def __init__(self, folder: pathlib.Path, how: Exact.Options):
        """Maps the files into memory."""
        self._how = how
        advice = "Build the index again."
        views = json_files.read_json(folder / _VIEWS, advice, lambda v: v["views"])
        self._views = [_View(folder, number, **one) for number, one in enumerate(views)]
        self._rows = self._views[0].rows if views else 0

    def search(self, queries: Documents, depth: int) -> Hits:
        """See `Engine.search`."""
        found = TopHits(queries, depth, batch=self._how.batch, block=self._how.block)
        for start in range(0, self._rows, self._how.block):
            found.add(self._block(start, min(start + self._how.block, self._rows)))
        return found.best()

    def vectors(self, documents: np.ndarray) -> Documents:
        """See `Engine.vectors`."""
        found = [view.some(np.asarray(documents)) for view in self._views]
        return found[0] if len(found) == 1 else Several(found)

    def close(self) -> None:
        """Nothing to release."""

    def _block(self, first: int, end: int) -> Documents:
        found = [view.block(first, end) for view in self._views]
        return found[0] if len(found) == 1 else Several(found)


class _View:
    """The vectors of one view."""

    def __init__(self, folder: pathlib.Path, number: int, tokens: bool, columns: int):
        self._tokens, self._width = tokens, columns
        self._name = f"{folder / str(number)}"
        self._starts = np.fromfile(folder / f"{number}.starts.i64", "<i8")
        self.rows = len(self._starts) - 1
        self._weights = _mapped(folder / f"{number}.weights.f32", "<f4")
        if not tokens:
            self._columns = _mapped(folder / f"{number}.columns.i32", "<i4")
        # scipy checks neither starts nor columns, and would leave its arrays.
        first, last, numbers = *self._starts[[0, -1]], columns if tokens else 1
        whole = not first and last * numbers == len(self._weights)
        if not whole or (np.diff(self._starts) < 0).any():
            self._refuse("starts.i64")

    def block(self, first: int, end: int) -> Matrix:
        starts = self._starts[first : end + 1]
        own, place = starts - starts[0], slice(starts[0], starts[-1])
        if self._tokens:
            place = slice(starts[0] * self._width, starts[-1] * self._width)
            tokens_TD = np.asarray(self._weights[place]).reshape(-1, self._width)
            return TokenMatrix(tokens_TD, own)
        columns = self._columns[place]
        if columns.min(initial=0) < 0 or columns.max(initial=-1) >= self._width:
            self._refuse("columns.i32")
        parts = self._weights[place], columns, own
        return sparse.csr_matrix(parts, shape=(end - first, self._width))

    def _refuse(self, file: str) -> NoReturn:
        raise InputError(
            f"{self._name}.{file} does not fit the index. Build the index again."
        )

    def some(self, rows: np.ndarray) -> Matrix:
        blocks = [self.block(0, 0), *(self.block(row, row + 1) for row in rows)]
        if self._tokens:
            return maxsim.stacked(blocks)
        return sparse.vstack(blocks, format="csr")


def _view(part: Matrix) -> dict[str, Any]:
    return {"tokens": isinstance(part, TokenMatrix), "columns": part.shape[1]}


def _write(folder: pathlib.Path, number: int, part: Matrix, end: int) -> int:
    """Appends vectors to a view's files; the weights or tokens there are, after it."""
    if isinstance(part, TokenMatrix):
        starts = part.starts
        _append(folder, number, "weights.f32", part.tokens_TD.astype("<f4"))
    else:
        part = sparse.csr_matrix(part, dtype=np.float32)
        part.sort_indices()
        starts = part.indptr
        _append(folder, number, "weights.f32", part.data.astype("<f4"))
        _append(folder, number, "columns.i32", part.indices.astype("<i4"))
    _append(folder, number, "starts.i64", end + starts[1:].astype("<i8"))
    return end + int(starts[-1])


def _append(folder: pathlib.Path, number: int, name: str, array: np.ndarray) -> None:
    with open(folder / f"{number}.{name}", "ab") as file:
        file.write(array.tobytes())


def _mapped(path: pathlib.Path, kind: str) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r")


class MatrixEngine:
    """Exact search over vectors in memory."""

    def __init__(self, documents: Documents):
        """Vectors of N documents."""
        self._documents = documents

    def search(self, queries: Documents, depth: int) -> Hits:
        """As of `Engine`."""
        return search(queries, self._documents, depth)

    def vectors(self, documents: np.ndarray) -> Documents:
        """As of `Engine`."""
        return self._documents[documents]

    def close(self) -> None:
        """As of `Engine`: there is nothing to release."""
