"""The loop around the training step: logs, evaluates, saves, and knows when to stop."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax

from lsrjax import health
from lsrjax import train as training


class TrainingFailed(RuntimeError):
    """The run cannot go on; earlier checkpoints are as they were."""


class CompiledSteps:
    """The step, compiled once for each shape of batch."""

    def __init__(
        self, step: training.Step, check: Callable[..., None] = lambda *args: None
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

    def __call__(self, state: dict, teacher_params: dict | None, batch: dict):
        """Takes the step."""
        args = state, teacher_params, batch
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self._compiled:
            made = training.compiled(self._step, *args)
            self._check(made, *args)
            self._compiled[shapes] = made
        return self._compiled[shapes](*args)


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
    step_fn: training.Step,
    state: dict,
    teacher_params: dict | None,
    batches: Iterator[dict],
    *,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[dict, dict[str, float] | None], None],
    evaluate: Callable[[dict], dict[str, float]] | None,
    check: Callable[..., None] = lambda *args: None,
    poll: Callable[[], None] = lambda: None,
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

    Returns:
      The last state.

    Raises:
      TrainingFailed: the loss or the gradient is not a finite number, or the model has
        collapsed.
    """
    take_step = CompiledSteps(step_fn, check)
    clock = Clock()
    watch = health.Watch()
    in_flight = collections.deque()
    start = int(state["step"])
    for step in range(start, total_steps):
        batch = next(batches)
        state, metrics = take_step(state, teacher_params, batch)
        poll()
        done = step + 1
        in_flight.append((done, metrics, training.slots_of(batch)))
        evaluates = evaluate is not None and (
            done == total_steps or (config.dev.every and done % config.dev.every == 0)
        )
        saves = done % config.checkpoint.every == 0 or evaluates or done == total_steps
        # Two steps stay in flight, except where a checkpoint asks for certainty.
        while len(in_flight) > (0 if saves else 2):
            number, metrics, slots = in_flight.popleft()
            numbers = _finite(number, metrics, config)
            if lost := watch.look(numbers):
                raise TrainingFailed(f"Step {number}: {lost}")
            clock.count(config.batch_size, numbers.pop("tokens"), slots)
            if number % config.log.every == 0 or number == total_steps:
                log(number, numbers | clock.read())
        if saves:
            paused = time.monotonic()
            dev = evaluate(state["params"]) if evaluates else None
            if dev:
                log(done, {f"dev_{name}": value for name, value in dev.items()})
            save(state, dev)
            clock.started += time.monotonic() - paused
    return state


def _finite(step: int, metrics: dict, config) -> dict[str, float]:
    """The numbers of a step as floats, refused where one is not finite."""
    found = jax.device_get(metrics)
    by_language = found.pop("by_language", {})
    values = {name: float(value) for name, value in found.items()}
    if by_language:
        values |= health.by_name(training.languages_of(config), by_language)
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        listing = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
        raise TrainingFailed(
            f"Step {step}: {' and '.join(bad)} not finite ({listing}). No checkpoint of"
            " this state was written; the earlier ones are sound. Lower"
            f" config.optim.lr (now {config.optim.lr}) or lengthen the warm-up, use"
            " float32, or look for broken rows in the data."
        )
    return values
