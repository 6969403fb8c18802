"""Rows of Arrow tables and of Parquet files, read on demand."""

import bisect
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.reading import plain
from lsrjax.errors import InputError


class ArrowRows:
    """Rows of a `pyarrow` table."""

    def __init__(self, table):
        self._table = table
        self.metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        # Record batches are found by bisection; chunks of a table are not.
        self.select({name: name for name in table.column_names})

    @property
    def column_names(self) -> list[str]:
        """All columns, not only the kept ones."""
        return self._table.column_names

    def __len__(self) -> int:
        return self._table.num_rows

    def first_row(self) -> Mapping[str, Any]:
        """The first row, whichever columns are kept."""
        return self._table.slice(0, 1).to_pylist()[0]

    def select(self, fields: Mapping[str, str]) -> None:
        """Keeps some columns, named by their fields."""
        kept = self._table.select(list(fields.values())).rename_columns(list(fields))
        self._batches = kept.to_batches()
        self._starts = starts(self._batches)

    def row(self, index: int) -> Mapping[str, Any]:
        """The kept fields of a row."""
        place = bisect.bisect_right(self._starts, index) - 1
        batch = self._batches[place].slice(index - self._starts[place], 1)
        return batch.to_pylist()[0]

    def values(self, field: str) -> Iterator[Any]:
        """A kept field of all rows; for one that is not UTF-8, the error."""
        for batch in self._batches:
            try:
                yield from batch[field].to_pylist()
            except UnicodeDecodeError:
                yield from map(_value, batch[field])


def _value(scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


class ParquetRows:
    """Rows of a Parquet file, whose kept columns are unpacked into a temporary file.

    Reading one row of Parquet decompresses the thousands of its row group. The
    temporary file is memory-mapped and unnamed: it disappears with the process.
    """

    def __init__(self, path: pathlib.Path):
        """Opens the file; InputError if it is not a complete Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        plain.check_fetched(path)
        try:
            # Not read_table, which takes columns from folder names like lang=de; not
            # memory-mapped, since a truncation would end the process.
            self._file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as e:
            raise self._broken(e) from e
        self.column_names = self._file.schema_arrow.names
        self._length = self._file.metadata.num_rows
        self._rows: ArrowRows  # from `select` on

    def __len__(self) -> int:
        return self._length

    def first_row(self) -> Mapping[str, Any]:
        """The first row, before columns are selected; InputError if unreadable."""
        import pyarrow as pa

        try:
            return next(self._file.iter_batches(batch_size=1)).to_pylist()[0]
        except (pa.ArrowInvalid, OSError) as e:
            raise self._broken(e) from e

    def select(self, fields: Mapping[str, str]) -> None:
        """Unpacks some columns, named by their fields, and closes the file.

        Raises:
          InputError: the file could not be read, has such a column twice, or there is
            no space to unpack it.
        """
        import pyarrow as pa

        for name in fields.values():
            if self.column_names.count(name) > 1:
                raise InputError(
                    f"{self._path} has several columns {name}. Give each its own name."
                )
        try:
            self._rows = ArrowRows(self._unpacked(list(dict.fromkeys(fields.values()))))
        except (pa.ArrowInvalid, OSError) as e:
            raise self._broken(e) from e
        self._rows.select(fields)
        self._file = None

    def row(self, index: int) -> Mapping[str, Any]:
        """The kept fields of a row."""
        return self._rows.row(index)

    def values(self, field: str) -> Iterator[Any]:
        """A kept field of all rows."""
        return self._rows.values(field)

    def _unpacked(self, columns: Sequence[str]):
        import pyarrow as pa

        schema = pa.schema([self._file.schema_arrow.field(name) for name in columns])
        # The mapping outlives the file's name.
        with tempfile.NamedTemporaryFile(prefix="lsrjax-rows-") as unpacked:
            # A stream, since dictionaries may differ between batches.
            with pa.ipc.new_stream(unpacked.name, schema) as writer:
                for batch in self._file.iter_batches(columns=columns):
                    writer.write_batch(batch.select(columns))
            return pa.ipc.open_stream(pa.memory_map(unpacked.name)).read_all()

    def _broken(self, error: Exception) -> InputError:
        size = self._path.stat().st_size
        return InputError(
            f"{self._path} ({size:,} bytes) is not a whole Parquet file, or could not"
            f" be unpacked into {tempfile.gettempdir()}: {error}. Copy or write it"
            " again; TMPDIR names another folder to unpack into."
        )


def starts(parts: Sequence[Sequence]) -> list[int]:
    """The number of the first row of each part."""
    return np.cumsum([0, *map(len, parts)])[:-1].tolist()
