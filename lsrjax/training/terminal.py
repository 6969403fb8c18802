"""What a run says while it works: a bar in a terminal, or lines for a file.

A terminal shows a single line, at 80 columns too, that is drawn anew four times a
second: the stage, its steps, the time left, and what the run is at. Elsewhere each
entry is one line of key=value with a time stamp, never wrapped; if nothing is said for
a while, a line says what the run is at.
"""

import threading
import time
from collections.abc import Callable, Mapping

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lsrjax.distributed import activity
from lsrjax.distributed.activity import Progress
from lsrjax.training import live_line

# Seconds without a line, and of a phase of unknown length, before a line says so.
SILENCE, PATIENCE = 50.0, 10.0
_TICK = 1.0
_LONG = (
    activity.STARTING,
    activity.PREPARING,
    activity.COMPILING,
    activity.EVALUATING,
    activity.RESULTS,
)
# Phases that every step passes through, which the line of a terminal does not name.
_USUAL = (activity.STEPPING, activity.DATA)


class Terminal:
    """The console of a run, which several threads may write to."""

    def __init__(
        self,
        console: Console,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.console = console
        self._progress, self._clock = progress, clock
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._name, self._number, self._count = "", 1, 1
        self._step, self._total = 0, 0
        self._numbers: Mapping[str, float] = {}
        self._left: tuple[float, float] | None = None  # seconds, and when that was
        self._device = ""
        self._phase, self._since, self._said_phase = "", clock(), False
        self._last = clock()

    def note(self, text: str) -> None:
        """Says a sentence."""
        if self.console.is_terminal:
            self._say(Text(text), wrapped=True)
            return
        for line in text.splitlines():
            self._say(Text(f"{_stamp()} {line}"))

    def begin(self, name: str, number: int, count: int) -> None:
        """Begins stage `number` of `count`; a bar or a heartbeat goes with it."""
        self._name, self._number, self._count = name, number, count
        self._step = self._total = 0
        self._numbers, self._left = {}, None
        devices = jax.devices()
        kind = devices[0].device_kind
        several = f"{len(devices)} x " if len(devices) > 1 else ""
        self._device = several + live_line.short_device(kind)
        self.note(f"Preparing stage {name} ({number} of {count}) on {several}{kind}")
        self.start()

    def train(self, name: str, step: int, total: int) -> None:
        """Shows the steps of the stage."""
        self._name, self._step, self._total = name, step, total
        self.start()

    def entry(
        self,
        step: int,
        numbers: Mapping[str, float],
        seconds_left: float | None,
        kept: bool = False,
    ) -> None:
        """Shows a step's numbers; those that are `kept` also stay in a terminal."""
        self._step = step
        if seconds_left is not None:
            self._left = seconds_left, self._clock()
        if not kept:
            self._numbers = dict(numbers)
        if not self.console.is_terminal:
            parts = live_line.pairs(
                self._name, step, self._total, numbers, seconds_left
            )
            self._say(Text(f"{_stamp()} {parts}"))
        elif kept:
            line = live_line.line(self._name, step, self._total, numbers)
            self._say(Text(line))

    def end(self) -> None:
        """Ends the steps of a stage; its bar stays in a terminal."""
        if self._live and self._total:
            self._say(self.bar())
        self._total = 0
        self._numbers, self._left = {}, None

    def stop(self) -> None:
        """Ends the bar or the heartbeat, also after an error."""
        self._stopped.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._live:
            self._live.stop()
            self._live = None

    def start(self) -> None:
        """Starts the bar or the heartbeat, unless it is there."""
        if self.console.quiet or self._live or self._thread:
            return
        self._stopped.clear()
        if self.console.is_terminal:
            self._live = Live(
                console=self.console,
                get_renderable=self.bar,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()
            return
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._thread.start()

    def _say(self, text: Text, wrapped: bool = False) -> None:
        with self._lock:
            self._last = self._clock()
            if wrapped:
                self.console.print(text)
            elif self.console.is_terminal:
                self.console.print(text, no_wrap=True, overflow="ellipsis")
            else:
                self.console.print(text, soft_wrap=True)

    def bar(self) -> Text:
        """The line of a terminal, cut to its width."""
        phase = self._seen()
        name = f"{self._name[:15]}…" if len(self._name) > 16 else self._name
        parts = [f"[{self._number}/{self._count}] {name}"] if name else []
        if name and self._total:
            whole = self.console.encoding.lower().startswith("utf")
            bar = live_line.bar(self._step / self._total, 12, whole)
            parts[0] += f" {bar} {self._step:,}/{self._total:,}"
            if self._left:
                seconds, at = self._left
                left = max(seconds - (self._clock() - at), 0.0)
                parts[0] += f" {live_line.duration(left)} left"
        parts += [self._device] if self._device else []
        # Between the phases of a stage, the run is "starting" for no time.
        if phase not in _USUAL and not (name and phase == activity.STARTING):
            parts.append(f"{phase} {live_line.duration(self._clock() - self._since)}")
        parts += live_line.shown(self._numbers)
        line = Text(" · ".join(parts), no_wrap=True, overflow="ellipsis")
        line.truncate(self.console.width - 1, overflow="ellipsis")
        return line

    def _seen(self) -> str:
        """The run's phase; notes since when."""
        phase = self._progress.phase
        if phase != self._phase:
            self._phase, self._since, self._said_phase = phase, self._clock(), False
        return phase

    def _beat(self) -> None:
        while not self._stopped.wait(_TICK):
            self.beat()

    def beat(self) -> None:
        """Says what the run is at, if it is time to."""
        phase, now = self._seen(), self._clock()
        spent = now - self._since
        long = phase in _LONG and not self._said_phase and spent >= PATIENCE
        if not long and now - self._last < SILENCE:
            return
        self._said_phase = True
        step = f" step={self._progress.step}/{self._total}" if self._total else ""
        stage = f" stage={self._name}" if self._name else ""
        at = phase.replace(" ", "_")
        self._say(Text(f"{_stamp()}{stage}{step} phase={at} seconds={spent:.0f}"))


def _stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")
