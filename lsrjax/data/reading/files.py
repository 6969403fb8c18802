"""Parquet and JSONL files and `datasets` data sets as tables with names."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from lsrjax import paths
from lsrjax.data.reading import plain
from lsrjax.data.reading.jsonl import JsonRows
from lsrjax.data.reading.parquet import ParquetRows
from lsrjax.errors import InputError

VERSION = b"lsrjax.version"  # of a data set, in the metadata of its table


def found_files(patterns: str | tuple[str, ...], field: str) -> list[str]:
    """The files that one or several paths, folders or glob patterns name.

    Raises:
      InputError: no such file, or as `paths.files`.
    """
    found = []
    for part in [patterns] if isinstance(patterns, str) else patterns:
        some = paths.files(part, field, plain.is_known)
        if not some and is_saved(part):
            raise InputError(
                f"{field}: the folder {part} is a data set of `save_to_disk`. Read it"
                f" with {field.rpartition('.')[0]} ="
                f' entry("datasets", dataset={part!r}).'
            )
        if not some:
            raise InputError(
                f"{field}: no file matches {part!r} (from {pathlib.Path.cwd()}). Give a"
                " path, a folder or a glob pattern of files of rows, or a list of"
                f" several: {plain.KNOWN}."
            )
        found += some
    return list(dict.fromkeys(found))


def read_files(
    patterns: str | tuple[str, ...],
    lists: bool = False,
    field: str = "config.data.source.files",
) -> list[tuple[str, ParquetRows | JsonRows]]:
    """The path and the rows of each file, as `found_files`.

    With `lists`, a JSONL line may be a list, like ColBERT's: `[qid, pid, …]` or
    `[qid, [pid, score], …]` gives the columns `qid`, `pids`, `scores`.

    Raises:
      InputError: no such file, or an unreadable or truncated one (named).
    """
    return [(path, _read_file(path, lists)) for path in found_files(patterns, field)]


def _read_file(path: str, lists: bool):
    kind = plain.kind_of(path)
    if kind == plain.PARQUET:
        return ParquetRows(pathlib.Path(path))
    if kind is None:
        raise InputError(
            f"{path}: unknown file type {os.path.splitext(path)[1]!r}; known are"
            f" {plain.KNOWN}."
        )
    return JsonRows(
        pathlib.Path(path), lists, plain.TSV_ROWS if kind == plain.TSV else kind
    )


def subsets(names: str | tuple | Mapping[str, Any]) -> list[tuple[str, str]]:
    """(data set, subset) of each of several data sets; "" is the default subset.

    `names` is one name, several, or subsets by name: `{"c/d": ("en-de", "en-fr")}`.
    """
    if isinstance(names, str):
        return [(names, "")]
    if not isinstance(names, Mapping):
        return [(name, "") for name in names]
    return [
        (name, subset)
        for name, some in names.items()
        for subset in ([some] if isinstance(some, str) else some)
    ]


def read_datasets(
    names: str | tuple | Mapping[str, Any], split: str
) -> list[tuple[str, Any]]:
    """The name and a `pyarrow.Table` of each of several `datasets` data sets.

    Args:
      names: as `subsets`; each a folder of `save_to_disk`, a clone or a hub id.

    Raises:
      InputError: the package is missing, or a data set could not be read.
    """
    return [
        (f"{name}:{subset}" if subset else name, read_dataset(name, subset, split)[0])
        for name, subset in subsets(names)
    ]


def is_saved(folder: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    beside = ("state.json", "dataset_dict.json")
    return any(os.path.isfile(os.path.join(folder, name)) for name in beside)


def read_dataset(name: str, subset: str, split: str) -> tuple[Any, list[str]]:
    """A `datasets` data set: a memory-mapped `pyarrow.Table`, and the files behind it.

    Args:
      name: a folder of `save_to_disk`, a clone of a data set of the hub, or a hub id.
      subset: empty: the default one.
      split: empty: the only one.

    Raises:
      InputError: the package is missing, or the data set could not be read.
    """
    try:
        import datasets
    except ImportError as e:
        raise InputError(
            f"The data set {name!r} needs the package datasets: pip install"
            " 'lsrjax[hub]', or use files."
        ) from e
    name = paths.local(name, "config.data.source.dataset")
    saved = is_saved(name)
    if subset and saved:
        raise InputError(
            f"{name}:{subset}: a folder of save_to_disk has no subsets. Remove"
            f" {subset!r}, or name the subset's own folder."
        )
    try:
        if saved:
            data = datasets.load_from_disk(name)
            whole = not isinstance(data, datasets.DatasetDict)
            data = data if whole or not split else data[split]
        else:
            _check_folder(name)
            data = datasets.load_dataset(name, subset or None, split=split or None)
    except Exception as e:  # the library raises many unrelated types
        raise InputError(
            f"The data set {name!r} (subset {subset or 'default'!r}, split"
            f" {split or 'the only one'!r}) could not be read: {type(e).__name__}: {e}."
            " Without the hub, name a folder written by save_to_disk, or Parquet or"
            " JSONL files."
        ) from e
    if isinstance(data, datasets.DatasetDict):
        if len(data) > 1:
            raise InputError(
                f"The data set {name!r} has the splits {', '.join(data)}. Say which:"
                f' {{"dataset": {name!r}, "split": {next(iter(data))!r}}}.'
            )
        (data,) = data.values()
    files = [file["filename"] for file in data.cache_files]
    table = data.with_format("arrow")[:]
    # Stored with the table, the only part of the data set that others see.
    version = f"version {data.version}, fingerprint {data._fingerprint}"
    known = table.schema.metadata or {}
    return table.replace_schema_metadata(known | {VERSION: version}), files


def _check_folder(name: str) -> None:
    """Refuses a clone without its data; the library's own error is unclear."""
    if not os.path.isdir(name):
        return
    for path in paths.files(
        name, "config.data.source.dataset", plain.is_known, whole=True
    ):
        plain.check_fetched(path)
