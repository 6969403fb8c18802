"""Leaving when asked to: a signal saves the run and ends it with a code of its own.

SIGTERM, SIGUSR1 (which SLURM sends ahead of a time limit, with `--signal=USR1@120`),
SIGINT (Ctrl-C) and SIGHUP (the terminal has gone) are caught by a thread, since the
main thread may sit in the compiler or wait for other processes, where no Python handler
runs. What the thread does depends on what there is to lose:

- Nothing (before the first step, behind a save, in the evaluation of a finished run):
  what is being written is finished, and the process leaves.
- A state, while the main thread trains: the loop stops in front of its next step, waits
  for the steps in flight, and saves.
- A state, while the main thread compiles or evaluates: in a single process the thread
  saves it, since the main thread leaves it alone. Several processes agree on a point
  to stop at (`Progress.point`), also within the evaluation.

One process of several that is asked tells the others.
"""

import contextlib
import os
import select
import signal
import threading
import time

import jax

from lsrjax.distributed import processes
from lsrjax.distributed.activity import LEAVING, Progress
from lsrjax.distributed.terminal import say

# EX_TEMPFAIL: all is saved; the same command goes on.
RESUME = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# A launcher may send a signal to a process and to its group: a second one only counts
# as another request to leave after so many seconds. A second Ctrl-C counts at once,
# unless a wrapper has passed on the one that the terminal sent.
_PATIENCE = 5.0
_SAME_KEY = 0.3
_POLL = 0.05
# How often processes ask whether another one was told to leave.
_ASK = 1.0
# How long one waits for the others' answers, and at the door.
_AGREE = 20.0
_DOOR = 20.0
_KEY = "preempted"


class Guard:
    """Watches for signals from its start on."""

    def __init__(self, progress: Progress):
        """Does nothing yet.

        Args:
          progress: what this process is at.
        """
        self._progress = progress
        self._asked_at = 0.0
        self._reason = ""
        self._several = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def start(self) -> "Guard":
        """Takes the signals; call it in the main thread."""
        self.take_signals()
        threading.Thread(target=self._watch, name="preemption", daemon=True).start()
        return self

    def take_signals(self) -> None:
        """Takes the signals, again where a library has taken them."""
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup, to outlive the terminal
            # The C handler writes the number to the pipe, whatever Python does.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def several(self) -> None:
        """Says that the processes of the run have found each other."""
        self.take_signals()
        self._several = processes.count() > 1

    def stop(self) -> None:
        """Asks the other processes no more, at the end of a run."""
        self._several = False

    def _watch(self) -> None:
        while True:
            for number in self._signals():
                self._ask(signal.Signals(number).name)
            if self._several and not self._reason:
                told = processes.peek(_KEY)
                if told:
                    self._ask(told, tell=False)

    def _signals(self) -> list[int]:
        ready, _, _ = select.select([self._read], [], [], _ASK)
        taken = os.read(self._read, 64) if ready else b""
        return [number for number in taken if number in SIGNALS]

    def _ask(self, name: str, tell: bool = True) -> None:
        if self._reason:
            twice = name == "SIGINT" and self._reason.startswith(name)
            since = time.monotonic() - self._asked_at
            if since > (_SAME_KEY if twice else _PATIENCE):
                say(f"{name} again: left at once. The last checkpoint is whole.")
                _exit()
            return
        self._reason, self._asked_at = name, time.monotonic()
        if tell and self._several:
            name = f"{name} of process {processes.index()}"
            self._reason = name
            # Where the service has gone, this process leaves at least.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                processes.tell(_KEY, name)
        say(f"{self._reason}: saves and leaves.")
        threading.Thread(target=self._act, name="leaving", daemon=True).start()

    def _act(self) -> None:
        """Agrees on where to stop; ends the process where the main thread need not."""
        at = self._progress
        passed, unsaved = at.freeze(), at.unsaved
        if self._several:
            # One number says both.
            told = processes.exchange(f"{_KEY}/points", 2 * passed + unsaved, _AGREE)
            passed = max(number // 2 for number in told)
            unsaved = any(number % 2 for number in told)
        at.stop_at(passed)
        while True:
            # A save that is under way is finished first.
            with at.held:
                if at.unsaved and at.rest is not None and not self._several:
                    at.rest()
                # Another process may need this one to come as far as it has.
                behind = self._several and unsaved and at.points < passed
                if not at.unsaved and not behind:
                    self.leave()
            time.sleep(_POLL)

    def leave(self) -> None:
        """Ends the process with `RESUME`, once what is being written is written."""
        at = self._progress
        with at.held:
            phase, at.phase = at.phase, LEAVING
            at.pending()
            if self._several:
                # Who leaves first would seem dead to those who still write. The first
                # process has the service that the others talk to.
                processes.meet(f"{_KEY}/door", _DOOR)
                if processes.is_first():
                    time.sleep(1.0)
            saved = f"all is saved (it was at step {at.step} of stage {at.stage})"
            say(
                f"{self._reason or 'Preempted'} while {phase}:"
                f" {saved if at.stage else 'nothing is lost'}. Start the same command"
                f" again to go on (exit code {RESUME})."
            )
            _exit()


def _exit() -> None:
    """Ends the process, whatever its threads wait for."""
    # Without a flush, which could wait for the main thread: what prints here flushes.
    os._exit(RESUME)
