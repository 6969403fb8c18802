"""The engine `maxsim`: exact late interaction over the embeddings of tokens."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.encode_texts import BUCKETS
from lsrjax.retrieval.engines.engine import Hits, read_shape, write_shape
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import Best
from lsrjax.retrieval.vector_formats.vectors import TOKENS, Vectors

_TOKENS, _STARTS = "tokens", "starts.i64"
_KINDS = {"float32": "<f4", "float16": "<f2"}
_WINDOW = 4096  # documents that are sorted by length together


class MaxSim:
    """Files of token embeddings, memory-mapped, compared on all devices in blocks.

    The score is the sum over the query's tokens of the largest dot product with one of
    the document's (Khattab and Zaharia 2020), in float32.
    """

    kinds = (TOKENS,)
    searching = ("tokens", "queries")

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the engine."""

        dtype: str = option("float32", "of the stored numbers", choices=tuple(_KINDS))
        tokens: int = option(16_384, "tokens of documents compared at once", low=1)
        queries: int = option(16, "queries compared at once", low=1)

    @staticmethod
    def build(folder: pathlib.Path, vectors: Vectors, options: Options) -> None:
        """Writes the embeddings, in the memory of a block."""
        most = float(np.finfo(options.dtype).max)
        counts = []
        with open(folder / _TOKENS, "wb") as file:
            for ids, matrix in vectors.blocks():
                largest = np.abs(matrix.tokens_TD).max(initial=0)
                if largest > most:
                    raise InputError(
                        f"An embedding of {ids[0]!r} or a document after it has the"
                        f" number {largest:g}, too large for {options.dtype}. Use"
                        " --engine.dtype=float32."
                    )
                file.write(matrix.tokens_TD.astype(_KINDS[options.dtype]).tobytes())
                counts.append(np.diff(matrix.starts))
        starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
        starts.astype("<i8").tofile(folder / _STARTS)
        write_shape(folder, vectors)

    @staticmethod
    def open(folder: pathlib.Path, options: Options) -> "MaxSimEngine":
        """Opens the files of `build`."""
        return MaxSimEngine(folder, options)


class MaxSimEngine:
    """An open index of `MaxSim`."""

    def __init__(self, folder: pathlib.Path, how: MaxSim.Options):
        """Maps the embeddings into memory."""
        self._how = how
        _, width = read_shape(folder)
        starts = np.fromfile(folder / _STARTS, "<i8")
        kind = _KINDS[how.dtype]
        shape = (int(starts[-1]), width)
        tokens = (
            np.memmap(folder / _TOKENS, kind, mode="r", shape=shape)
            if starts[-1]
            else np.zeros(shape, kind)
        )
        self._documents = TokenMatrix(tokens, starts)

    def search(self, queries: TokenMatrix, depth: int) -> Hits:
        """See `Engine.search`."""
        best = Best(len(queries), depth)
        size = self._how.queries
        batches = [
            (slice(start, start + size), _padded(queries[start : start + size], size))
            for start in range(0, len(queries), size)
        ]
        for documents, block in self._blocks():
            for rows, batch in batches:
                scores = np.asarray(_scores(*batch, *block))
                asked = len(range(*rows.indices(len(queries))))
                best.add(rows, scores[:asked, : len(documents)], documents)
        return best.hits()

    def vectors(self, documents: np.ndarray) -> TokenMatrix:
        """See `Engine.vectors`."""
        found = self._documents[np.asarray(documents, np.int64)]
        return TokenMatrix(found.tokens_TD.astype(np.float32), found.starts)

    def close(self) -> None:
        """Nothing to release."""

    def _blocks(self) -> Iterator[tuple[np.ndarray, tuple[jax.Array, ...]]]:
        """Numbers of documents of similar lengths, and their padded embeddings.

        Documents without a token are left out: their score is 0, which is no hit.
        """
        counts = np.diff(self._documents.starts)
        for start in range(0, len(counts), _WINDOW):
            own = counts[start : start + _WINDOW]
            order = np.argsort(own, kind="stable")
            order = order[np.searchsorted(own[order], 1) :]
            while len(order):
                length = _bucket(own[order[-1]])
                size = _shared(max(1, self._how.tokens // length))
                some = start + np.sort(order[-size:])
                yield some, _on_devices(*_padded(self.vectors(some), size, length))
                order = order[:-size]


def _bucket(length: int) -> int:
    whole = -(-length // BUCKETS[-1]) * BUCKETS[-1]
    return int(next((size for size in BUCKETS if size >= length), whole))


def _shared(texts: int) -> int:
    """At least this many texts, the same number on each device."""
    devices = jax.local_device_count()
    return -(-texts // devices) * devices


def _padded(
    matrix: TokenMatrix, texts: int, length: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [texts, length, D] and mask; the length is a bucket's by default."""
    counts = np.diff(matrix.starts)
    length = length or _bucket(max(1, counts.max(initial=0)))
    mask_NL = np.zeros((texts, length), bool)
    mask_NL[: len(matrix)] = np.arange(length) < counts[:, None]
    tokens_NLD = np.zeros((texts, length, matrix.shape[1]), np.float32)
    tokens_NLD[mask_NL] = matrix.tokens_TD
    return tokens_NLD, mask_NL


def _on_devices(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    devices = jax.local_devices()
    if len(devices) == 1:
        return tuple(jax.device_put(array) for array in arrays)
    mesh = jax.sharding.Mesh(np.array(devices), ("texts",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("texts"))
    return tuple(jax.device_put(array, rows) for array in arrays)


@jax.jit
def _scores(queries_QLD, asked_QL, documents_NMD, mask_NM):
    """MaxSim [Q, N], 0 for a query or a document without a token."""
    products_QLNM = jnp.einsum(
        "qld,nmd->qlnm", queries_QLD, documents_NMD, precision="highest"
    )
    best_QLN = jnp.where(mask_NM, products_QLNM, -jnp.inf).max(axis=-1)
    counts_QLN = asked_QL[:, :, None] & mask_NM.any(axis=-1)
    return jnp.where(counts_QLN, best_QLN, 0).sum(axis=1)
