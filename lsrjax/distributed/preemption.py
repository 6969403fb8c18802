"""Preemption: a signal saves the run and ends it with its own exit code.

SIGTERM, SIGUSR1 (which SLURM sends ahead of a time limit, with `--signal=USR1@120`),
SIGINT (Ctrl-C) and SIGHUP (the terminal is closed) are caught by a thread, since the
main thread may be in the compiler or wait for other processes, where no Python handler
runs. The thread's action depends on what would be lost:

- Nothing (before the first step, after a save, in the evaluation of a finished run):
  pending writes are finished, and the process exits.
- A state, while the main thread trains: the loop stops before its next step, waits for
  the steps in flight, and saves.
- A state, while the main thread compiles or evaluates: in a single process the thread
  saves it, since the main thread does not change it. Several processes agree on a point
  to stop at (`Progress.point`), also within the evaluation.

A process that receives a signal informs the others.
"""

import contextlib
import os
import select
import signal
import threading
import time

import jax

from lsrjax.distributed import processes
from lsrjax.distributed.activity import LEAVING, STARTING, Progress
from lsrjax.distributed.safe_output import say

# EX_TEMPFAIL: everything is saved; the same command resumes.
RESUME = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# A launcher may send a signal to a process and to its group: a second one only counts
# as another request after this many seconds. A second Ctrl-C counts at once, unless it
# is the first, passed on by a wrapper as well.
_PATIENCE = 5.0
_SAME_KEY = 0.3
_POLL = 0.05
# How often a process checks whether another one was signalled.
_ASK = 1.0
# Timeouts for the others' answers, and for the barrier before exit.
_AGREE = 20.0
_DOOR = 20.0
_KEY = "preempted"


class Guard:
    """Watches for signals from `start` on."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._asked_at = 0.0
        self._reason = self._phase = ""
        self._several = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def start(self) -> "Guard":
        """Installs the handlers; call it in the main thread."""
        self.take_signals()
        threading.Thread(target=self._watch, name="preemption", daemon=True).start()
        return self

    def take_signals(self) -> None:
        """Installs the handlers, also over those of a library."""
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup, to outlive the terminal
            # The C handler writes the number to the pipe, whatever Python does.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def several(self) -> None:
        """Call it once the processes of the run are connected."""
        self.take_signals()
        self._several = processes.count() > 1

    def stop(self) -> None:
        """Stops asking the other processes, at the end of a run."""
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
            # If the service is gone, at least this process exits.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                processes.tell(_KEY, name)
        say(f"{self._reason}: saves and leaves.")
        threading.Thread(target=self._act, name="leaving", daemon=True).start()

    def _act(self) -> None:
        """Agrees on where to stop; exits if the main thread need not save."""
        at = self._progress
        self._phase = at.phase
        passed, unsaved = at.freeze(), at.unsaved
        if self._several:
            # One number carries both.
            told = processes.exchange(f"{_KEY}/points", 2 * passed + unsaved, _AGREE)
            passed = max(number // 2 for number in told)
            unsaved = any(number % 2 for number in told)
        at.stop_at(passed)
        while True:
            # A save in progress is finished first.
            with at.held:
                if at.unsaved and at.rest is not None and not self._several:
                    at.rest()
                # Another process may need this one to reach the same point.
                behind = self._several and unsaved and at.points < passed
                if not at.unsaved and not behind:
                    self.leave()
            time.sleep(_POLL)

    def leave(self) -> None:
        """Ends the process with `RESUME` after pending writes."""
        at = self._progress
        with at.held:
            # Where it leaves may be between two phases, and the signal, too.
            phase, at.phase = self._phase or at.phase, LEAVING
            phase = "training" if phase == STARTING and at.stage else phase
            at.pending()
            problem = at.last()
            if self._several:
                # A process that exits early would look dead to those still writing; the
                # first one hosts the service that they talk to.
                processes.meet(f"{_KEY}/door", _DOOR)
                if processes.is_first():
                    time.sleep(1.0)
            # As where the run will say that it goes on.
            saved = f"all is saved, up to step {at.saved:,} of stage {at.stage}"
            say(
                f"{self._reason or 'Preempted'} while {phase}:"
                f" {saved if at.saved else 'nothing is lost'}. Start the same command"
                f" again to go on (exit code {RESUME})." + f" {problem}" * bool(problem)
            )
            _exit()


def _exit() -> None:
    """Ends the process, even if its threads wait."""
    # Without a flush, which could wait for the main thread; prints here flush.
    os._exit(RESUME)
