"""Checks a stage's folder at a start: moves damaged files out of the way."""

import json
import pathlib
from collections.abc import Callable

from lsrjax.checkpoint import digests
from lsrjax.checkpoint.names_on_disk import (
    CHECKPOINTS,
    DAMAGED,
    DONE_FILE,
    committed_steps,
    remove_left,
    set_aside,
)

_SHOWN_FILES = 10


def take_stock(folder: pathlib.Path, note: Callable[[str], None]) -> int | None:
    """Sets damaged steps of a stage aside; returns the newest sound one, or None.

    Unfinished steps, and damaged ones newer than the newest sound one, are moved to
    `damaged/`, as are damaged files of the stage itself, which a start writes again. A
    stage that has lost something is no longer finished. For one process of a run; the
    folder need not exist.

    Raises:
      InputError: the checkpoints were written without digests.
    """
    digests.check_has_digests(folder)
    remove_left(folder)
    recorded = digests.recorded_steps(folder)
    unfinished = [step for step in committed_steps(folder) if step not in recorded]
    for step in unfinished:
        where = _set_aside_step(folder, step)
        note(
            f"  {folder.name}: step {step:,} has no digests, so its writing was not"
            f" finished. It is not used, and is in {where}."
        )
    newest, lost = None, False
    for step in reversed(recorded):
        found = digests.damage(folder, step)
        own = {path: what for path, what in found.items() if _of_step(path)}
        stage = {path: what for path, what in found.items() if not _of_step(path)}
        lost = lost or bool(found)
        if stage:
            _set_aside_stage_files(folder, step, stage, note)
        if not own:
            newest = step
            break
        where = _set_aside_step(folder, step)
        note(
            f"  {folder.name}: the checkpoint of step {step:,} is damaged and is not"
            f" used; it is in {where}:\n{listing(own)}"
        )
    if lost or any(step > (newest or 0) for step in unfinished):
        (folder / DONE_FILE).unlink(missing_ok=True)
        note(
            f"  {folder.name}: "
            + (
                "no sound checkpoint is left; the stage starts from the beginning."
                if newest is None
                else f"goes on from step {newest:,}, the newest sound checkpoint."
            )
        )
    return newest


def finished_steps(folder: pathlib.Path) -> int | None:
    """Steps of a stage that is finished, or None."""
    try:
        return int(json.loads((folder / DONE_FILE).read_bytes())["steps"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # A damaged file is simply written again, without training.
        return None


def listing(found: dict[str, str]) -> str:
    """Damaged files, one per line; beyond a few, only their number."""
    lines = [f"    {path}: {what}" for path, what in sorted(found.items())]
    if len(lines) > _SHOWN_FILES:
        rest = len(lines) - _SHOWN_FILES
        lines[_SHOWN_FILES:] = [f"    and {rest:,} more files"]
    return "\n".join(lines)


def _of_step(path: str) -> bool:
    return path.startswith((f"{CHECKPOINTS}/", f"{digests.DIGESTS}/"))


def _set_aside_step(folder: pathlib.Path, step: int) -> pathlib.Path:
    # The digests last: the next start moves the remains of a step without them.
    path, where = folder / CHECKPOINTS / str(step), folder / DAMAGED
    if path.exists():
        where = set_aside(folder, path)
    record = digests.record_path(folder, step)
    if record.exists():
        moved = set_aside(folder, record, digests.DIGESTS)
        where = where if where.name != DAMAGED else moved
    return where


def _set_aside_stage_files(folder, step, found, note) -> None:
    # A tokenizer's folder as a whole: it is written again only if it is missing.
    names = sorted({path.split("/")[0] for path in found})
    for name in names:
        if (folder / name).exists():
            set_aside(folder, folder / name, "files")
    note(
        f"  {folder.name}: files that belong to step {step:,} are damaged. They lie in"
        f" {folder / DAMAGED / 'files'} and are made again:\n{listing(found)}"
    )
