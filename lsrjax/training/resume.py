"""The states that a stage has saved, and the one to resume from."""

import contextlib
import itertools
import pathlib
import shutil
from collections.abc import Iterable, Iterator

from lsrjax.checkpoint import digests, names_on_disk, set_damaged_aside, train_states
from lsrjax.data.reading import unchanged_files
from lsrjax.distributed import processes
from lsrjax.training import model_origins
from lsrjax.training.pushes import Pushes

# The folder of the state that was saved at a preemption.
KEPT = "kept"


class States:
    """A stage's states on disk: its checkpoints, and one saved at a preemption.

    The latter is stored outside checkpoints/, which stay identical with or without
    preemption.

    Attributes:
      newest: step of the newest sound checkpoint, or None.
      owes: training resumes from a state saved at a preemption, so that an evaluation
        and a checkpoint of it may be due.
    """

    def __init__(self, name: str, folder: pathlib.Path, config, newest, note):
        self.newest, self.owes = newest, False
        self._name, self._folder, self._config, self._note = name, folder, config, note
        self._checkpoints = self._opened(folder, config.checkpoint.keep)
        self._asked = itertools.count()
        self.pushes = Pushes(folder, config, self._checkpoints, note)
        self.poll = self._checkpoints.poll
        self.wait, self.close = self._checkpoints.wait, self._checkpoints.close
        self.best = self._checkpoints.best

    def _opened(self, folder: pathlib.Path, keep: int) -> train_states.Checkpoints:
        return train_states.Checkpoints(
            folder,
            keep=keep,
            metric=self._config.dev.metric,
            on_full_disk=self._config.checkpoint.on_full_disk,
            note=self._note,
        )

    def save(self, state: dict, dev: dict[str, float] | None, *, last: bool) -> None:
        """Starts writing a checkpoint, and pushes it where the config says so."""
        self._checkpoints.save(state, dev, last=last)
        self.pushes.saved(int(state["step"]), last)

    def keep(self, state: dict) -> None:
        """Saves a state outside the checkpoints; it is complete on return."""
        with contextlib.closing(self._opened(self._folder / KEPT, keep=1)) as kept:
            if kept.latest_step() != int(state["step"]):
                kept.save(state, None, last=True)

    def start(self, restore) -> dict:
        """The state to resume from.

        `restore` takes checkpoints and a step, or None for a new state.
        """
        kept_step = None
        if (folder := self._folder / KEPT).is_dir():
            name = f"{self._name}/{KEPT}"
            kept_step = newest_sound_step(name, folder, self._note, next(self._asked))
        self.owes = kept_step is not None and (
            self.newest is None or kept_step > self.newest
        )
        if not self.owes:
            return self.checkpoint(restore)
        with contextlib.closing(self._opened(folder, keep=1)) as kept:
            return restore(kept, kept_step)

    def checkpoint(self, restore) -> dict:
        """The state of the newest checkpoint; `restore` as in `start`."""
        return restore(self._checkpoints, self.newest)

    def look_again(self) -> None:
        """Finds the newest checkpoint again, in all processes."""
        step, number = self._checkpoints.latest_step(), next(self._asked)
        self.newest = _agreed(f"newest of {self._name}", step, number)


@contextlib.contextmanager
def opened(
    name: str, folder: pathlib.Path, config, newest: int | None, run
) -> Iterator[States]:
    """A stage's states; a thread that ends the process waits until they are written."""
    states = States(name, folder, config, newest, run.tracker.note)
    run.progress.pending = states.wait
    try:
        yield states
        states.pushes.finish(run.progress)
    finally:
        states.pushes.stop()
        with run.progress.held:
            run.progress.pending = lambda: None
            states.close()


def has_begun(folder: pathlib.Path) -> bool:
    """Whether a stage has saved a state, which binds it to its config and data."""
    if not folder.is_dir():
        return False
    return set_damaged_aside.finished_steps(folder) is not None or any(
        steps(one)
        for one in (folder, folder / KEPT)
        for steps in (digests.recorded_steps, names_on_disk.committed_steps)
    )


def standing(workdir: pathlib.Path, stages: Iterable[str]) -> str:
    """Where a run that was interrupted will go on, by what is on its disk."""
    for name in stages:
        folder = workdir / name
        if set_damaged_aside.finished_steps(folder) is not None:
            continue
        found = [
            step
            for one in (folder, folder / KEPT)
            for step in names_on_disk.committed_steps(one)
        ]
        if found:
            return f"stage {name} goes on at step {max(found):,}"
        return f"stage {name} has saved nothing yet, and begins anew"
    return "all stages are trained"


def forget_unless_begun(folder: pathlib.Path) -> None:
    """Removes what binds a stage that has saved no state to its earlier start."""
    if has_begun(folder):
        return
    for name in (unchanged_files.FILE, model_origins.FILE, names_on_disk.MODEL_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in (names_on_disk.TOKENIZER, names_on_disk.PIVOT_TOKENIZER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("bad_records*.jsonl"):
        path.unlink()


def newest_sound_step(name: str, folder: pathlib.Path, note, asked: int = 0):
    """The last complete step, or None; moves damaged checkpoints aside.

    Args:
      name: of the stage, or of a part of its folder.
      note: receives what was moved aside.
      asked: number of earlier calls with this name in this run.
    """
    found = None
    if processes.is_first():
        found = set_damaged_aside.take_stock(folder, note)
    return _agreed(f"stock of {name}", found, asked)


def _agreed(topic: str, step: int | None, number: int) -> int | None:
    """The latest step that any process found, or None."""
    code = processes.largest(topic, number, 0 if step is None else step + 1)
    return code - 1 if code else None
