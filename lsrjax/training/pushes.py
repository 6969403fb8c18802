"""Uploads a stage's models to the hub while it trains, which it cannot end or slow."""

import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import huggingface_hub

from lsrjax.checkpoint import digests, train_states
from lsrjax.config import secrets
from lsrjax.distributed import activity, processes
from lsrjax.errors import InputError

# How long a finished stage waits for its last upload.
CLOSE_SECONDS = 600.0
_SAID = 300  # characters of an error


def check(config) -> None:
    """Refuses to push without a login.

    Raises:
      InputError: there is none.
    """
    if config.checkpoint.push and not huggingface_hub.get_token():
        raise InputError(
            f"config.checkpoint.push is {config.checkpoint.push!r}, but there is no"
            " login for the Hugging Face hub here: `hf auth login`, or set HF_TOKEN."
        )


class Pushes:
    """A stage's uploads: one at a time, of the newest that is due.

    A thread waits for a checkpoint to be complete, and starts a process on the CPU that
    exports and uploads it.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config,
        checkpoints: train_states.Checkpoints,
        note: Callable[[str], None],
    ):
        self._folder, self._config, self._note = folder, config, note
        self._checkpoints = checkpoints
        self._due: queue.SimpleQueue = queue.SimpleQueue()
        self._child: subprocess.Popen | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None

    def saved(self, step: int, last: bool) -> None:
        """A checkpoint of this step is being written; returns at once."""
        given = self._config.checkpoint
        if not given.push or not processes.is_first():
            return
        if given.push_when == "end" and not last:
            return
        self._due.put(step)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="push", daemon=True)
            self._thread.start()

    def finish(self, progress: activity.Progress) -> None:
        """Waits for what is due, unless the run is asked to leave."""
        if self._thread is None:
            return
        self._due.put(None)
        until = time.monotonic() + CLOSE_SECONDS
        with progress.at(activity.RESULTS):
            while self._thread.is_alive() and not progress.asked.is_set():
                self._thread.join(0.2)
                if time.monotonic() > until:
                    self._note(f"  {self._config.checkpoint.push} does not answer.")
                    return

    def stop(self) -> None:
        """Ends an upload that is under way."""
        self._stopped = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def _work(self) -> None:
        more = True
        while more:
            steps = [self._due.get()]
            while not self._due.empty():
                steps.append(self._due.get())
            more = None not in steps
            if (found := [step for step in steps if step is not None]) and (
                not self._stopped
            ):
                try:
                    self._push(found)
                except Exception as error:
                    self._failed(found[-1], f"{type(error).__name__}: {error}")

    def _push(self, steps: list[int]) -> None:
        """Pushes the newest of these steps, or the best, if it is due."""
        self._checkpoints.wait()
        step, given = steps[-1], self._config.checkpoint
        at_end = given.push_when == "end"
        if "best" in (given.push_when, at_end and given.use):
            _, step = self._checkpoints.best() or (0.0, steps[-1] if at_end else -1)
        due = at_end or step in steps
        if not due or step not in digests.recorded_steps(self._folder):
            return
        model = self._config.model
        asked = {"folder": str(self._folder), "step": step, "repo": given.push}
        names = {"head": model.head.name, "family": model.family.name}
        asked |= {key: name for key, name in names.items() if "." in name}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "lsrjax.training.push_step", json.dumps(asked)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A signal to the run's terminal or job is the run's to handle.
            start_new_session=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        out, error = self._child.communicate()
        if self._child.returncode == 0:
            self._note(f"  Step {step:,} is pushed to {out.strip().splitlines()[-1]}")
        elif not self._stopped:
            self._failed(step, error)

    def _failed(self, step: int, error: str) -> None:
        said = secrets.hidden(" ".join(error.split()), huggingface_hub.get_token())
        said = said if len(said) <= _SAID else f"…{said[-_SAID:]}"
        repo = self._config.checkpoint.push
        self._note(
            f"  Step {step:,} was not pushed to {repo}, and the run goes on: {said}"
        )
