"""The engine `milvus`: a file of Milvus Lite, or a server or cluster of Milvus."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax import json_files, options
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

TOKEN = "MILVUS_TOKEN"
_FILE = "milvus.db"
_WHERE = "milvus.json"
_LARGEST = float(np.finfo(np.float32).max)
_ROWS = 1000  # of a request, which has to stay below 64 MB
_MOST = 16_384  # hits of a request
_QUERIES = 64  # of a request


class Milvus:
    """A collection with a number and a sparse vector for each document.

    Columns are addressed by their number. The same code serves Milvus Lite, which is a
    folder in the index unless `uri` names another, and a server. The server's token
    comes from the environment, as MILVUS_TOKEN, and goes only to a server that the
    command line names: an index may be somebody else's.
    """

    kinds = (SPARSE,)
    needs = ("pymilvus", "milvus")
    searching = ("drop_ratio", "uri")
    asked = ("uri",)
    living = (_FILE,)

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the engine."""

        uri: str = option("", "./file.db, http://host:19530; empty: in the index")
        collection: str = option("", "its name; empty: a new one")
        drop_ratio: float = option(
            0.0, "share of a query's smallest weights left out", low=0, below=1
        )

        def problem(self) -> str | None:
            """A complaint about a URI that cannot be stored."""
            if "@" in self.uri:
                return (
                    "uri has a user name or a password, and an index is no place for"
                    f" one: give host and port, and set {TOKEN}=user:password."
                )
            return None

    @staticmethod
    def build(folder: pathlib.Path, vectors: Vectors, options: Options) -> None:
        """Fills a collection under a temporary name, then gives it its own."""
        name = options.collection or f"lsrjax_{secrets.token_hex(8)}"
        where = {"uri": _absolute(options.uri), "collection": name}
        with _client(folder, where, options) as client, _refusals(where):
            if client.has_collection(name):
                raise InputError(
                    f"Milvus at {where['uri']} has a collection {name!r}. Drop it, or"
                    " name another one with --engine.collection."
                )
            temporary = f"{name}_partial"
            client.drop_collection(temporary)  # of a build that was stopped
            _create(client, temporary)
            stored = _fill(client, temporary, vectors)
            client.rename_collection(temporary, name)
        json_files.write_json(folder / _WHERE, where | {"stored": stored})
        write_shape(folder, vectors)

    @staticmethod
    def open(folder: pathlib.Path, options: Options) -> "MilvusEngine":
        """Connects to the collection."""
        return MilvusEngine(folder, options)


class MilvusEngine:
    """An open index of `Milvus`."""

    def __init__(self, folder: pathlib.Path, how: Milvus.Options):
        """Connects, and checks that the collection is there."""
        self._how = how
        _, self._width = read_shape(folder)
        self._where, stored = json_files.read_json(
            folder / _WHERE,
            "Build the index again.",
            lambda v: ({k: str(v[k]) for k in ("uri", "collection")}, int(v["stored"])),
        )
        self._name = self._where["collection"]
        self._where["uri"] = _absolute(how.uri) or self._where["uri"]
        self._open = contextlib.ExitStack()
        self._client = self._open.enter_context(_client(folder, self._where, how))
        try:
            with _refusals(self._where):
                self._load(stored)
        except BaseException:
            self.close()
            raise

    def _load(self, stored: int) -> None:
        at = self._where["uri"] or "the index"
        if not self._client.has_collection(self._name):
            raise InputError(
                f"Milvus at {at} has no collection {self._name!r}, which the index is"
                " of. Build the index again."
            )
        self._client.load_collection(self._name)
        rows = self._client.query(self._name, filter="", output_fields=["count(*)"])
        if (found := rows[0]["count(*)"]) != stored:
            raise InputError(
                f"Milvus at {at}, collection {self._name!r} has {found:,} documents,"
                f" not {stored:,}. Build the index again."
            )

    def search(self, queries: sparse.csr_matrix, depth: int) -> Hits:
        """See `Engine.search`."""
        if depth > _MOST:
            raise InputError(f"--depth is {depth}; Milvus returns at most {_MOST:,}.")
        hits, scores = nothing(queries.shape[0], depth)
        asked = np.flatnonzero(np.diff(queries.indptr))
        for start in range(0, len(asked), _QUERIES):
            some = asked[start : start + _QUERIES]
            with _refusals(self._where):
                results = self._client.search(
                    self._name,
                    data=[_weights(queries, row) for row in some],
                    anns_field="vector",
                    limit=depth,
                    output_fields=["row"],
                    search_params={
                        "metric_type": "IP",
                        "params": {"drop_ratio_search": self._how.drop_ratio},
                    },
                )
            for row, found in zip(some, results, strict=True):
                numbers = np.array([hit["row"] for hit in found], np.int32)
                values = np.array([hit["distance"] for hit in found], np.float32)
                order = np.lexsort((numbers, -values))
                order = order[values[order] != 0]
                hits[row, : len(order)] = numbers[order]
                scores[row, : len(order)] = values[order]
        return hits, scores

    def vectors(self, documents: np.ndarray) -> sparse.csr_matrix:
        """See `Engine.vectors`."""
        documents = np.asarray(documents)
        with _refusals(self._where):
            found = self._client.get(
                self._name, ids=documents.tolist(), output_fields=["vector"]
            )
        by_number = {row["row"]: row["vector"] for row in found}
        rows = [by_number.get(number, {}) for number in documents.tolist()]
        columns = [column for row in rows for column in row]
        weights = [weight for row in rows for weight in row.values()]
        starts = np.cumsum([0, *map(len, rows)])
        matrix = sparse.csr_matrix(
            (np.array(weights, np.float32), np.array(columns, np.int32), starts),
            shape=(len(rows), self._width),
        )
        matrix.sort_indices()
        return matrix

    def close(self) -> None:
        """Closes the connection."""
        self._open.close()


def _absolute(uri: str) -> str:
    """A file by its whole path, a server as it is."""
    if not uri or "://" in uri:
        return uri
    return str(pathlib.Path(uri).expanduser().absolute())


@contextlib.contextmanager
def _client(
    folder: pathlib.Path, where: dict[str, str], how: Milvus.Options
) -> Iterator[Any]:
    """Connects; with the token only to a server that `how` names."""
    try:
        import pymilvus
    except ImportError as error:
        raise InputError(
            f"The engine 'milvus' needs pymilvus ({error}): pip install"
            " 'lsrjax[milvus]'"
        ) from error
    # They print tracebacks of errors that are raised as well, or that are none: Milvus
    # Lite lacks a call that pymilvus tries.
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = where["uri"] or str(folder.absolute() / _FILE)
    token = os.environ.get(TOKEN, "") if how.uri else ""
    try:
        client = pymilvus.MilvusClient(uri=uri, token=token)
    except pymilvus.MilvusException as error:
        raise InputError(
            f"Milvus at {uri} cannot be opened ({error}). A file of Milvus Lite serves"
            " one program at a time, and needs a path that ends in .db; a server has to"
            f" run, and may want {TOKEN}=user:password and --engine.uri, which says"
            " that it may have them."
        ) from error
    try:
        yield client
    finally:
        client.close()
        if "://" not in uri:
            _release(uri)


def _release(path: str) -> None:
    """Stops the thread that serves a file, so that others may open or move it."""
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(path)


@contextlib.contextmanager
def _refusals(where: dict[str, str]) -> Iterator[None]:
    import pymilvus

    try:
        yield
    except pymilvus.MilvusException as error:
        raise InputError(
            f"Milvus at {where['uri'] or 'the index'}, collection"
            f" {where['collection']!r}: {error}"
        ) from error


def _create(client, name: str) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index)


def _fill(client, name: str, vectors: Vectors) -> int:
    """The number of documents in the collection, which are those with a weight."""
    first = count = 0
    for _, matrix in vectors.blocks(_ROWS):
        matrix = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
        matrix.eliminate_zeros()
        check_weights(matrix, "milvus", first, _LARGEST)
        # It refuses vectors without a weight, which no query finds anyway.
        stored = np.flatnonzero(np.diff(matrix.indptr))
        data = [
            {"row": first + row, "vector": _weights(matrix, row)}
            for row in stored.tolist()
        ]
        if data:
            client.insert(name, data)
        first, count = first + matrix.shape[0], count + len(data)
    client.flush(name)
    return count


def _weights(matrix: sparse.csr_matrix, row: int) -> dict[int, float]:
    place = slice(matrix.indptr[row], matrix.indptr[row + 1])
    columns, weights = matrix.indices[place].tolist(), matrix.data[place].tolist()
    return dict(zip(columns, weights, strict=True))
