"""The loop around the training step: logs, evaluates, saves, and knows when to stop."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lsrjax.distributed import activity as progress
from lsrjax.distributed.activity import PROGRESS
from lsrjax.errors import TrainingFailed
from lsrjax.training import bad_steps, collapse, train_step


class BadNumbers(TrainingFailed):
    """A step's loss or gradient is no number, or its loss has jumped.

    Attributes:
      step: the step, from 1.
      values: its numbers.
    """

    def __init__(self, message: str, step: int, values: dict[str, float]):
        """Keeps what a post-mortem tells."""
        super().__init__(message)
        self.step, self.values = step, values


class CompiledSteps:
    """The step, compiled once for each shape of batch."""

    def __init__(
        self, step: train_step.Step, check: Callable[..., None] = lambda *args: None
    ):
        """Compiles when asked to.

        Args:
          step: the step.
          check: is given the compiled step and its three arguments, before it is first
            taken.
        """
        self._step = step
        self._check = check
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def __len__(self) -> int:
        """Steps compiled so far."""
        return len(self._compiled)

    def knows(self, batch: dict) -> bool:
        """Whether the step is compiled for the shapes of a batch."""
        return _shapes(batch) in self._compiled

    def compile(self, state: dict, teacher_params: dict | None, batch: dict) -> None:
        """Compiles the step for a batch; the state stays as it is."""
        made = train_step.compiled(self._step, state, teacher_params, batch)
        self._check(made, state, teacher_params, batch)
        self._compiled[_shapes(batch)] = made

    def __call__(self, state: dict, teacher_params: dict | None, batch: dict):
        """Takes the step."""
        if not self.knows(batch):
            self.compile(state, teacher_params, batch)
        return self._compiled[_shapes(batch)](state, teacher_params, batch)


def _shapes(batch: dict) -> tuple:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


@dataclasses.dataclass
class Clock:
    """Examples and tokens, in all and since the last reading.

    Attributes:
      started: when the current reading began, seconds of `time.monotonic`.
      examples: since then.
      tokens: since then, without padding.
      all_tokens: in all, without padding.
      all_slots: in all, with padding.
    """

    started: float = dataclasses.field(default_factory=time.monotonic)
    examples: int = 0
    tokens: int = 0
    all_tokens: int = 0
    all_slots: int = 0

    def count(self, examples: int, tokens: int, slots: int) -> None:
        """Adds a finished step: its tokens without padding, and with it."""
        self.examples += examples
        self.tokens += tokens
        self.all_tokens += tokens
        self.all_slots += slots

    def read(self) -> dict[str, float]:
        """Rates per second since the last reading, and the share of padding in all."""
        seconds = time.monotonic() - self.started
        rates = {
            "examples_per_s": self.examples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "padding": 1 - self.all_tokens / self.all_slots,
        }
        self.started += seconds
        self.examples = self.tokens = 0
        return rates


def train(
    config,
    total_steps: int,
    step_fn: train_step.Step,
    state: dict,
    teacher_params: dict | None,
    batches: Iterator[dict],
    *,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[dict, dict[str, float] | None], None],
    evaluate: Callable[[dict], dict[str, float]] | None,
    check: Callable[..., None] = lambda *args: None,
    poll: Callable[[], None] = lambda: None,
    keep: Callable[[dict], None] = lambda state: None,
    owes: bool = False,
    bad: Callable[[dict, BadNumbers], None] = lambda state, error: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict:
    """Runs a stage from `state` to its last step.

    The loop reads a step's numbers only after the next steps were dispatched, so the
    device never waits for the host.

    Args:
      config: the stage's.
      total_steps: optimizer steps of the stage.
      step_fn: the step.
      state: where to start; its buffers are given away.
      teacher_params: of a teacher of views, or None.
      batches: batch `state["step"]` first.
      log: is given a step and its numbers.
      save: is given a state and its dev metrics, if it was evaluated.
      evaluate: params to dev metrics, or None.
      check: see `CompiledSteps`.
      poll: is called at every step; says what became of an earlier save.
      keep: is given the state where the process is asked to leave; it has to be written
        when it returns.
      owes: whether `state` was kept so, and may have an evaluation before it.
      bad: is given a later state and what is wrong with the numbers of a step that
        was skipped.
      note: is told what a person should look at.

    Returns:
      The last state.

    Raises:
      BadNumbers: the loss or the gradient is not a finite number, or the loss has
        jumped, and `config.numbers.policy` does not skip such steps.
      TrainingFailed: the model has collapsed.
      lsrjax.distributed.activity.Preempted: asked to leave; `keep` has the state.
    """
    calls = log, save, evaluate, keep, bad
    watch = collapse.Watch(getattr(step_fn, "sizes", {}))
    run = _Run(config, total_steps, *calls, note, state, PROGRESS, watch)
    take_step = CompiledSteps(step_fn, check)
    start = int(state["step"])
    run.progress.forward(start)
    if owes and run.saves(start):
        run.conclude(start)
    for step in range(start, total_steps):
        run.progress.forward(step + 1)
        with run.progress.at(progress.DATA):
            batch = next(batches)
        if run.progress.point():
            run.leave()
        if not take_step.knows(batch):
            # Nothing is in flight, so that the state can be saved while it compiles.
            run.finish()
            with run.progress.at(progress.COMPILING), run.at_rest():
                take_step.compile(run.state, teacher_params, batch)
        run.progress.unsaved = True
        with run.progress.at(progress.STEPPING):
            run.state, metrics = take_step(run.state, teacher_params, batch)
            poll()
            run.dispatched(step + 1, metrics, train_step.slots_of(batch))
        if run.saves(step + 1):
            run.conclude(step + 1)
    return run.state


@dataclasses.dataclass
class _Run:
    """What the loop keeps from step to step; the arguments are those of `train`."""

    config: Any
    total_steps: int
    log: Callable
    save: Callable
    evaluate: Callable | None
    keep: Callable
    bad: Callable
    note: Callable
    state: dict
    progress: progress.Progress
    watch: collapse.Watch
    clock: Clock = dataclasses.field(default_factory=Clock)
    in_flight: collections.deque = dataclasses.field(default_factory=collections.deque)

    def evaluates(self, done: int) -> bool:
        """Whether the state after a step is evaluated."""
        every = self.config.dev.every
        return self.evaluate is not None and (
            done == self.total_steps or bool(every and done % every == 0)
        )

    def saves(self, done: int) -> bool:
        """Whether the state after a step is saved."""
        due = done % self.config.checkpoint.every == 0 or done == self.total_steps
        return due or self.evaluates(done)

    def dispatched(self, done: int, metrics: dict, slots: int) -> None:
        """Takes a step's numbers to read later: two steps stay in flight."""
        self.in_flight.append((done, metrics, slots))
        self.finish(2)

    def finish(self, most: int = 0) -> None:
        """Reads the numbers of steps until at most so many are in flight."""
        while len(self.in_flight) > most:
            self._read(*self.in_flight.popleft())

    def _read(self, number: int, metrics: dict, slots: int) -> None:
        config = self.config
        values = _values(metrics, config)
        self.progress.forward()
        if error := bad_steps.judge(number, values, config):
            raise BadNumbers(error, number, values)
        if self._was_skipped(number, values):
            values = {k: v for k, v in values.items() if math.isfinite(v)}
        else:
            last = number == self.total_steps
            for text in self.watch.dense_now(values, last):
                self.note(f"  Step {number:,}: {text}")
            if lost := self.watch.look(values, last):
                raise TrainingFailed(f"Step {number}: {lost}")
        values.pop("in_a_row", None)
        self.clock.count(config.batch_size, values.pop("tokens"), slots)
        if number % config.log.every == 0 or number == self.total_steps:
            self.log(number, values | self.clock.read())

    def _was_skipped(self, number: int, values: dict[str, float]) -> bool:
        """Whether the step was the next to be skipped; then it is told."""
        if not values.pop("bad", 0):
            return False
        told = bad_steps.described(number, values)
        self.bad(self.state, BadNumbers(f"{told} It was skipped.", number, values))
        return True

    def at_rest(self):
        """Within it, another thread may keep the state."""
        return self.progress.at_rest(self._keep)

    def _keep(self) -> None:
        with self.progress.held, self.progress.at(progress.SAVING):
            self.keep(self.state)
            self.progress.unsaved = False

    def leave(self) -> None:
        """Keeps the state, once the steps in flight are known to be sound."""
        self.finish()
        if self.progress.unsaved:
            self._keep()
        raise progress.Preempted

    def conclude(self, done: int) -> None:
        """Evaluates and saves the state, as it is due."""
        self.finish()
        paused = time.monotonic()
        dev = None
        if self.evaluates(done):
            # A state that was kept may have to be kept again.
            self.progress.unsaved = True
            with self.progress.at(progress.EVALUATING), self.at_rest():
                try:
                    dev = self.evaluate(self.state["params"])
                except progress.Preempted:
                    self.leave()
            self.log(done, {f"dev_{name}": value for name, value in dev.items()})
        with self.progress.held, self.progress.at(progress.SAVING):
            self.save(self.state, dev)
            self.progress.unsaved = False
        self.clock.started += time.monotonic() - paused


def _values(metrics: dict, config) -> dict[str, float]:
    """The numbers of a step as floats."""
    found = jax.device_get(metrics)
    by_language = found.pop("by_language", {})
    values = {name: float(value) for name, value in found.items()}
    if by_language:
        values |= collapse.by_name(train_step.languages_of(config), by_language)
    return values
