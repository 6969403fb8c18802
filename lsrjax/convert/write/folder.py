"""Writes folders for other programs, completely or not at all."""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
from safetensors.numpy import save_file

from lsrjax import finite
from lsrjax.errors import InputError
from lsrjax.json_files import write_json

WEIGHTS = "model.safetensors"
SHARD_BYTES = 5 * 10**9


@contextlib.contextmanager
def whole_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, which becomes `out` at the end or is removed on an error.

    Raises:
      InputError: `out` exists and is not an empty folder, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out} exists. Remove it, or name another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(out)
        temporary, lock = _made(out)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error}.") from error
    try:
        yield temporary
        _give_usual_modes(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise InputError(
            f"--out {out} could not be written ({error}); nothing is left there."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _give_usual_modes(folder: pathlib.Path) -> None:
    """Sets the modes of the folder and its files by the umask.

    Temporary folders, and files of some writers, are readable by their owner only.
    """
    # Reading the umask would set it for a moment, for every thread.
    probe = folder / ".probe"
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & ~0o111)


def _made(out: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new folder next to `out`, locked as long as this process lives."""
    while True:
        # Next to it, so that the final rename stays within one file system.
        made = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent)
        if (lock := _locked(pathlib.Path(made))) is not None:
            return pathlib.Path(made), lock


def _locked(folder: pathlib.Path) -> int | None:
    """A lock on a folder; None if another process has it, or removed the folder."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    if not folder.exists():
        os.close(lock)
        return None
    return lock


def _remove_left(out: pathlib.Path) -> None:
    """Removes what killed processes left of the same folder."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.????????.tmp"):
        if (lock := _locked(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def write_weights(
    folder: pathlib.Path,
    state: Mapping[str, np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` with an index.

    A tensor is never split. Raises an `InputError` if a number is not finite.
    """
    finite.check_tree(state, folder)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name in sorted(state):
        tensor = np.ascontiguousarray(state[name])
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    metadata = {"format": "pt"}  # without it, transformers refuses the file
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / f"{WEIGHTS}.index.json", index)
