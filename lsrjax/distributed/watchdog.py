"""Ends a run that makes no progress, and reports where it is stuck.

A thread of each process watches its training thread. With several processes, each
reports to the first one every few seconds; the first one decides: which is silent,
which waits for data, and which only waits for the others. Its verdict reaches all of
them, which write their stacks and end. If the first process itself is silent, the
others notice.
"""

import dataclasses
import faulthandler
import json
import os
import pathlib
import threading
import time
from collections.abc import Sequence

from lsrjax.distributed import activity, processes
from lsrjax.distributed.activity import Progress
from lsrjax.distributed.safe_output import say, stderr_number

# EX_SOFTWARE: the run was ended by its watchdog.
STALLED = 70
STACKS = "stacks"
# A process that is silent for this many seconds is dead or stopped, however long a
# step may take; shorter than JAX's timeout.
_SILENT = 40.0
_PULSE = 1.0
# How long the first process, which hosts the service, outlives its verdict.
_OUTLIVE = 3.0
# If even this thread does not run (a library holds Python's lock), a timer that needs
# no Python writes the stacks and ends the process.
_BACKSTOP = 30.0
_PULSES, _VERDICT = "pulse", "verdict"


@dataclasses.dataclass(frozen=True)
class Pulse:
    """A process's report on itself.

    Attributes:
      count: of its pulses; a repeated one is no pulse.
      idle: seconds since its last progress.
      silent: seconds since its last pulse, as seen by the reader.
    """

    process: int
    count: int
    stage: str
    step: int
    phase: str
    idle: float
    silent: float = 0.0

    def __str__(self) -> str:
        """The process, its step and its phase."""
        stage = f" of stage {self.stage}" if self.stage else ""
        return f"process {self.process}, at step {self.step}{stage} ({self.phase})"


def judge(pulses: Sequence[Pulse], seconds: float) -> str:
    """What is wrong, and where; empty if nothing is, or if `seconds` is 0."""
    if not seconds:
        return ""
    late = [p for p in pulses if p.phase in activity.STEADY and p.idle > seconds]
    # Silence explains late steps.
    patience = 5 * _PULSE if late else min(0.8 * seconds, _SILENT)
    silent = [p for p in pulses if p.silent > patience]
    if silent:
        return "; ".join(
            f"{one} has been silent for {one.silent:.0f} s: it was killed or stopped,"
            " or its host is gone"
            for one in silent
        )
    if not late:
        return ""
    # Processes in a step may wait for those that are not, or for the slowest.
    own = [p for p in late if p.phase != activity.STEPPING]
    own = own or [p for p in late if p.step == min(one.step for one in late)]
    named = "; ".join(f"{one} for {one.idle:.0f} s" for one in own)
    return f"no step for {seconds:.0f} s (config.watchdog.seconds): {named}"


class Watchdog:
    """Watches this process, and with it the run.

    A stage sets `seconds`, the limit for a step; 0: none.
    """

    def __init__(self, workdir: pathlib.Path, seconds: float, at: Progress):
        self.seconds = seconds
        self._workdir, self._at = workdir, at
        self._count = 0
        self._seen: dict[int, tuple[Pulse, float]] = {}
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._ending = threading.Lock()

    def start(self) -> "Watchdog":
        """Starts the threads."""
        if processes.count() > 1:
            self._start(self._tell)
        self._start(self._look)
        return self

    def stop(self) -> None:
        """Stops the threads, at the end of a run."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * _PULSE)
        faulthandler.cancel_dump_traceback_later()

    def _start(self, target) -> None:
        thread = threading.Thread(target=target, name="watchdog", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _own(self) -> Pulse:
        at, now = self._at, time.monotonic()
        return Pulse(
            processes.index(), self._count, at.stage, at.step, at.phase, now - at.beat
        )

    def _tell(self) -> None:
        """Reports to the first process and reads its reports; may hang with it."""
        while not self._stopped.wait(_PULSE):
            self._count += 1
            try:
                mine = json.dumps(dataclasses.asdict(self._own()))
                processes.tell(f"{_PULSES}/{processes.index()}", mine)
                whom = range(processes.count()) if processes.is_first() else (0,)
                told = [processes.peek(f"{_PULSES}/{process}") for process in whom]
            except Exception:  # a lost service shows as silence
                continue
            now = time.monotonic()
            for text in filter(None, told):
                pulse = Pulse(**json.loads(text))
                before, _ = self._seen.get(pulse.process, (None, 0.0))
                if before is None or pulse.count != before.count:
                    self._seen[pulse.process] = pulse, now
            if verdict := processes.peek(_VERDICT):
                self._end(verdict)

    def _look(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(_PULSE / 2):
            now = time.monotonic()
            if now - looked > 10 * _PULSE:
                # This process was stopped and continued; its step was not slow.
                self._at.forward()
            looked = now
            if self.seconds:
                late = self.seconds + _BACKSTOP
                faulthandler.dump_traceback_later(late, exit=True, file=stderr_number())
            if wrong := judge(self._pulses(), self.seconds):
                if processes.count() > 1 and processes.is_first():
                    processes.tell(_VERDICT, wrong)
                self._end(wrong)

    def _pulses(self) -> list[Pulse]:
        """Of this process; in the first one of all, in the others of the first."""
        now, mine = time.monotonic(), self._own()
        others = [
            dataclasses.replace(pulse, silent=now - heard)
            for pulse, heard in list(self._seen.values())
            if pulse.process != mine.process
        ]
        if processes.count() > 1 and not processes.is_first():
            # The first process judges the others. A step that is late here is late
            # there too, or else the first process does not answer.
            silent = [p for p in others if p.silent > 3 * _PULSE]
            return silent or [dataclasses.replace(mine, idle=0.0)]
        return [mine, *others]

    def _end(self, verdict: str) -> None:
        # The first process also receives its own verdict.
        if not self._ending.acquire(blocking=False):
            return
        folder = self._workdir / STACKS
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rank-{processes.index()}.txt").open("a") as file:
            file.write(f"{verdict}\nHere: {self._own()}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        say(
            f"Error: {verdict}. The stacks of process {processes.index()} are in"
            f" {file.name}. The checkpoints are whole; start the same command again to"
            f" go on from the last one (exit code {STALLED})."
        )
        if processes.count() > 1 and processes.is_first():
            time.sleep(_OUTLIVE)
        os._exit(STALLED)
