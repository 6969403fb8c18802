"""Ends a run that has stopped coming forward, and says where it stands.

A thread of each process looks at what its training thread is at. Of several processes,
each tells the first one every few seconds; the first one judges: who has fallen silent,
who waits for data, and who only waits for the others. Its verdict reaches all, who
write their stacks and end. Where the first process itself falls silent, the others see
that by its silence.
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
from lsrjax.distributed.terminal import say

# EX_SOFTWARE: the run was ended by its watchdog.
STALLED = 70
STACKS = "stacks"
# A process that says nothing for so long is dead or stopped, whatever its step may
# take; less than what JAX waits.
_SILENT = 40.0
_PULSE = 1.0
# How long the first process, which has the service, outlives its verdict.
_OUTLIVE = 3.0
# If even this thread does not run (a library that keeps Python's lock), the stacks are
# written and the process ended by a timer that needs no Python.
_BACKSTOP = 30.0
_STDERR = 2
_PULSES, _VERDICT = "pulse", "verdict"


@dataclasses.dataclass(frozen=True)
class Pulse:
    """What a process says of itself.

    Attributes:
      process: its number.
      count: of its pulses; one that stays the same is none.
      stage: that it is in.
      step: that it works on.
      phase: that it is in.
      idle: seconds since it came forward.
      silent: seconds since its last pulse, as the reader sees it.
    """

    process: int
    count: int
    stage: str
    step: int
    phase: str
    idle: float
    silent: float = 0.0

    def __str__(self) -> str:
        """Where the process stands."""
        stage = f" of stage {self.stage}" if self.stage else ""
        return f"process {self.process}, at step {self.step}{stage} ({self.phase})"


def judge(pulses: Sequence[Pulse], seconds: float) -> str:
    """What is wrong, and with whom; nothing while all is well.

    Args:
      pulses: of the processes.
      seconds: that a step may take; 0: any.
    """
    if not seconds:
        return ""
    late = [p for p in pulses if p.phase in activity.STEADY and p.idle > seconds]
    # Where steps are late, whoever is silent is why.
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
    # Those who step may be waiting for those who do not, or for the one behind.
    own = [p for p in late if p.phase != activity.STEPPING]
    own = own or [p for p in late if p.step == min(one.step for one in late)]
    named = "; ".join(f"{one} for {one.idle:.0f} s" for one in own)
    return f"no step for {seconds:.0f} s (config.watchdog.seconds): {named}"


class Watchdog:
    """Watches this process, and with it the run.

    Attributes:
      seconds: that a step may take; 0: any. A stage sets its own.
    """

    def __init__(self, workdir: pathlib.Path, seconds: float, at: Progress):
        """Does nothing yet.

        Args:
          workdir: the run's.
          seconds: that a step may take; 0: any.
          at: what is watched.
        """
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
        """Lets go, at the end of a run."""
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
        """Tells the first process, and hears of it; may hang where it is stopped."""
        while not self._stopped.wait(_PULSE):
            self._count += 1
            try:
                mine = json.dumps(dataclasses.asdict(self._own()))
                processes.tell(f"{_PULSES}/{processes.index()}", mine)
                whom = range(processes.count()) if processes.is_first() else (0,)
                told = [processes.peek(f"{_PULSES}/{process}") for process in whom]
            except Exception:  # without the service, its silence says enough
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
                # This process was stopped, and goes on; its step has not been slow.
                self._at.forward()
            looked = now
            if self.seconds:
                late = self.seconds + _BACKSTOP
                faulthandler.dump_traceback_later(late, exit=True, file=_STDERR)
            if wrong := judge(self._pulses(), self.seconds):
                if processes.count() > 1 and processes.is_first():
                    processes.tell(_VERDICT, wrong)
                self._end(wrong)

    def _pulses(self) -> list[Pulse]:
        """Of this process; and in the first one of all, in others of the first one."""
        now, mine = time.monotonic(), self._own()
        others = [
            dataclasses.replace(pulse, silent=now - heard)
            for pulse, heard in list(self._seen.values())
            if pulse.process != mine.process
        ]
        if processes.count() > 1 and not processes.is_first():
            # It judges the others; a step that is late here is late there too, or else
            # it does not answer.
            silent = [p for p in others if p.silent > 3 * _PULSE]
            return silent or [dataclasses.replace(mine, idle=0.0)]
        return [mine, *others]

    def _end(self, verdict: str) -> None:
        """Writes the stacks and ends the process."""
        # The first process hears its own verdict, too.
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
