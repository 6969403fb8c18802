"""Parquet and JSONL files and `datasets` data sets as named `pyarrow` tables."""

import glob
import json
import pathlib
from typing import Any

from lsrjax.errors import InputError


def read_files(pattern: str, lists: bool = False) -> list[tuple[str, Any]]:
    """The Parquet or JSONL files that a path or glob pattern names.

    Args:
      pattern: the path or glob pattern.
      lists: whether a JSONL line may be a list, as ColBERT's are: `[qid, pid, …]` or
        `[qid, [pid, score], …]` gives the columns `qid`, `pids`, `scores`.

    Returns:
      The path and a `pyarrow.Table` of each, sorted by path.

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        try:
            # Not read_table, which takes columns from folder names like lang=de.
            return pq.ParquetFile(path, memory_map=True).read()
        except (pa.ArrowInvalid, OSError) as e:
            raise InputError(
                f"{path} ({path.stat().st_size:,} bytes) is not a whole Parquet file:"
                f" {e}. Copy or write it again."
            ) from e
    if path.suffix in (".jsonl", ".json"):
        return _to_table(_json_lines(path, lists), path)
    raise InputError(
        f"{path}: unknown file type {path.suffix!r}; known are .parquet and .jsonl."
    )


def _to_table(rows: list[dict], path: pathlib.Path):
    """The rows as a table; a row may lack fields that others have."""
    import pyarrow as pa

    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError) as e:
            number, value = _misfit(values)
            raise InputError(
                f"{path}, row {number} (the first is 0): field {name!r} is"
                f" {value!r:.80}, of another type than in the rows before ({e})."
                " Give the field one type in all rows."
            ) from e
    return pa.table(columns)


def _misfit(values: list) -> tuple[int, Any]:
    """The first value that does not go into one Arrow array with those before it."""
    import pyarrow as pa

    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            pa.array(values[:middle])
            good = middle
        except (pa.ArrowException, OverflowError):
            bad = middle
    return bad - 1, values[bad - 1]


def _json_lines(path: pathlib.Path, lists: bool) -> list[dict]:
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:  # broken JSON or broken UTF-8
                raise InputError(
                    f"{path}, line {number} is not JSON in UTF-8 ({e}):"
                    f" {line[:80]!r}. If it is the last line, the file is truncated:"
                    " write it again."
                ) from e
            if lists and isinstance(row, list):
                row = _ids_and_scores(row, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise InputError(
                    f"{path}, line {number} is {type(row).__name__}, not an object:"
                    f" {line[:80]!r}. Each line holds one example's fields by name;"
                    " lines of ids, as ColBERT's, need config.data.queries and"
                    " config.data.corpus."
                )
            rows.append(row)
    return rows


def _ids_and_scores(line: list, where: str) -> dict:
    """ColBERT's `[qid, pid, …]` or `[qid, [pid, score], …]`, by name."""
    qid, *documents = line or [None]
    scored = [isinstance(d, list) and len(d) == 2 for d in documents]
    plain = [isinstance(value, str | int) for value in (qid, *documents)]
    if not documents or not plain[0] or not (all(scored) or all(plain)):
        raise InputError(
            f"{where} is {line!r:.80}; [qid, [pid, score], …] or [qid, pid, …] is"
            " needed, the first pid being the positive one."
        )
    pids = [d[0] for d in documents] if all(scored) else documents
    return {
        "qid": str(qid),
        "pids": [str(pid) for pid in pids],
        "scores": [d[1] for d in documents] if all(scored) else None,
    }


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
