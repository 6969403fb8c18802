"""The train states of a stage on disk: saved asynchronously, with digests."""

import contextlib
import errno
import logging as python_logging
import math
import os
import pathlib
import shutil
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import LatestN

from lsrjax.checkpoint import digests
from lsrjax.checkpoint.names_on_disk import CHECKPOINTS, ITEM, remove_step
from lsrjax.checkpoint.set_damaged_aside import listing
from lsrjax.distributed import processes, trees
from lsrjax.errors import InputError, TrainingFailed

# Size of a checkpoint beyond its arrays: their names, shapes and indices.
_OVERHEAD_BYTES, _OVERHEAD_SHARE = 2**20, 0.02
_REASON_LENGTH = 300
_NO_SPACE = "No space left on device"


class Checkpoints:
    """The last and the best train states of a stage.

    A save is pending until `poll` or the next save finds it complete: then it has
    digests, and only then older ones are removed. A failed save is reported and
    removed, and the run continues to the next, unless it is the last.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int,
        metric: str,
        on_full_disk: str = "stop",
        note: Callable[[str], None] = logging.warning,
    ):
        """Opens the checkpoints in a stage's folder, after `take_stock`.

        Keeps the last `keep` checkpoints and the one with the best dev `metric`. A save
        that does not fit ends the run, or is skipped if `on_full_disk` is "go_on".
        `note` receives reports of failed saves, in the first process of a run.
        """
        self._folder, self._keep, self._metric = folder, keep, metric
        self._on_full_disk, self._note = on_full_disk, note
        if processes.is_first():
            (folder / digests.DIGESTS).mkdir(parents=True, exist_ok=True)
        # Errors are reported here, in one line.
        logging.get_absl_logger().addFilter(_leave_errors_to_us)
        self._errors: list[Exception] = []
        self._manager = ocp.CheckpointManager(
            (folder / CHECKPOINTS).absolute(),
            # Without it, a manager that has saved nothing yet reads no metadata.
            handler_registry=_registered(_ReportingHandler(self._errors.append)),
            options=ocp.CheckpointManagerOptions(
                # Older ones are removed here, once the new one has its digests.
                preservation_policy=LatestN(None),
                # Needed for orbax to store the metrics with the checkpoint.
                best_fn=self._value,
                # A writer that was killed leaves an unfinished step.
                cleanup_tmp_directories=True,
            ),
        )
        self._settler: threading.Thread | None = None
        self._failure = ""
        self._step = self._asked = self._saves = 0
        self._whole: int | None = None

    def save(
        self, state: dict, dev: dict[str, float] | None, *, last: bool = False
    ) -> None:
        """Starts writing a state; the step is the state's.

        Raises:
          TrainingFailed: the disk is full and `on_full_disk` is "stop", or the last
            save of a stage failed.
        """
        self._settle()
        step = int(state["step"])
        if step == self._whole:
            return
        if hindrance := self._hindrance(state, step, last):
            self._note(hindrance)
            return
        if jax.default_backend() == "cpu":
            # On CPU the writer reads the state's own buffers, which are donated to the
            # next step.
            state = jax.tree.map(jnp.copy, state)
        try:
            saving = ocp.args.StandardSave(state)
            self._manager.save(step, args=saving, metrics=dev or {}, force=True)
        except Exception as error:
            if processes.count() > 1:
                # The others wait for this process inside orbax.
                raise
            self._errors.append(error)
        self._step, self._saves = step, self._saves + 1
        self._settler = threading.Thread(
            target=self._finish, args=(dev or {},), name="digests", daemon=True
        )
        self._settler.start()
        if last and (failure := self._settle(note=False)):
            raise TrainingFailed(
                f"{failure} It was the last of the stage, which is not finished"
                " therefore. Start the run again to go on from the newest one."
            )

    def poll(self) -> None:
        """Reports the outcome of a save, once it is known; never waits."""
        if self._settler is not None and not self._settler.is_alive():
            self._settle()

    def latest_step(self) -> int | None:
        """The last complete step, or None."""
        return max(digests.recorded_steps(self._folder), default=None)

    def best(self) -> tuple[float, int] | None:
        """The best value of the metric and its step, or None without a value."""
        found = [(value, step) for step, value in self._values().items()]
        return max((one for one in found if one[0] > -math.inf), default=None)

    def _values(self) -> dict[int, float]:
        """The metric of each complete step; -inf if it was not evaluated."""
        values = {}
        for step in digests.recorded_steps(self._folder):
            with contextlib.suppress(digests.DamagedRecordError):
                values[step] = self._value(digests.read(self._folder, step).dev)
        return values

    def restore(self, abstract_state: dict, step: int) -> dict:
        """The state of a step, after `take_stock` has verified its files.

        Raises:
          InputError: the checkpoint is of another architecture (differences listed), or
            the stage's tokenizers are not those it was trained with.
        """
        folder = self._manager.directory / str(step)
        _compare(folder, self._manager.item_metadata(step).tree, abstract_state)
        if found := digests.stage_damage(self._folder, step):
            raise InputError(
                f"{self._folder}: files are not those that step {step} was trained"
                f" with:\n{listing(found)}\nPut them back, or use another --workdir."
            )
        return self._manager.restore(
            step, args=ocp.args.StandardRestore(abstract_state)
        )

    def wait(self) -> None:
        """Waits until a pending save is complete; callable from any thread."""
        if (settler := self._settler) is not None:
            settler.join()

    def close(self) -> None:
        """Waits until everything is written."""
        self._settle()
        self._manager.close()

    def _value(self, dev: dict[str, float]) -> float:
        return dev.get(self._metric, -math.inf)

    def _hindrance(self, state, step: int, last: bool) -> str:
        """Why a state should not be written at all; raises if that ends the run."""
        needed, free, error = needed_bytes(state), 0, None
        try:
            free = shutil.disk_usage(self._folder).free
            if processes.is_first():
                _probe(self._folder / CHECKPOINTS)
        except OSError as found:
            error = found
        full = needed > free if error is None else error.errno == errno.ENOSPC
        gone = isinstance(error, FileNotFoundError)
        # One disk for all processes, which have to act alike.
        topic, self._asked = f"room in {self._folder.name}", self._asked + 1
        mine = 3 if gone else 2 if full else int(bool(error))
        code = processes.largest(topic, self._asked, mine)
        if not code:
            return ""
        if code == 3:
            raise TrainingFailed(
                f"Step {step:,} was not saved: {self._folder} or what was in it was"
                " removed while the run was under way. What was saved there is lost"
                " with it; the same command starts over, or goes on from what is left."
            )
        message = (
            f"Step {step:,} was not saved: it needs {needed:,} bytes, and"
            f" {self._folder} has {free:,} free. The earlier checkpoints are as they"
            " were."
            if code == 2
            else _not_saved(step, _reason(error) if error else "see the first process")
        )
        if last or (code == 2 and self._on_full_disk == "stop"):
            raise TrainingFailed(
                f"{message} Put that right and start the run again; it goes on from"
                " the newest checkpoint."
                + ("" if last else " Or train on with checkpoint.on_full_disk=go_on.")
            )
        return f"{message} Training goes on; the next save tries again."

    def _finish(self, dev: dict[str, float]) -> None:
        """Body of the background thread; reports every error."""
        try:
            self._conclude(dev)
        except Exception as error:
            self._failure = _not_saved(self._step, _reason(error))

    def _conclude(self, dev: dict[str, float]) -> None:
        """Waits for a save, then writes digests and removes old steps, or its remains.

        Every process takes part: a failure of one makes the whole save worthless.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._errors.append(error)
        if self._errors and not processes.is_first():
            # The first process learns who failed, but not why.
            reason = _reason(self._errors[0])
            logging.warning("%s", _not_saved(self._step, reason))
        topic, number = f"saves of {self._folder.name}", 2 * self._saves
        mine = jax.process_index() + 1 if self._errors else 0
        culprit = processes.largest(topic, number, mine)
        if not culprit and processes.is_first():
            try:
                digests.write(self._folder, self._step, dev)
            except OSError as error:
                self._errors.append(error)
                culprit = 1
        culprit = processes.largest(topic, number + 1, culprit)
        # From here on a step counts, or does not, in all processes alike.
        if processes.is_first():
            # A step that cannot be removed has no digests, so it does not count.
            with contextlib.suppress(OSError):
                if culprit:
                    remove_step(self._folder, self._step)
                else:
                    self._remove_old()
        if culprit:
            said = [_reason(error) for error in self._errors[:1]]
            said += [f"process {culprit - 1} could not write"]
            self._failure = _not_saved(self._step, said[0])
        else:
            self._whole = self._step
        self._errors.clear()

    def _remove_old(self) -> None:
        steps = digests.recorded_steps(self._folder)
        kept = set(steps[-self._keep :])
        values = self._values()
        if values:
            kept.add(max(values, key=lambda step: (values[step], step)))
        # A damaged record is left to the next start, which reports it.
        for step in values.keys() - kept:
            digests.record_path(self._folder, step).unlink()
            remove_step(self._folder, step)

    def _settle(self, *, note: bool = True) -> str:
        """Waits for a pending save, and reports its failure."""
        if self._settler is None:
            return ""
        self._settler.join()
        self._settler = None
        # orbax raises an asynchronous error once per thread; it is already known.
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        failure, self._failure = self._failure, ""
        if failure:
            # orbax believes that the step was saved.
            with contextlib.suppress(Exception):
                self._manager.reload()
        if failure and note:
            self._note(f"{failure} Training goes on; the next save tries again.")
        return failure


def needed_bytes(state: dict) -> int:
    """Bytes of a state's checkpoint on disk, at most."""
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return int(arrays * (1 + _OVERHEAD_SHARE)) + _OVERHEAD_BYTES


class _Reporting:
    """A future of orbax that never raises and reports an error.

    A process that failed would otherwise skip orbax's barriers, at which the others
    wait for many minutes.
    """

    def __init__(self, future, report):
        self._future, self._report = future, report

    def result(self, timeout=None):
        try:
            return self._future.result(timeout=timeout)
        except Exception as error:
            self._report(error)


class _ReportingHandler(ocp.StandardCheckpointHandler):
    """Reports what goes wrong in a save instead of raising it."""

    def __init__(self, report: Callable[[Exception], None]):
        super().__init__()
        self._report = report

    @classmethod
    def typestr(cls) -> str:
        # Checkpoints name their handler; any program has orbax' own.
        return ocp.StandardCheckpointHandler.typestr()

    async def async_save(self, *args, **kwargs):
        try:
            futures = await super().async_save(*args, **kwargs)
        except Exception as error:
            self._report(error)
            return []
        return [_Reporting(future, self._report) for future in futures or ()]

    def finalize(self, *args, **kwargs):
        try:
            super().finalize(*args, **kwargs)
        except Exception as error:
            self._report(error)


def _registered(handler) -> ocp.handlers.CheckpointHandlerRegistry:
    """Takes a handler for train states, in place of the one orbax would take."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
        registry.add(ITEM, args, handler)
    return registry


def _probe(folder: pathlib.Path) -> None:
    """Raises any error of writing to a folder."""
    path = folder / f"probe.{os.getpid()}.tmp"
    try:
        # No parents: a removed folder is not created again without its contents.
        path.mkdir()
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()


def _not_saved(step: int, reason: str) -> str:
    return (
        f"Step {step:,} was not saved: {reason}. The earlier checkpoints are as they"
        " were."
    )


def _reason(error: Exception) -> str:
    """An error in one line; a long one is shortened in the middle."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    if getattr(error, "errno", None) == errno.ENOSPC or _NO_SPACE in text:
        return f"{_NO_SPACE} ({type(error).__name__} of the writer)"
    if len(text) <= _REASON_LENGTH:
        return text
    return f"{text[: _REASON_LENGTH // 2]} … {text[-_REASON_LENGTH // 2 :]}"


def _leave_errors_to_us(record: python_logging.LogRecord) -> bool:
    """Drops the tracebacks that orbax logs for each of its threads."""
    ours = "orbax" not in pathlib.Path(record.pathname).parts
    return ours or record.levelno < python_logging.ERROR


def _compare(where, found, wanted) -> None:
    lines = trees.differences(
        trees.shapes(found), trees.shapes(wanted), ("checkpoint", "config")
    )
    if lines:
        raise InputError(
            f"The checkpoint {where} is of another architecture than the config"
            f" describes:\n" + "\n".join(lines[:20]) + "\nUse the config it was made"
            " with, or another --workdir."
        )
