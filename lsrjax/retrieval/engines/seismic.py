"""The engine `seismic`: an inverted index of one machine, approximate and quick.

pyseismic-lsr; Bruch et al., "Efficient Inverted Indexes for Approximate Retrieval over
Learned Sparse Representations", SIGIR 2024.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.engines.engine import (
    Hits,
    check_weights,
    nothing,
    read_shape,
    write_shape,
)
from lsrjax.retrieval.vector_formats.vectors import SPARSE, Vectors

_NAME = "documents"
_FILE = f"{_NAME}.index.seismic"
_NUMBERS = "numbers.i64"
_SMALL = 1 << 16  # columns that 16 bits number
_LARGEST = 65_504  # of 16-bit floats, which weights are stored as
_AT_ONCE = 1024  # queries: their columns are strings of 400 bytes


class Seismic:
    """An index in memory, saved as one file.

    Columns are addressed by their number. Weights are stored in 16 bits, and scores are
    computed with those. Two builds differ, since clusters begin with random documents.
    """

    kinds = (SPARSE,)
    needs = ("seismic", "search")
    searching = ("query_cut", "heap_factor", "threads")

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the engine."""

        postings: int = option(
            0, "mean postings kept of a term, 0: a sixth of all, at least 64", low=0
        )
        centroids: float = option(
            0.1, "clusters of a term's postings, as a share", above=0, high=1
        )
        min_cluster: int = option(2, "documents of a cluster, at least", low=1)
        energy: float = option(
            0.8, "share of a cluster's weight that its summary keeps", above=0, high=1
        )
        most: float = option(1.5, "most postings of a term, in means", low=1)
        document_cut: int = option(15, "terms of a document that clusters see", low=1)
        neighbours: int = option(0, "of each document, which a search looks at", low=0)
        query_cut: int = option(0, "terms of a query that count, 0: all", low=0)
        heap_factor: float = option(
            0.7,
            "clusters below this share of the last hit's score are skipped",
            above=0,
            high=1,
        )
        threads: int = option(0, "of builds and searches, 0: one a core", low=0)

    @staticmethod
    def build(folder: pathlib.Path, vectors: Vectors, options: Options) -> None:
        """Builds the index in memory, about three times its size, and saves it."""
        dataset_class, index_class = _classes(vectors.columns > _SMALL)
        dataset = dataset_class(dim=vectors.columns)
        first, total, stored = 0, 0, []
        for _, matrix in vectors.blocks():
            matrix = _positive(matrix, first)
            dataset.add_documents_by_id(
                [str(first + row) for row in range(matrix.shape[0])],
                matrix.indices.astype(np.int64),
                matrix.data,
                matrix.indptr.astype(np.int64),
            )
            # It leaves out documents without a weight.
            stored.append(first + np.flatnonzero(np.diff(matrix.indptr)))
            first += matrix.shape[0]
            total += matrix.nnz
        numbers = np.concatenate([np.zeros(0, np.int64), *stored])
        numbers.astype("<i8").tofile(folder / _NUMBERS)
        write_shape(folder, vectors)
        if not len(numbers):
            return
        with _silence():
            index = index_class.build_from_dataset(
                dataset,
                n_postings=options.postings or max(64, total // (6 * vectors.columns)),
                centroid_fraction=options.centroids,
                min_cluster_size=options.min_cluster,
                summary_energy=options.energy,
                max_fraction=options.most,
                doc_cut=options.document_cut,
                nknn=options.neighbours,
                num_threads=options.threads,
            )
            index.save(str(folder / _NAME))

    @staticmethod
    def open(folder: pathlib.Path, options: Options) -> "SeismicEngine":
        """Reads the index into memory."""
        return SeismicEngine(folder, options)


class SeismicEngine:
    """An open index of `Seismic`."""

    def __init__(self, folder: pathlib.Path, how: Seismic.Options):
        """Loads the index."""
        self._how = how
        _, self._width = read_shape(folder)
        self._numbers = np.fromfile(folder / _NUMBERS, "<i8")
        self._index: Any = None
        if len(self._numbers):
            _, index_class = _classes(self._width > _SMALL)
            path = folder / _FILE
            try:
                self._index = index_class.load(str(path))
            except OSError as error:
                raise InputError(
                    f"{path} cannot be read ({error}). Build the index again."
                ) from error

    def search(self, queries: sparse.csr_matrix, depth: int) -> Hits:
        """See `Engine.search`."""
        hits, scores = nothing(queries.shape[0], depth)
        if self._index is None:
            return hits, scores
        asked = np.flatnonzero(np.diff(queries.indptr))
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            for row, found in self._found(queries, some, depth):
                # Equal scores come in any order.
                numbers = np.array([int(number) for _, _, number in found], np.int32)
                values = np.array([score for _, score, _ in found], np.float32)
                order = np.lexsort((numbers, -values))[values != 0]
                hits[row, : len(order)] = numbers[order]
                scores[row, : len(order)] = values[order]
        return hits, scores

    def _found(self, queries, rows, depth: int) -> Iterator[tuple[int, list]]:
        import seismic

        text = seismic.get_seismic_string()
        starts = queries.indptr
        places = [slice(starts[row], starts[row + 1]) for row in rows]
        columns = [queries.indices[place].astype(text) for place in places]
        results = self._index.batch_search(
            np.array([str(row) for row in rows], text),
            columns,
            [queries.data[place].astype(np.float32) for place in places],
            k=min(depth, len(self._numbers)),
            query_cut=self._how.query_cut or max(map(len, columns)),
            heap_factor=self._how.heap_factor,
            n_knn=self._how.neighbours,
            num_threads=self._how.threads,
        )
        # Results come in the order in which threads finish.
        return ((int(found[0][0]), found) for found in results if found)

    def vectors(self, documents: np.ndarray) -> sparse.csr_matrix:
        """See `Engine.vectors`."""
        documents = np.asarray(documents)
        places = np.searchsorted(self._numbers, documents)
        counts, columns, weights = [0], [], []
        for document, place in zip(documents, places, strict=True):
            some: tuple[list, list] = ([], [])
            if place < len(self._numbers) and self._numbers[place] == document:
                some = self._index.get(int(place))
            columns += some[0]
            weights += some[1]
            counts.append(len(columns))
        return sparse.csr_matrix(
            (np.array(weights, np.float32), np.array(columns, np.int32), counts),
            shape=(len(documents), self._width),
        )

    def close(self) -> None:
        """Releases the memory."""
        self._index = None


def _classes(large: bool) -> tuple[Any, Any]:
    try:
        import seismic
    except ImportError as error:
        raise InputError(
            f"The engine 'seismic' needs pyseismic-lsr ({error}):"
            " pip install 'lsrjax[search]'"
        ) from error
    if large:
        return seismic.SeismicDatasetLV, seismic.SeismicIndexLV
    return seismic.SeismicDataset, seismic.SeismicIndex


def _positive(matrix: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    check_weights(matrix, "seismic", first, _LARGEST)
    return matrix


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the library's own lines out of the standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
