"""Names of the files of a stage's folder."""

import pathlib
import shutil

MODEL_FILE = "model.json"
DONE_FILE = "done.json"
TOKENIZER = "tokenizer"
PIVOT_TOKENIZER = "pivot_tokenizer"
CHECKPOINTS = "checkpoints"
ITEM = "default"  # orbax' folder of the arrays of a step
DAMAGED = "damaged"
# Steps being removed; the next start deletes what a killed run left there.
_REMOVED = "removed.tmp"


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
