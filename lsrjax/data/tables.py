"""Parquet and JSONL files and `datasets` data sets as named tables."""

import glob
import pathlib
from typing import Any

from lsrjax.data.arrow import ParquetRows
from lsrjax.data.lines import JsonRows
from lsrjax.errors import InputError

VERSION = b"lsrjax.version"  # of a data set, in the metadata of its table


def read_files(
    pattern: str, lists: bool = False
) -> list[tuple[str, ParquetRows | JsonRows]]:
    """The Parquet or JSONL files that a path or glob pattern names.

    Args:
      pattern: the path or glob pattern.
      lists: whether a JSONL line may be a list, as ColBERT's are: `[qid, pid, …]` or
        `[qid, [pid, score], …]` gives the columns `qid`, `pids`, `scores`.

    Returns:
      The path of each, sorted, and its rows.

    Raises:
      InputError: no such file, or an unreadable or truncated one (named).
    """
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise InputError(
            f"config.data.files: no file matches {pattern!r} (from"
            f" {pathlib.Path.cwd()}). Give a path or glob pattern of .parquet or"
            " .jsonl files."
        )
    return [(path, _read_file(pathlib.Path(path), lists)) for path in paths]


def _read_file(path: pathlib.Path, lists: bool):
    if path.suffix == ".parquet":
        return ParquetRows(path)
    if path.suffix in (".jsonl", ".json"):
        return JsonRows(path, lists)
    raise InputError(
        f"{path}: unknown file type {path.suffix!r}; known are .parquet and .jsonl."
    )


def read_datasets(names: str, split: str) -> list[tuple[str, Any]]:
    """The rows of `datasets` data sets.

    Args:
      names: data sets separated by commas, each a folder of `save_to_disk` or
        `hub/id:subset+subset`; without subsets, the default one.
      split: split of each.

    Returns:
      The name and a `pyarrow.Table` of each.

    Raises:
      InputError: the package is missing, or a data set could not be read.
    """
    tables = []
    for name in names.split(","):
        name, _, subsets = name.strip().partition(":")
        for subset in subsets.split("+"):
            shown = f"{name}:{subset}" if subset else name
            tables.append((shown, read_dataset(name, subset, split)[0]))
    return tables


def read_dataset(name: str, subset: str, split: str) -> tuple[Any, list[str]]:
    """A `datasets` data set.

    Args:
      name: a folder of `save_to_disk`, or a hub id.
      subset: its subset; empty: the default one.
      split: its split; empty: the only one there is.

    Returns:
      A `pyarrow.Table`, mapped into memory, and the files that it is mapped from.

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
    if subset and pathlib.Path(name).is_dir():
        raise InputError(
            f"{name}:{subset}: a folder of save_to_disk has no subsets. Remove"
            f" {subset!r}, or name the subset's own folder."
        )
    try:
        if pathlib.Path(name).is_dir():
            data = datasets.load_from_disk(name)
            whole = not isinstance(data, datasets.DatasetDict)
            data = data if whole or not split else data[split]
        else:
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
                f" datasets:{name}:{subset}:{next(iter(data))}."
            )
        (data,) = data.values()
    paths = [file["filename"] for file in data.cache_files]
    table = data.with_format("arrow")[:]
    # Kept with the table, which is all that others see of the data set.
    version = f"version {data.version}, fingerprint {data._fingerprint}"
    known = table.schema.metadata or {}
    return table.replace_schema_metadata(known | {VERSION: version}), paths
