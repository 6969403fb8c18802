"""Parquet and JSONL files and `datasets` data sets as named tables."""

import glob
import pathlib
from typing import Any

from lsrjax.data.arrow import ParquetRows
from lsrjax.data.lines import JsonRows
from lsrjax.errors import InputError


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
            tables.append((shown, _read_dataset(name, subset, split)))
    return tables


def _read_dataset(name: str, subset: str, split: str):
    try:
        import datasets
    except ImportError as e:
        raise InputError(
            "config.data.dataset needs the package datasets: pip install"
            " 'lsrjax[hub]', or use config.data.files."
        ) from e
    try:
        if pathlib.Path(name).is_dir():
            data = datasets.load_from_disk(name)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, subset or None, split=split)
    except Exception as e:  # the library raises many unrelated types
        raise InputError(
            f"The data set {name!r} (subset {subset or 'default'!r}, split {split!r})"
            f" could not be read: {type(e).__name__}: {e}. Without the hub, point"
            " config.data.dataset to a folder written by save_to_disk, or"
            " config.data.files to Parquet or JSONL files."
        ) from e
    return data.with_format("arrow")[:]
