"""Names of the files of a stage's folder, and atomic writing."""

import json
import os
import pathlib
import shutil

MODEL_FILE = "model.json"
DONE_FILE = "done.json"
TOKENIZER = "tokenizer"
PIVOT_TOKENIZER = "pivot_tokenizer"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
# Steps being removed; the next start deletes what a killed run left there.
_REMOVED = "removed.tmp"


def write_json(path: pathlib.Path, values) -> None:
    """Writes JSON so that a reader never sees half of it."""
    write_whole(path, json.dumps(values, indent=1, ensure_ascii=False))


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        # On a full disk, half a file would take the last space.
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def committed_steps(folder: pathlib.Path) -> list[int]:
    """Steps in a stage's folder that have their final name."""
    inside = folder / CHECKPOINTS
    if not inside.is_dir():
        return []
    return sorted(int(path.name) for path in inside.iterdir() if path.name.isdecimal())


def remove_step(folder: pathlib.Path, step: int) -> None:
    """Removes a step and the remains of unfinished writes; may raise OSError."""
    inside = folder / CHECKPOINTS
    for path in [inside / str(step), *inside.glob(f"{step}.orbax-checkpoint-tmp*")]:
        if path.exists():
            # Renamed first: half a step under its own name would look damaged.
            target = folder / _REMOVED / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)
    remove_left(folder)


def remove_left(folder: pathlib.Path) -> None:
    """Removes steps that a killed run was removing."""
    shutil.rmtree(folder / _REMOVED, ignore_errors=True)


def set_aside(folder: pathlib.Path, path: pathlib.Path, *inside: str) -> pathlib.Path:
    """Moves a file or folder of a stage into its `damaged/`; returns the new path."""
    parent = folder.joinpath(DAMAGED, *inside)
    parent.mkdir(parents=True, exist_ok=True)
    target, number = parent / path.name, 2
    while target.exists():
        target = parent / f"{path.stem}-{number}{path.suffix}"
        number += 1
    return path.rename(target)
