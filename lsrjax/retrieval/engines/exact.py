"""The engine `exact`: reads every vector for each search, and misses nothing."""

import dataclasses
import pathlib

import numpy as np
from scipy import sparse

from lsrjax import options
from lsrjax.options import option
from lsrjax.retrieval.engines.engine import Hits, read_shape, write_shape
from lsrjax.retrieval.search import TopHits
from lsrjax.retrieval.vector_formats.vectors import DENSE, SPARSE, Vectors

_WEIGHTS, _COLUMNS, _STARTS = "weights.f32", "columns.i32", "starts.i64"


class Exact:
    """Files of a CSR matrix, which a search reads in blocks, memory-mapped.

    Scores and the order of hits are those of `lsrjax.retrieval.search.search`.
    """

    kinds = (SPARSE, DENSE)
    searching = ("block", "batch")

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the engine."""

        block: int = option(4096, "documents scored at once", low=1)
        batch: int = option(128, "queries scored at once", low=1)

    @staticmethod
    def build(folder: pathlib.Path, vectors: Vectors, options: Options) -> None:
        """Writes the matrix, in the memory of a block."""
        rows = 0
        with (
            open(folder / _WEIGHTS, "wb") as weights,
            open(folder / _COLUMNS, "wb") as columns,
            open(folder / _STARTS, "wb") as starts,
        ):
            starts.write(np.zeros(1, "<i8").tobytes())
            for _, matrix in vectors.blocks():
                matrix = sparse.csr_matrix(matrix, dtype=np.float32)
                matrix.sort_indices()
                weights.write(matrix.data.astype("<f4").tobytes())
                columns.write(matrix.indices.astype("<i4").tobytes())
                ends = rows + matrix.indptr[1:].astype("<i8")
                starts.write(ends.tobytes())
                rows += matrix.nnz

        write_shape(folder, vectors)

    @staticmethod
    def open(folder: pathlib.Path, options: Options) -> "ExactEngine":
        """Opens the files of `build`."""
        return ExactEngine(folder, options)


class ExactEngine:
    """An open index of `Exact`."""

    def __init__(self, folder: pathlib.Path, how: Exact.Options):
        """Maps the files into memory."""
        self._how = how
        _, self._width = read_shape(folder)
        self._starts = np.fromfile(folder / _STARTS, "<i8")
        self._weights = _mapped(folder / _WEIGHTS, "<f4")
        self._columns = _mapped(folder / _COLUMNS, "<i4")

    def search(self, queries: sparse.csr_matrix, depth: int) -> Hits:
        """See `Engine.search`."""
        found = TopHits(queries, depth, batch=self._how.batch, block=self._how.block)
        for start in range(0, len(self._starts) - 1, self._how.block):
            found.add(self._block(start, start + self._how.block))
        return found.best()

    def vectors(self, documents: np.ndarray) -> sparse.csr_matrix:
        """See `Engine.vectors`."""
        rows = [self._block(row, row + 1) for row in np.asarray(documents)]
        none = sparse.csr_matrix((0, self._width), dtype=np.float32)
        return sparse.vstack([none, *rows], format="csr")

    def close(self) -> None:
        """Nothing to release."""

    def _block(self, first: int, end: int) -> sparse.csr_matrix:
        starts = self._starts[first : end + 1]
        place = slice(starts[0], starts[-1])
        parts = self._weights[place], self._columns[place], starts - starts[0]
        return sparse.csr_matrix(parts, shape=(len(starts) - 1, self._width))


def _mapped(path: pathlib.Path, kind: str) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r")
