"""Vectors as arrays in an `.npz`, the ids of their texts among them.

Weights of terms are scipy's CSR matrix (`sparse.load_npz` reads it): `data` float32,
`indices`, `indptr`, `shape`. Embeddings are `embeddings` [N, D], those of tokens
[T, D] with `starts` [N + 1]: the first token of each text, then T. `ids` are the ids of
the texts, and `about.json` says what the vectors are made of and names their columns.
Nothing is pickled, nor compressed: the arrays are mapped into memory, not read.
"""

import contextlib
import io
import itertools
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

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

ABOUT = "about.json"
# The dimensions of each array, and the kinds of numbers that it may hold.
_ARRAYS = {
    **{"data": (1, "fiub"), "indices": (1, "iu"), "indptr": (1, "iu")},
    **{"shape": (1, "iu"), "embeddings": (2, "fiub"), "starts": (1, "iu")},
}
_COPIED_BYTES = 1 << 24
_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)
# A fixed date, so that equal vectors are equal files.
_DATE = (1980, 1, 1, 0, 0, 0)


def pieces(kind: str) -> tuple[str, ...]:
    """The files that rows of a kind are appended to before they become arrays."""
    return {
        SPARSE: ("data", "indices", "counts", "ids"),
        DENSE: ("embeddings", "ids"),
        TOKENS: ("embeddings", "counts", "ids"),
    }[kind]


def appended(matrix: Matrix, ids: Sequence[str], kind: str) -> dict[str, bytes]:
    """The bytes that texts append to each of the `pieces`."""
    named = "".join(f"{json.dumps(key)}\n" for key in ids).encode()
    if isinstance(matrix, TokenMatrix):
        counts = np.diff(matrix.starts).astype("<i8").tobytes()
        rows = matrix.tokens_TD.astype("<f4").tobytes()
        return {"embeddings": rows, "counts": counts, "ids": named}
    if kind == DENSE:
        rows = matrix.toarray().astype("<f4").tobytes()
        return {"embeddings": rows, "ids": named}
    return {
        "data": matrix.data.astype("<f4").tobytes(),
        "indices": matrix.indices.astype("<i4").tobytes(),
        "counts": np.diff(matrix.indptr).astype("<i8").tobytes(),
        "ids": named,
    }


def assemble(folder: pathlib.Path, out: pathlib.Path, about: About) -> None:
    """Makes the file of the `pieces` in a folder; memory: 8 bytes a text."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        if about.kind == SPARSE:
            _assemble_sparse(folder, archive, about.columns)
        else:
            _assemble_embeddings(folder, archive, about)
        _copy_ids(archive, folder / "ids")
        with archive.open(zipfile.ZipInfo(ABOUT, _DATE), "w") as file:
            file.write(about.json().encode())


def assembled_blocks(folder: pathlib.Path, about: About, rows: int) -> Iterator[Block]:
    """Ids and vectors of the `pieces` in a folder, at most `rows` at a time."""
    width = 1 if about.kind == SPARSE else about.columns
    starts = None
    if about.kind != DENSE:
        counts = np.fromfile(folder / "counts", "<i8")
        starts = np.concatenate([[0], np.cumsum(counts)])
    kinds = {"data": "<f4", "indices": "<i4"}
    if about.kind != SPARSE:
        kinds = {"embeddings": "<f4"}
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(open(folder / name, "rb"))
            for name in (*kinds, "ids")
        }
        done = 0
        while lines := [*itertools.islice(files["ids"], rows)]:
            ids = [*map(json.loads, lines)]
            end = done + len(ids)
            own = np.arange(done, end + 1) if starts is None else starts[done : end + 1]
            count = int(own[-1] - own[0]) * width
            read = {
                name: np.frombuffer(files[name].read(count * 4), kind)
                for name, kind in kinds.items()
            }
            done = end
            yield ids, _of_pieces(read, own - own[0], about)


def _of_pieces(read: dict[str, np.ndarray], starts: np.ndarray, about: About) -> Matrix:
    if about.kind == SPARSE:
        shape = (len(starts) - 1, about.columns)
        return sparse.csr_matrix((read["data"], read["indices"], starts), shape=shape)
    rows = read["embeddings"].reshape(-1, about.columns)
    return (
        TokenMatrix(rows, starts) if about.kind == TOKENS else sparse.csr_matrix(rows)
    )


def _assemble_sparse(folder, archive: zipfile.ZipFile, columns: int) -> None:
    counts = np.fromfile(folder / "counts", "<i8")
    indptr = np.concatenate([[0], np.cumsum(counts)])
    total = int(indptr[-1])
    # scipy's own choice; both arrays need the same type.
    kind = "<i4" if max(total, columns) <= np.iinfo(np.int32).max else "<i8"
    _copy(archive, folder / "data", "<f4", "<f4", (total,))
    _copy(archive, folder / "indices", "<i4", kind, (total,))
    _write(archive, "indptr", indptr.astype(kind))
    _write(archive, "shape", np.array([len(counts), columns]))
    _write(archive, "format", np.array(b"csr"))


def _assemble_embeddings(folder, archive: zipfile.ZipFile, about: About) -> None:
    embeddings = folder / "embeddings"
    rows = embeddings.stat().st_size // (4 * about.columns)
    _copy(archive, embeddings, "<f4", "<f4", (rows, about.columns))
    if about.kind == TOKENS:
        counts = np.fromfile(folder / "counts", "<i8")
        _write(archive, "starts", np.concatenate([[0], np.cumsum(counts)]))


def _open(archive: zipfile.ZipFile, name: str):
    return archive.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w", force_zip64=True)


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with _open(archive, name) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _copy(
    archive: zipfile.ZipFile,
    path: pathlib.Path,
    kind: str,
    wanted: str,
    shape: tuple[int, ...],
) -> None:
    header = {"descr": wanted, "fortran_order": False, "shape": shape}
    with _open(archive, path.name) as file, open(path, "rb") as raw:
        np.lib.format.write_array_header_1_0(file, header)
        while block := raw.read(_COPIED_BYTES):
            file.write(np.frombuffer(block, kind).astype(wanted).tobytes())


def _copy_ids(archive: zipfile.ZipFile, path: pathlib.Path) -> None:
    """Ids as texts of one width, which NumPy reads without pickle."""
    with open(path, "rb") as lines:
        count, widest = 0, 1
        for line in lines:
            count, widest = count + 1, max(widest, len(json.loads(line)))
    header = {"descr": f"<U{widest}", "fortran_order": False, "shape": (count,)}
    with _open(archive, "ids") as file, open(path, "rb") as lines:
        np.lib.format.write_array_header_1_0(file, header)
        while some := lines.readlines(1 << 20):
            file.write(np.array([*map(json.loads, some)], f"<U{widest}").tobytes())


class NpzVectors(Vectors):
    """The vectors of an `.npz`."""

    def __init__(self, path: pathlib.Path):
        """Maps the arrays into memory.

        Raises:
          InputError: the file is damaged, or is none of ours and has no ids.
        """
        try:
            self._arrays, values = _mapped(path)
            about = None if values is None else About.of(json.loads(values))
            _check_numbers(self._arrays)
            about = about or _about_of(self._arrays)
            rows = _check(self._arrays, about)
        except _DAMAGED as error:
            raise InputError(
                f"{path} is no file of vectors, or is damaged ({error}). Encode again."
            ) from error
        if "ids" not in self._arrays:
            raise InputError(
                f"{path} has no array `ids`, the ids of its {rows:,} texts. Encode"
                " again, or add them: np.savez(..., ids=np.array([...]))."
            )
        super().__init__(str(path), about, rows)

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        """As of `Vectors`."""
        for start in range(0, len(self), rows):
            end = min(start + rows, len(self))
            ids = self._arrays["ids"][start:end].tolist()
            yield checked(ids, self._matrix(start, end), self.name)

    def _matrix(self, start: int, end: int) -> Matrix:
        if self.kind == DENSE:
            return sparse.csr_matrix(np.array(self._arrays["embeddings"][start:end]))
        ends = self._arrays["indptr" if self.kind == SPARSE else "starts"]
        own = np.array(ends[start : end + 1]).astype(np.int64)
        first, last = int(own[0]), int(own[-1])
        if self.kind == TOKENS:
            tokens_TD = np.array(self._arrays["embeddings"][first:last])
            return TokenMatrix(tokens_TD, own - first)
        columns = np.array(self._arrays["indices"][first:last])
        if len(columns) and not 0 <= columns.min() <= columns.max() < self.columns:
            raise InputError(
                f"{self.name} is damaged: texts {start} to {end} have weights outside"
                f" its {self.columns:,} columns. Encode again."
            )
        data = np.array(self._arrays["data"][first:last], np.float32)
        shape = (end - start, self.columns)
        matrix = sparse.csr_matrix((data, columns, own - first), shape=shape)
        matrix.sort_indices()
        return matrix


def _mapped(path: pathlib.Path) -> tuple[dict[str, np.ndarray], bytes | None]:
    """The arrays of an `.npz`, those not compressed mapped, and its `about.json`."""
    found: dict[str, np.ndarray] = {}
    about = None
    with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
        for info in archive.infolist():
            if info.filename == ABOUT:
                about = archive.read(info)
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            if info.compress_type == zipfile.ZIP_STORED:
                found[name] = _map(path, raw, info)
            else:
                member = io.BytesIO(archive.read(info))
                found[name] = np.lib.format.read_array(member, allow_pickle=False)
    return found, about


def _map(path: pathlib.Path, raw: Any, info: zipfile.ZipInfo) -> np.ndarray:
    # A member's data follow its own header of 30 bytes, its name and extra fields.
    raw.seek(info.header_offset)
    header = raw.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise ValueError(f"{info.filename} is not where the file says")
    name, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    start = info.header_offset + 30 + name + extra
    raw.seek(start)
    version = np.lib.format.read_magic(raw)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, kind = read(raw)
    at, size = raw.tell(), int(np.prod(shape)) * kind.itemsize
    if kind.hasobject:
        raise ValueError(f"{info.filename} is pickled, which could run code")
    if at + size > start + info.file_size:
        raise ValueError(f"{info.filename} is truncated")
    if not size:
        return np.zeros(shape, kind)
    order: Any = "F" if fortran else "C"
    return np.memmap(path, kind, "r", at, shape, order)


def _about_of(arrays: dict[str, np.ndarray]) -> About:
    """Of a file of another program, from its arrays."""
    if "embeddings" in arrays:
        kind = TOKENS if "starts" in arrays else DENSE
        return About(kind, int(arrays["embeddings"].shape[1]))
    return About(SPARSE, int(arrays["shape"][-1]))


def _check_numbers(arrays: dict[str, np.ndarray]) -> None:
    for name in _ARRAYS.keys() & arrays.keys():
        dimensions, kinds = _ARRAYS[name]
        array = arrays[name]
        if array.ndim != dimensions or array.dtype.kind not in kinds:
            raise ValueError(f"`{name}` is {array.dtype} of shape {array.shape}")


def _check(arrays: dict[str, np.ndarray], about: About) -> int:
    """The number of texts; ValueError if the arrays do not fit each other."""
    ends: np.ndarray | None
    if about.kind == SPARSE:
        if arrays["format"].item() not in (b"csr", "csr"):
            raise ValueError(f"its matrix is {arrays['format'].item()!r}, not CSR")
        rows, columns = map(int, arrays["shape"])
        ends, length = arrays["indptr"], len(arrays["data"])
        if len(arrays["indices"]) != length or columns != about.columns:
            raise ValueError("its arrays do not fit each other")
    else:
        embeddings = arrays["embeddings"]
        if embeddings.shape[1] != about.columns:
            raise ValueError("its embeddings have another shape")
        ends, length = arrays.get("starts"), len(embeddings)
        rows = length if ends is None else len(ends) - 1
    if ends is not None and (
        len(ends) != rows + 1
        or ends[0] != 0
        or ends[-1] != length
        or (ends[1:] < ends[:-1]).any()
    ):
        raise ValueError("the starts of its texts do not fit its values")
    if "ids" in arrays and (
        arrays["ids"].shape != (rows,) or arrays["ids"].dtype.kind != "U"
    ):
        raise ValueError("`ids` is not an array with the text of an id for each row")
    return rows
