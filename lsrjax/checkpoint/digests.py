"""Digests of every file of a checkpoint: written when it is complete, checked later.

`digests/<step>.json` in a stage's folder lists each file of `checkpoints/<step>/` and
the stage's own files that a model needs, with size and BLAKE2b-256, and the dev metrics
of the step. A step without this file does not count. The last entry is the digest of
the rest, so that damage to it shows, too.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

from lsrjax import json_files
from lsrjax.checkpoint.names_on_disk import (
    CHECKPOINTS,
    MODEL_FILE,
    PIVOT_TOKENIZER,
    TOKENIZER,
    committed_steps,
)
from lsrjax.errors import InputError

DIGESTS = "digests"
_STAGE_FILES = (MODEL_FILE, TOKENIZER, PIVOT_TOKENIZER)
_METRICS_FILE = "metrics/metrics"  # orbax's, in the folder of a step


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a step: its dev metrics, if it was evaluated, and its files.

    `files` maps a path in the stage's folder to bytes and hexadecimal digest.
    """

    step: int
    dev: dict[str, float]
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of the step's own files."""
        inside = f"{CHECKPOINTS}/{self.step}/"
        sizes = self.files.items()
        return sum(size for path, (size, _) in sizes if path.startswith(inside))


class DamagedRecordError(ValueError):
    """The file of digests itself is damaged."""


def record_path(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The path of a step's digests."""
    return folder / DIGESTS / f"{step}.json"


def recorded_steps(folder: pathlib.Path) -> list[int]:
    """Steps that have digests."""
    inside = folder / DIGESTS
    if not inside.is_dir():
        return []
    paths = (path for path in inside.glob("*.json") if path.stem.isdecimal())
    return sorted(int(path.stem) for path in paths)


def write(folder: pathlib.Path, step: int, dev: dict[str, float] | None) -> Record:
    """Reads a step's files back, and writes their digests; OSError if it cannot.

    Dev metrics that are None are those saved with the step, if any.
    """
    if dev is None:
        path = folder / CHECKPOINTS / str(step) / _METRICS_FILE
        dev = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = Record(step, dict(dev), _digests(folder, _files(folder, step)))
    (folder / DIGESTS).mkdir(exist_ok=True)
    json_files.write_whole(record_path(folder, step), _text(found))
    return found


def of_files(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> dict[str, str]:
    """Path in a folder -> digest in hexadecimal digits, for some of its files."""
    inside = [path.relative_to(folder).as_posix() for path in paths]
    return {path: digest for path, (_, digest) in _digests(folder, inside).items()}


def seal(folder: pathlib.Path, names: Iterable[str], path: pathlib.Path) -> None:
    """Writes the digests of files that are no checkpoint, for `unsealed`.

    Args:
      folder: of the files.
      names: of the files, below it.
      path: where the digests go.
    """
    json_files.write_whole(path, _text(Record(0, {}, _digests(folder, names))))


def unsealed(
    folder: pathlib.Path, names: Iterable[str], path: pathlib.Path
) -> dict[str, str]:
    """Name -> what is wrong with it, for files that have changed since `seal`."""
    try:
        wanted = _read(path)
    except DamagedRecordError as error:
        return {path.name: str(error)}
    names = list(names)
    unknown = [name for name in names if name not in wanted.files]
    found = dict.fromkeys(unknown, "not there when the digests were taken")
    return found | compare(folder, wanted, [n for n in names if n in wanted.files])


def read(folder: pathlib.Path, step: int) -> Record:
    """The digests of a step; DamagedRecordError if their file is damaged."""
    path = record_path(folder, step)
    found = _read(path)
    if found.step != step:
        raise DamagedRecordError("other content than was written")
    return found


def _read(path: pathlib.Path) -> Record:
    try:
        data = path.read_bytes()
        values = json.loads(data.decode("utf-8"))
        files = {path: (size, digest) for path, (size, digest) in values["files"]}
        found = Record(values["step"], values["dev"], files)
        again = _text(found).encode("utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRecordError(f"unreadable ({error})") from error
    # Byte by byte: equivalent JSON would hide a change.
    if again != data:
        raise DamagedRecordError("other content than was written")
    return found


def damage(folder: pathlib.Path, step: int) -> dict[str, str]:
    """Path -> what is wrong with it, after reading all files of a step with digests."""
    try:
        wanted = read(folder, step)
    except DamagedRecordError as error:
        return {f"{DIGESTS}/{step}.json": str(error)}
    there = _files(folder, step)
    found = dict.fromkeys(there - wanted.files.keys(), "not there when it was saved")
    return found | compare(folder, wanted, wanted.files)


def stage_damage(folder: pathlib.Path, step: int) -> dict[str, str]:
    """Like `damage`, for the stage's own files only."""
    wanted = read(folder, step)
    inside = f"{CHECKPOINTS}/"
    paths = [path for path in wanted.files if not path.startswith(inside)]
    return compare(folder, wanted, paths)


def compare(
    folder: pathlib.Path, wanted: Record, paths: Iterable[str]
) -> dict[str, str]:
    """Path -> what is wrong with it, for some files of a step."""
    paths = list(paths)

    def look(path):
        return _difference(folder / path, *wanted.files[path])

    with _threads() as pool:
        found = zip(paths, pool.map(look, paths), strict=True)
        return {path: what for path, what in found if what}


def _difference(path: pathlib.Path, size: int, digest: str) -> str:
    try:
        found = path.stat().st_size
        if found < size:
            return f"cut to {found:,} of {size:,} bytes"
        if found > size:
            return f"grown to {found:,} from {size:,} bytes"
        return "" if _digest(path)[1] == digest else "other content than was written"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        # For example the input/output error of a failing disk.
        return f"unreadable ({error.strerror})"


def no_digests_message(folder: pathlib.Path) -> str:
    """What to do about checkpoints without digests."""
    return (
        f"{folder} has checkpoints but no digests of them: they are of an lsrjax that"
        " wrote none, or the folder was copied without its digests/. If you trust the"
        " files as they are, `lsrjax checkpoint verify --adopt"
        f" {folder}` takes their digests; then go on."
    )


def check_has_digests(folder: pathlib.Path) -> None:
    """Raises InputError for a stage whose checkpoints were written without digests."""
    if committed_steps(folder) and not (folder / DIGESTS).is_dir():
        raise InputError(no_digests_message(folder))


def _files(folder: pathlib.Path, step: int) -> set[str]:
    found = set()
    for name in (f"{CHECKPOINTS}/{step}", *_STAGE_FILES):
        path = folder / name
        inside = path.rglob("*") if path.is_dir() else [path]
        found |= {p.relative_to(folder).as_posix() for p in inside if p.is_file()}
    return found


def _digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    names = sorted(names)
    with _threads() as pool:
        found = pool.map(lambda name: _digest(folder / name), names)
        return dict(zip(names, found, strict=True))


def _digest(path: pathlib.Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
        return file.tell(), found.hexdigest()


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    # Hashing releases the interpreter's lock, so threads read and hash in parallel.
    return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _text(found: Record) -> str:
    files = [[path, list(found.files[path])] for path in sorted(found.files)]
    values = {"step": found.step, "dev": found.dev, "files": files}
    rest = json.dumps(values, ensure_ascii=False)
    seal = hashlib.blake2b(rest.encode("utf-8"), digest_size=32).hexdigest()
    return json.dumps(values | {"digest": seal}, indent=1, ensure_ascii=False) + "\n"
