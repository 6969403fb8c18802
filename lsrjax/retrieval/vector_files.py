"""Files of vectors, written row by row, that get their name only when complete.

Rows are written to a folder `<file>.partial`, so that a program that was stopped
resumes after the last rows, and a file with the final name is complete.
"""

import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from scipy import sparse

from lsrjax import json_files
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix

_STATE = "state.json"
_COPIED_BYTES = 1 << 24


class VectorFile:
    """Rows being written to a file; `NpzFile` and `JsonlFile` are its formats."""

    _PARTS: tuple[str, ...]

    def __init__(self, path: pathlib.Path, made_of: Mapping[str, Any]):
        """Opens a new file, or resumes an unfinished one.

        Args:
          made_of: JSON values that the rows depend on; an unfinished file with others
            is refused.

        Raises:
          InputError: the file exists, or was begun with other values.
        """
        if path.exists():
            raise InputError(f"{path} exists. Remove it, or name another --out.")
        self.path = path
        self._folder = path.with_name(path.name + ".partial")
        self._made_of = json.loads(json.dumps(dict(made_of)))
        self.rows, sizes = self._begun()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, BinaryIO] = {}
        for name in self._PARTS:
            file = open(self._folder / name, "ab")  # noqa: SIM115  (closed by `close`)
            # Rows written after the last recorded state are written again.
            file.truncate(sizes.get(name, 0))
            self._files[name] = file

    def add(self, matrix: Any, ids: Sequence[str]) -> None:
        """Adds texts and their ids; a matrix is CSR or a `TokenMatrix`."""
        raise NotImplementedError

    def finish(self, columns: int) -> None:
        """Completes the file of vectors with this number of columns."""
        raise NotImplementedError

    def _begun(self) -> tuple[int, dict[str, int]]:
        """Number of recorded rows, and the bytes of each part that contain them."""
        path = self._folder / _STATE
        if not path.is_file():
            return 0, {}
        advice = f"Remove {self._folder}; its texts are encoded again."
        state = json_files.read_json(path, advice)
        if state["made_of"] != self._made_of:
            differences = trees.differences(
                state["made_of"], self._made_of, ("there", "asked")
            )
            raise InputError(
                f"{self._folder} was begun with something else:\n"
                + "\n".join(differences)
                + "\nAsk for the same again, remove it, or name another --out."
            )
        return state["rows"], state["bytes"]

    def _written(self, rows: int) -> None:
        """Makes the rows so far survive a stop."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows
        state = {
            "made_of": self._made_of,
            "rows": self.rows,
            "bytes": {name: file.tell() for name, file in self._files.items()},
        }
        json_files.write_json(self._folder / _STATE, state)

    def close(self) -> None:
        """Closes the files; keeps the rows so far, removes the folder if empty."""
        self._close_parts()
        if not self.rows:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _close_parts(self) -> None:
        for file in self._files.values():
            file.close()

    def _finished(self, temporary: pathlib.Path) -> None:
        temporary.replace(self.path)
        shutil.rmtree(self._folder)


class NpzFile(VectorFile):
    """A scipy CSR matrix: `data` float32, `indices`, `indptr`, `shape`."""

    _PARTS = ("data", "indices", "counts")

    def add(self, matrix: sparse.csr_matrix, ids: Sequence[str]) -> None:
        """Adds rows; their ids are not stored, their order is."""
        self._files["data"].write(matrix.data.astype("<f4").tobytes())
        self._files["indices"].write(matrix.indices.astype("<i4").tobytes())
        self._files["counts"].write(np.diff(matrix.indptr).astype("<i8").tobytes())
        self._written(matrix.shape[0])

    def finish(self, columns: int) -> None:
        """Assembles the file, in bounded memory plus 8 bytes a row."""
        self._close_parts()
        counts = np.fromfile(self._folder / "counts", "<i8")
        indptr = np.concatenate([[0], np.cumsum(counts)])
        total = int(indptr[-1])
        # scipy's own choice; both arrays need the same type.
        kind = "<i4" if max(total, columns) <= np.iinfo(np.int32).max else "<i8"
        temporary = self._folder / "whole.npz"
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _copy(archive, self._folder / "data", "<f4", "<f4", (total,))
            _copy(archive, self._folder / "indices", "<i4", kind, (total,))
            _write(archive, "indptr", indptr.astype(kind))
            _write(archive, "shape", np.array([len(counts), columns]))
            _write(archive, "format", np.array(b"csr"))
        self._finished(temporary)


class EmbeddingsFile(VectorFile):
    """Embeddings: `embeddings` [N, D] float32, one row per text.

    For token embeddings [T, D], text after text, and `starts` [N + 1]: the first token
    of each text, then T.
    """

    _PARTS = ("embeddings", "counts")

    def add(self, matrix: sparse.csr_matrix | TokenMatrix, ids: Sequence[str]) -> None:
        """Adds texts; their ids are not stored, their order is."""
        if isinstance(matrix, TokenMatrix):
            rows = matrix.tokens_TD
            counts = np.diff(matrix.starts).astype("<i8")
            self._files["counts"].write(counts.tobytes())
        else:
            rows = matrix.toarray()
        self._files["embeddings"].write(rows.astype("<f4").tobytes())
        self._written(matrix.shape[0])

    def finish(self, columns: int) -> None:
        """Assembles the file, in bounded memory plus 8 bytes a text."""
        self._close_parts()
        counts = np.fromfile(self._folder / "counts", "<i8")
        embeddings = self._folder / "embeddings"
        rows = embeddings.stat().st_size // (4 * columns)
        temporary = self._folder / "whole.npz"
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _copy(archive, embeddings, "<f4", "<f4", (rows, columns))
            if len(counts):
                _write(archive, "starts", np.concatenate([[0], np.cumsum(counts)]))
        self._finished(temporary)


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array)


def _copy(
    archive: zipfile.ZipFile,
    path: pathlib.Path,
    kind: str,
    wanted: str,
    shape: tuple[int, ...],
) -> None:
    header = {"descr": wanted, "fortran_order": False, "shape": shape}
    with (
        archive.open(f"{path.name}.npy", "w", force_zip64=True) as file,
        open(path, "rb") as raw,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        while block := raw.read(_COPIED_BYTES):
            file.write(np.frombuffer(block, kind).astype(wanted).tobytes())


class JsonlFile(VectorFile):
    """One line per text, its id and its vector, in the format of SEISMIC.

    `{"id": "d1", "vector": {"term": 1.5}}`, the strongest term first; of an embedding,
    `vector` is a list of numbers, and of token embeddings a list of such lists.
    """

    _PARTS = ("lines.jsonl",)

    def __init__(
        self,
        path: pathlib.Path,
        made_of: Mapping[str, Any],
        terms: Sequence[str] = (),
    ):
        """Like `VectorFile`; `terms` names the columns, unless they are embeddings."""
        super().__init__(path, made_of)
        self._terms = terms

    def add(self, matrix: sparse.csr_matrix | TokenMatrix, ids: Sequence[str]) -> None:
        """Adds texts and their ids."""
        lines = [
            json.dumps(
                {"id": key, "vector": self._vector(matrix, row)},
                ensure_ascii=False,
                allow_nan=False,
            )
            for row, key in enumerate(ids)
        ]
        text = "".join(f"{line}\n" for line in lines)
        self._files["lines.jsonl"].write(text.encode())
        self._written(len(ids))

    def _vector(self, matrix: sparse.csr_matrix | TokenMatrix, row: int) -> Any:
        if isinstance(matrix, TokenMatrix):
            return [_numbers(one) for one in matrix[row : row + 1].tokens_TD]
        if not self._terms:
            return _numbers(matrix[row].toarray()[0])
        places = slice(matrix.indptr[row], matrix.indptr[row + 1])
        columns, weights = matrix.indices[places], matrix.data[places]
        order = np.argsort(-weights, kind="stable")
        names = [self._terms[column] for column in columns[order]]
        return dict(zip(names, _numbers(weights[order]), strict=True))

    def finish(self, columns: int) -> None:
        """Gives the file its name."""
        self._close_parts()
        self._finished(self._folder / "lines.jsonl")


def _numbers(weights: np.ndarray) -> list[float]:
    """The shortest decimals of float32 values, not the digits as doubles."""
    return [float(str(weight)) for weight in weights]
