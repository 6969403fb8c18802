"""The states that a stage has saved, and which of them to go on from."""

import contextlib
import itertools
import pathlib
import shutil
from collections.abc import Iterator

from lsrjax.checkpoint import digests, files, set_damaged_aside, train_states
from lsrjax.data.reading import unchanged_files
from lsrjax.distributed import processes
from lsrjax.distributed.activity import PROGRESS
from lsrjax.training import origins

# The folder of the state that was kept where the run was asked to leave.
KEPT = "kept"
# Questions that the processes of a run ask each other, in the same order in each.
_ASKED = itertools.count()


@contextlib.contextmanager
def opened(folder: pathlib.Path, config, tracker) -> Iterator[train_states.Checkpoints]:
    """A stage's checkpoints; who ends the process waits for them."""
    checkpoints = _checkpoints(folder, config, tracker, config.checkpoint.keep)
    PROGRESS.pending = checkpoints.wait
    try:
        yield checkpoints
    finally:
        with PROGRESS.held:
            PROGRESS.pending = lambda: None
            checkpoints.close()


def _checkpoints(folder, config, tracker, keep: int) -> train_states.Checkpoints:
    return train_states.Checkpoints(
        folder,
        keep=keep,
        metric=config.dev.metric,
        on_full_disk=config.checkpoint.on_full_disk,
        note=tracker.note,
    )


def kept(folder: pathlib.Path, config, tracker):
    """The state that a run kept where it was asked to leave.

    It lies beside the checkpoints, which are those of a run that was never asked.
    """
    return contextlib.closing(_checkpoints(folder / KEPT, config, tracker, keep=1))


def has_begun(folder: pathlib.Path) -> bool:
    """Whether a stage has saved a state, which binds it to its config and data."""
    if not folder.is_dir():
        return False
    return set_damaged_aside.finished_steps(folder) is not None or any(
        steps(one)
        for one in (folder, folder / KEPT)
        for steps in (digests.recorded_steps, files.committed_steps)
    )


def forget(folder: pathlib.Path) -> None:
    """Removes what a stage that has saved no state would hold its next start to."""
    for name in (unchanged_files.FILE, origins.FILE, files.MODEL_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in (files.TOKENIZER, files.PIVOT_TOKENIZER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("bad_records*.jsonl"):
        path.unlink()


def newest_sound_step(name: str, folder: pathlib.Path, tracker) -> int | None:
    """What the first process finds, for all; damaged checkpoints are set aside."""
    found = None
    if processes.is_first():
        found = set_damaged_aside.take_stock(folder, tracker.note)
    return agreed(f"stock of {name}", found)


def agreed(topic: str, step: int | None) -> int | None:
    """The latest step that a process names; None where none names any."""
    code = processes.largest(topic, next(_ASKED), 0 if step is None else step + 1)
    return code - 1 if code else None
