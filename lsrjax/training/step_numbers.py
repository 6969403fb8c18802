"""Reads the steps' numbers late, judges them, and measures throughput."""

import collections
import contextlib
import dataclasses
import math
import resource
import time
from collections.abc import Iterator

import jax

from lsrjax.errors import TrainingFailed
from lsrjax.training import bad_steps, collapse
from lsrjax.training.bad_steps import BadNumbers
from lsrjax.training.stage_parts import Run, Stage


def peak_memory() -> int:
    """The most bytes that a device has held, or this process where it is the device."""
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    most = max(one.get("peak_bytes_in_use", 0) for one in found)
    return most or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Numbers:
    """The numbers of dispatched steps: read late, judged, and logged.

    Attributes:
      clock: counts what the log says of speed; stop it for work between steps.
    """

    def __init__(self, stage: Stage, run: Run):
        self._stage, self._run, self.clock = stage, run, Clock()
        self._watch = collapse.Watch.of(stage.student.spec, stage.config)
        self._in_flight: collections.deque[tuple[int, dict, int]] = collections.deque()

    def add(self, step: int, metrics: dict, slots: int) -> None:
        """Queues a dispatched step; `slots` counts its tokens including padding."""
        self._in_flight.append((step, metrics, slots))

    def read(self, state: dict, in_flight: int = 0) -> None:
        """Waits for steps until `in_flight` remain, and logs those that are due.

        `state` is the latest, for the post-mortem of a skipped step.

        Raises:
          BadNumbers, TrainingFailed: see `lsrjax.training.loop.train`.
        """
        stage, config = self._stage, self._stage.config
        while len(self._in_flight) > in_flight:
            step, metrics, slots = self._in_flight.popleft()
            values = collapse.as_floats(metrics, stage.contents.languages)
            self._run.progress.forward()
            if error := bad_steps.judge(step, values, config):
                raise BadNumbers(error, step, values)
            last = step == stage.total_steps
            due = last or step % config.log.every == 0
            if values.pop("bad", 0):
                said = f"{bad_steps.described(step, values)} It was skipped."
                stage.post_mortem.write(state, BadNumbers(said, step, values))
                values = {k: v for k, v in values.items() if math.isfinite(v)}
            else:
                for text in self._watch.odd_now(values, last):
                    self._run.tracker.note(f"  Step {step:,}: {text}")
                if lost := self._watch.look(values, last):
                    raise TrainingFailed(f"Step {step}: {lost}")
                if due and (text := self._watch.empty_now(values)):
                    self._run.tracker.note(f"  Step {step:,}: {text}")
            values.pop("in_a_row", None)
            self.clock.count(config.batch_size, int(values.pop("tokens")), slots)
            if due:
                self._run.tracker.log(step, values | self.clock.read())


@dataclasses.dataclass
class Clock:
    """Counts examples and tokens, in total and since the last reading.

    Attributes:
      started: start of the current reading, in seconds of `time.monotonic`.
      tokens: since then, without padding.
      all_tokens: in total, without padding.
      all_slots: in total, with padding.
    """

    started: float = dataclasses.field(default_factory=time.monotonic)
    examples: int = 0
    tokens: int = 0
    all_tokens: int = 0
    all_slots: int = 0

    def count(self, examples: int, tokens: int, slots: int) -> None:
        """Adds a finished step; only `slots` include padding."""
        self.examples += examples
        self.tokens += tokens
        self.all_tokens += tokens
        self.all_slots += slots

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Does not count the time within it."""
        since = time.monotonic()
        yield
        self.started += time.monotonic() - since

    def read(self) -> dict[str, float]:
        """Rates per second since the last reading; padding and memory in total."""
        seconds = time.monotonic() - self.started
        rates = {
            "examples_per_s": self.examples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "padding": 1 - self.all_tokens / self.all_slots,
            "memory_gb": peak_memory() / 1e9,
        }
        self.started += seconds
        self.examples = self.tokens = 0
        return rates
