"""An index on disk: documents, an engine's files, and `index.json`, written last.

    index.json       engine, options, what the vectors are made of, digests of all files
    documents.arrow  ids of the documents, and their texts if stored
    terms.json       names of the columns, if known
    engine/          the engine's own files

A build writes to `<folder>.partial`, so that a folder with the final name is complete.
A build that was stopped begins anew.
"""

import dataclasses
import hashlib
import json
import operator
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from lsrjax import json_files, options
from lsrjax.errors import InputError
from lsrjax.retrieval.engines.engine import Documents, Engine, Hits
from lsrjax.retrieval.engines.table import ENGINES, check_installed
from lsrjax.retrieval.several_views import SEVERAL
from lsrjax.retrieval.vector_formats.parts import digest_of
from lsrjax.retrieval.vector_formats.vectors import (
    DENSE,
    SPARSE,
    TOKENS,
    Block,
    Vectors,
)

INDEX = "index.json"
_DOCUMENTS, _TERMS, _ENGINE = "documents.arrow", "terms.json", "engine"
_UNFINISHED = "unfinished-index"  # marks a folder that a new build may remove
_VERSION = 1
_AGAIN = "Build the index again: lsrjax index."

# The default engine of each kind of vectors.
DEFAULTS = {SPARSE: "seismic", DENSE: "exact", TOKENS: "maxsim", SEVERAL: "exact"}


def choose(kind: str, name: str = "", values: Mapping[str, Any] = {}) -> options.Chosen:  # noqa: B006
    """An engine with its options, by default the one for a kind of vectors.

    Raises:
      InputError: an unknown engine or option, or one for other vectors.
    """
    name = name or DEFAULTS[kind]
    chosen = options.resolve(ENGINES, {"name": name, **values}, "--engine")
    if kind not in chosen.entry.kinds:
        able = [name for name, entry in ENGINES.items() if kind in entry.kinds]
        raise InputError(
            f"--engine {name} takes {' or '.join(chosen.entry.kinds)} vectors, and"
            f" these are {kind}. Use {' or '.join(able)}."
        )
    check_installed(name)
    return chosen


def build_index(
    folder: pathlib.Path,
    vectors: Vectors,
    engine: options.Chosen,
    texts: Iterable[tuple[str, str]] | None = None,
) -> None:
    """Indexes vectors into a new folder.

    Args:
      engine: from `choose`.
      texts: ids and texts that were encoded, in the same order, to be stored.

    Raises:
      InputError: the folder exists, the vectors are damaged or do not fit the engine,
        an id occurs twice, or `texts` are others than the vectors'.
    """
    if folder.exists():
        raise InputError(f"{folder} exists. Remove it, or name another --out.")
    partial = folder.with_name(f"{folder.name}.partial")
    _empty(partial)
    try:
        with _Recorded(vectors, partial / _DOCUMENTS, texts) as recorded:
            (partial / _ENGINE).mkdir()
            engine.entry.build(partial / _ENGINE, recorded, engine.options)
        if vectors.terms is not None:
            json_files.write_json(partial / _TERMS, {"terms": list(vectors.terms)})
        _write(partial / INDEX, _contents(partial, vectors, engine))
        (partial / _UNFINISHED).unlink()
        partial.rename(folder)
    except InputError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _empty(partial: pathlib.Path) -> None:
    """Makes the folder of a build, in place of that of a build that was stopped."""
    if partial.exists():
        if not (partial / _UNFINISHED).is_file():
            raise InputError(
                f"{partial} is in the way, and is no unfinished index. Remove it, or"
                " name another --out."
            )
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / _UNFINISHED).touch()


def _contents(
    folder: pathlib.Path, vectors: Vectors, engine: options.Chosen
) -> dict[str, Any]:
    living = {f"{_ENGINE}/{name}" for name in getattr(engine.entry, "living", ())}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return {
        "version": _VERSION,
        "engine": options.plain(engine),
        "kind": vectors.kind,
        "documents": len(vectors),
        "columns": vectors.columns,
        "made_of": vectors.made_of,
        "files": {
            name: [path.stat().st_size, digest_of(path)]
            for name, path in zip(names, paths, strict=True)
            if name != _UNFINISHED
            and not any(name == one or name.startswith(f"{one}/") for one in living)
        },
    }


def _write(path: pathlib.Path, values: dict[str, Any]) -> None:
    json_files.write_json(path, values | {"digest": _seal(values)})


def _seal(values: dict[str, Any]) -> str:
    """A digest of the file's own values, so that damage to them shows."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Recorded(Vectors):
    """Vectors whose ids and texts are written while an engine reads them."""

    def __init__(self, vectors: Vectors, path: pathlib.Path, texts):
        self.name, self.kind = vectors.name, vectors.kind
        self.columns, self.terms = vectors.columns, vectors.terms
        self.made_of, self._rows = vectors.made_of, len(vectors)
        self._vectors, self._path = vectors, path
        self._texts: Any = None if texts is None else iter(texts)
        fields = [("id", pa.string())] + [("text", pa.string())] * (texts is not None)
        self._schema = pa.schema(fields)
        self._seen: set[str] = set()

    def __enter__(self) -> "_Recorded":
        self._file = pa.ipc.new_file(str(self._path), self._schema)
        return self

    def __exit__(self, kind, *_) -> None:
        self._file.close()
        if kind is None:
            self._check_end()

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        for ids, matrix in self._vectors.blocks(rows):
            before = len(self._seen)
            self._seen.update(ids)
            if len(self._seen) < before + len(ids):
                self._refuse_twice(ids)
            columns = [pa.array(ids, pa.string())]
            if self._texts is not None:
                texts = [self._text(key) for key in ids]
                columns.append(pa.array(texts, pa.string()))
            self._file.write_batch(pa.record_batch(columns, schema=self._schema))
            yield ids, matrix

    def _text(self, key: str) -> str:
        found = next(self._texts, None)
        if found is None or found[0] != key:
            there = f"has {found[0]!r}" if found else "ends"
            raise InputError(
                f"--texts: it {there} where {self.name} has {key!r}. Name the file that"
                " was encoded, with its texts in the same order."
            )
        return found[1]

    def _refuse_twice(self, ids: Sequence[str]) -> None:
        twice = [key for key in ids if ids.count(key) > 1]
        which = f", {twice[0]!r} for one" if twice else ""
        raise InputError(
            f"{self.name}: an id occurs twice (from {ids[0]!r} to {ids[-1]!r}{which})."
            " Each document needs its own id: remove one, and encode again."
        )

    def _check_end(self) -> None:
        if len(self._seen) != len(self):
            raise InputError(
                f"{self.name} has {len(self._seen):,} vectors, not {len(self):,}."
                " Encode again."
            )
        if self._texts is not None and (more := next(self._texts, None)):
            raise InputError(
                f"--texts: {more[0]!r} is in the file, but not in {self.name}. Name the"
                " file that was encoded."
            )


class _Column(Sequence[str]):
    """A column of texts, of which only those that are asked for are read."""

    def __init__(self, values: pa.ChunkedArray):
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row):
        if isinstance(row, slice):
            return self._values[row].to_pylist()
        row = operator.index(row)
        return self._values[row + len(self) if row < 0 else row].as_py()


@dataclasses.dataclass(frozen=True)
class Index:
    """An open index.

    Attributes:
      name: its path, for messages.
      engine: finds documents by their number.
      ids: of the documents, by number.
      texts: of the documents, if they were stored.
      terms: the names of the columns, if known.
      kind: of the vectors: "sparse", "dense", "tokens" or "several" of them.
      made_of: what the vectors depend on: model, digest of its weights, role, lengths.
      options: the engine's name and options.
    """

    name: str
    engine: Engine
    ids: Sequence[str]
    texts: Sequence[str] | None
    terms: Sequence[str] | None
    kind: str
    columns: int
    made_of: Mapping[str, Any]
    options: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: Documents, depth: int) -> Hits:
        """The documents with the highest scores.

        Args:
          queries: Q rows of vectors of the same model.

        Returns:
          hits [Q, depth] int32, document numbers, best first, -1 for no hit; and scores
          [Q, depth] float32, 0 for no hit.

        Raises:
          InputError: the queries have other columns.
        """
        if queries.shape[1] != self.columns:
            raise InputError(
                f"The queries have {queries.shape[1]:,} columns, and the documents of"
                f" {self.name} {self.columns:,}: another model made them."
            )
        return self.engine.search(queries, depth)

    def close(self) -> None:
        """Releases files and connections."""
        self.engine.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_index(
    folder: str | pathlib.Path,
    changes: Mapping[str, Any] = {},  # noqa: B006
    *,
    verify: bool = True,
) -> Index:
    """Opens an index.

    Args:
      changes: options of the engine that only affect searches.
      verify: compare the digest of each file; their sizes are always compared.

    Raises:
      InputError: it is incomplete or damaged; names the file.
    """
    folder = pathlib.Path(folder)
    if not (folder / INDEX).is_file():
        partial = folder.with_name(f"{folder.name}.partial")
        if not folder.exists() and not partial.is_dir():
            raise InputError(
                f"There is no index {folder} (from {pathlib.Path.cwd()}). lsrjax index"
                " makes one."
            )
        stopped = f"; {partial} is of a build that was stopped" * partial.is_dir()
        raise InputError(f"{folder} is no index: it has no {INDEX}{stopped}. {_AGAIN}")
    values = json_files.read_json(folder / INDEX, _AGAIN, _read)
    for name, (size, digest) in values["files"].items():
        _check_file(folder / name, size, digest if verify else "")
    engine = _engine(values["engine"], changes, folder / INDEX)
    table = _documents(folder / _DOCUMENTS, verify)
    terms = folder / _TERMS
    return Index(
        str(folder),
        engine.entry.open(folder / _ENGINE, engine.options),
        _Column(table["id"]),
        _Column(table["text"]) if "text" in table.column_names else None,
        json_files.read_json(terms, _AGAIN)["terms"] if terms.is_file() else None,
        values["kind"],
        values["columns"],
        values["made_of"],
        options.plain(engine),
    )


def _read(values: dict[str, Any]) -> dict[str, Any]:
    seal = values.pop("digest")
    if seal != _seal(values):
        raise ValueError("it has other content than was written")
    if values["version"] != _VERSION:
        raise InputError(f"version {values['version']} of another lsrjax. {_AGAIN}")
    return values


def _check_file(path: pathlib.Path, size: int, digest: str) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing. {_AGAIN}")
    if (found := path.stat().st_size) != size:
        raise InputError(f"{path} has {found:,} bytes, not {size:,}. {_AGAIN}")
    if digest and digest_of(path) != digest:
        raise InputError(f"{path} has other bytes than were written. {_AGAIN}")


def _engine(
    node: Mapping[str, Any], changes: Mapping[str, Any], where: pathlib.Path
) -> options.Chosen:
    built = options.resolve(ENGINES, node, str(where), find=options.find_known)
    may = getattr(built.entry, "searching", ())
    for name in changes:
        if name not in may:
            can = f"only {', '.join(may)} can" if may else "none of its options can"
            raise InputError(
                f"--engine.{name} cannot be changed for a search with the engine"
                f" {built.name!r}; {can}. Build another index with it."
            )
    asked = getattr(built.entry, "asked", ())
    kept = {name: value for name, value in node.items() if name not in asked}
    return options.resolve(ENGINES, {**kept, **changes}, "--engine")


def _documents(path: pathlib.Path, verify: bool) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=verify)  # texts whose offsets leave the file
        return table
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is damaged ({error}). {_AGAIN}") from error
