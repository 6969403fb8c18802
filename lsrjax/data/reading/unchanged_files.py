"""Checks that the data of a run has not changed since the run began.

A stage's manifest stores size, time and digest of each of its data files. The digest of
a file of more than 64 MB covers its ends and blocks evenly spread over it, so that it
costs a few megabytes: a small change between the blocks is not noticed.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from lsrjax import json_files
from lsrjax.data import sources
from lsrjax.data.batching import mixing
from lsrjax.data.reading import corpus
from lsrjax.errors import InputError

FILE = "data.json"
_WHOLE = 2**26  # bytes; larger files are read in part
_END, _BLOCK, _BLOCKS = 2**20, 2**16, 64
_SHOWN = 5  # differences in the error


def check_files(path: pathlib.Path, data, dev) -> None:
    """Compares the files of a stage with its manifest, or creates the manifest.

    Raises:
      InputError: a file that has changed, is truncated, missing or new.
    """
    found, known = states(data, dev), read(path)
    if "files" in known:
        _refuse(path, list(_changes(known["files"], found)))
    if found and "files" not in known:
        json_files.write_json(path, known | {"files": found})


def check_versions(path: pathlib.Path, opened: Sequence) -> None:
    """Compares the versions of libraries' data sets with the manifest, or adds them.

    Raises:
      InputError: another version or fingerprint.
    """
    found, known = _versions(opened), read(path)
    if "versions" in known:
        _refuse(path, list(_other_versions(known["versions"], found)))
    elif found:
        json_files.write_json(path, known | {"versions": found})


def accept(path: pathlib.Path, data, dev, opened: Sequence) -> list[str]:
    """Updates the manifest to the present data, and records the changes in it.

    Returns:
      The changes, in words.
    """
    known, files, versions = read(path), states(data, dev), _versions(opened)
    changes = [
        *_changes(known.get("files", {}), files),
        *_other_versions(known.get("versions", {}), versions),
    ]
    if changes:
        accepted = [*known.get("accepted", []), changes]
        json_files.write_json(
            path, {"files": files, "versions": versions, "accepted": accepted}
        )
    return changes


def states(data, dev) -> dict[str, dict]:
    """Path to size, time and digest of each file that `data` and `dev` name."""
    files = dict.fromkeys(name for name in _files(data, dev) if os.path.isfile(name))
    return {name: _state(name) for name in files}


def _versions(opened: Sequence) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in opened:
        found |= getattr(source, "versions", {})
    return found


def _other_versions(before: Mapping, found: Mapping) -> Iterator[str]:
    for name in sorted(before.keys() | found.keys()):
        then, now = before.get(name), found.get(name)
        if then != now:
            yield f"the data set {name} was {then}, and is {now}"


def digest(path: str | pathlib.Path) -> str:
    """The digest of a file, or of ends and blocks of a large one."""
    size = os.path.getsize(path)
    hashed = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        if size <= _WHOLE:
            while chunk := file.read(_END):
                hashed.update(chunk)
            return hashed.hexdigest()
        starts = [size * i // _BLOCKS for i in range(1, _BLOCKS)]
        parts = [(0, _END), *((at, _BLOCK) for at in starts), (size - _END, _END)]
        for start, length in parts:
            file.seek(start)
            hashed.update(file.read(length))
    return hashed.hexdigest()


def _files(data, dev) -> Iterator[str]:
    for where, own in mixing.named_sets(data).items():
        asked = sources.asked_of(own, where=where)
        yield from _of_source(own, asked)
        queries = getattr(asked.format.options, "queries", "")
        yield from map(str, corpus.paths(own.corpus, f"{where}.corpus"))
        yield from map(str, corpus.paths(queries, f"{where}.format.queries"))
    if dev.source.name:
        yield from _of_source(dev, sources.asked_of(dev, where="config.dev"))


def _of_source(own, asked: sources.Asked) -> Iterator[str]:
    source = sources.chosen(own.source, asked.where)
    yield from source.entry.paths(source.options, asked)


def _state(name: str) -> dict:
    try:
        stat, hashed = os.stat(name), digest(name)
    except OSError as e:
        raise InputError(f"{name} cannot be read: {e.strerror}.") from e
    return {
        "absolute": os.path.abspath(name),
        "size": stat.st_size,
        "mtime": stat.st_mtime,
        "digest": hashed,
    }


def _changes(before: Mapping, found: Mapping) -> Iterator[str]:
    for name in sorted(before.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in before:
            yield f"{name} is new"
        elif found[name]["digest"] != before[name]["digest"]:
            old, new = before[name]["size"], found[name]["size"]
            sizes = f"{old:,} bytes then, {new:,} now"
            if new < old:
                yield f"{name} is truncated or was written anew: {sizes}"
            elif new > old:
                yield f"{name} has grown: {sizes}"
            else:
                yield f"{name} has other contents of the same size ({new:,} bytes)"


def _refuse(path: pathlib.Path, changes: Sequence[str]) -> None:
    if not changes:
        return
    shown = "\n".join(f"  {change}" for change in changes[:_SHOWN])
    more = len(changes) - _SHOWN
    shown += f"\n  and {more:,} more" if more > 0 else ""
    raise InputError(
        f"The data has changed since the run began ({path} has what it was):\n{shown}\n"
        "Put it back as it was, or start over with another --workdir. To go on with"
        " the other data all the same, start once with --accept_changed_data."
    )


def read(path: pathlib.Path) -> dict:
    """The manifest; empty without one.

    Raises:
      InputError: it is damaged.
    """
    if not path.is_file():
        return {}
    return json_files.read_json(path, "Delete it; it is made again from the data.")
