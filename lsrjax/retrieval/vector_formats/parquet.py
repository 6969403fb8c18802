"""Vectors as Parquet.

Columns: `id`; for weights of terms `indices` (list of int32) and `values` (list of
float32), for embeddings `vector` (list of float32), for those of tokens `vectors` (list
of lists). The metadata's `lsrjax` is JSON: the names of the columns, and more.
"""

import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.vector_formats import npz
from lsrjax.retrieval.vector_formats.vectors import (
    DENSE,
    SPARSE,
    About,
    Block,
    Matrix,
    Vectors,
    checked,
)

KEY = b"lsrjax"
_GROUP = 8192  # texts of a row group


def schema(about: About) -> pa.Schema:
    """The columns of a kind of vectors, and what they are made of."""
    floats = pa.list_(pa.float32())
    columns = {
        SPARSE: [("indices", pa.list_(pa.int32())), ("values", floats)],
        DENSE: [("vector", pa.list_(pa.float32(), about.columns))],
    }.get(about.kind, [("vectors", pa.list_(pa.list_(pa.float32(), about.columns)))])
    return pa.schema([("id", pa.string()), *columns], {KEY: about.json().encode()})


def table(ids: list[str], matrix: Matrix, about: About) -> pa.Table:
    """A block of vectors as a table of the `schema`."""
    columns = [pa.array(ids, pa.string())]
    if isinstance(matrix, TokenMatrix):
        flat = pa.array(matrix.tokens_TD.astype(np.float32, copy=False).ravel())
        tokens = pa.FixedSizeListArray.from_arrays(flat, about.columns)
        starts = pa.array(matrix.starts.astype(np.int32))
        columns.append(pa.ListArray.from_arrays(starts, tokens))
    elif about.kind == DENSE:
        flat = pa.array(matrix.toarray().astype(np.float32, copy=False).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(flat, about.columns))
    else:
        starts = pa.array(matrix.indptr.astype(np.int32))
        for values, kind in ((matrix.indices, np.int32), (matrix.data, np.float32)):
            flat = pa.array(values.astype(kind, copy=False))
            columns.append(pa.ListArray.from_arrays(starts, flat))
    return pa.Table.from_arrays(columns, schema=schema(about))


class ParquetVectors(Vectors):
    """The vectors of a `.parquet`."""

    def __init__(self, path: pathlib.Path):
        """Reads the metadata.

        Raises:
          InputError: the file is damaged, or not one of vectors.
        """
        try:
            self._file = pq.ParquetFile(path)
            metadata = self._file.schema_arrow.metadata or {}
            about = About.of(json.loads(metadata[KEY]))
            names = self._file.schema_arrow.names
            self._schema = schema(about)
            if names != self._schema.names:
                raise ValueError(f"its columns are {', '.join(names)}")
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(
                f"{path} is no Parquet file of vectors, or is damaged ({error}). Encode"
                " again."
            ) from error
        super().__init__(str(path), about, self._file.metadata.num_rows)

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        """As of `Vectors`."""
        seen = 0
        try:
            for batch in self._file.iter_batches(rows):
                where = f"{self.name}, rows from {seen}"
                ids = self._column(batch, "id").to_pylist()
                if batch.column("id").null_count:
                    raise ValueError("an id is missing")
                yield checked(ids, self._matrix(batch), where)
                seen += len(ids)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{self.name} is damaged after row {seen:,} ({error}). Encode again."
            ) from error

    def _matrix(self, batch: pa.RecordBatch) -> Matrix:
        if self.kind == DENSE:
            flat = _floats(self._column(batch, "vector").flatten())
            return sparse.csr_matrix(flat.reshape(len(batch), self.columns))
        if self.kind != SPARSE:
            lists = self._column(batch, "vectors")
            tokens = lists.flatten()
            if tokens.null_count:
                raise ValueError("the vector of a token is missing")
            flat = _floats(tokens.flatten())
            return TokenMatrix(flat.reshape(-1, self.columns), _starts(lists))
        indices, weights = (self._column(batch, name) for name in ("indices", "values"))
        columns = indices.flatten().to_numpy(zero_copy_only=False)
        values, starts = _floats(weights.flatten()), _starts(indices)
        if not np.array_equal(starts, _starts(weights)):
            raise ValueError("a text has more indices than values")
        if len(columns) and not 0 <= columns.min() <= columns.max() < self.columns:
            raise ValueError(f"an index is outside the {self.columns:,} columns")
        shape = (len(batch), self.columns)
        matrix = sparse.csr_matrix((values, columns, starts), shape=shape)
        matrix.sort_indices()
        return matrix

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        """A column with the type of the `schema`, whichever the file's is."""
        return batch.column(name).cast(self._schema.field(name).type)


def _floats(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)


def _starts(lists: pa.ListArray) -> np.ndarray:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def assemble(folder: pathlib.Path, out: pathlib.Path, about: About) -> None:
    """Makes the file of the `npz.pieces` in a folder, a row group at a time."""
    with pq.ParquetWriter(out, schema(about), compression="zstd") as writer:
        for ids, matrix in npz.assembled_blocks(folder, about, _GROUP):
            writer.write_table(table(ids, matrix, about), row_group_size=_GROUP)
