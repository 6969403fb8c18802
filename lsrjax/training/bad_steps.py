"""Bad numbers: a loss or gradient that is not finite, and a loss that has jumped.

What the policy needs to know of earlier steps is part of the train state, so that a
step's fate is a pure function of the state and its batch, and a run that goes on
decides as one that was never stopped. The guard is no optax transformation, which sees
updates and the optimizer's state alone: a skipped step leaves the controller of the
lambdas and the counts of a head's latents as they were, too.
"""

import math

import jax
import jax.numpy as jnp

from lsrjax.errors import TrainingFailed


class BadNumbers(TrainingFailed):
    """A step's loss or gradient is no number, or its loss has jumped.

    Attributes:
      step: the step, from 1.
    """

    def __init__(self, message: str, step: int, values: dict[str, float]):
        """Keeps what a post-mortem says."""
        super().__init__(message)
        self.step, self.values = step, values


# A loss is compared with the median of the 32 sound steps before it; until there are as
# many, none has jumped.
WINDOW = 32
KEY = "numbers"


def init(config) -> dict:
    """What the state holds for the policy, under `KEY`; nothing where it needs nothing.

    Returns:
      With `spike`, `losses`: [WINDOW] of the last sound steps, NaN where there are
      none yet. With the policy skip, `skipped` and `in_a_row`: steps skipped in total,
      and since the last sound one.
    """
    held = {}
    if config.spike:
        held["losses"] = jnp.full((WINDOW,), jnp.nan, jnp.float32)
    if config.policy == "skip":
        held |= {"skipped": jnp.int32(0), "in_a_row": jnp.int32(0)}
    return {KEY: held} if held else {}


def guarded(
    config, before: dict, after: dict, loss: jax.Array, grad_norm: jax.Array
) -> tuple[dict, dict[str, jax.Array]]:
    """The state after a step whose numbers have been looked at, and what to log of it.

    Args:
      config: the stage's `numbers`.
      before: the state before the step.
      after: the state that the step would give.

    Returns:
      The state: `after`, or where a bad step is skipped, `before` with the step
      counted. And, with `spike`, the number `spike`, the loss over the median; with
      the policy skip, `bad` (1 if this step was skipped), `skipped` and `in_a_row`.
    """
    if KEY not in before:
        return after, {}
    held, found = dict(before[KEY]), {}
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    if config.spike:
        losses = held["losses"]
        # NaN until the window is full.
        median = jnp.median(losses)
        ratio = jnp.where(median > 0, loss.astype(jnp.float32) / median, 0.0)
        bad |= ratio > config.spike
        pushed = jnp.roll(losses, -1).at[-1].set(loss.astype(jnp.float32))
        held["losses"] = jnp.where(bad, losses, pushed)
        found["spike"] = ratio
    if config.policy == "skip":
        held["skipped"] = held["skipped"] + bad
        held["in_a_row"] = jnp.where(bad, held["in_a_row"] + 1, 0)
        kept = {name: part for name, part in before.items() if name != KEY}
        taken = {name: after[name] for name in kept}
        after = jax.tree.map(lambda a, b: jnp.where(bad, a, b), kept, taken)
        after["step"] = before["step"] + 1
        found |= {name: held[name] for name in ("skipped", "in_a_row")}
        found["bad"] = bad
    return after | {KEY: held}, found


def judge(step: int, values: dict[str, float], config) -> str:
    """Why the run cannot go on with a step's numbers, or nothing."""
    policy = config.numbers
    if values.get("bad"):
        if values["in_a_row"] <= policy.most:
            return ""
        return (
            f"{described(step, values)} It is number {values['in_a_row']:.0f} in a row"
            f" to be skipped, and config.numbers.most is {policy.most}.{_ADVICE}"
        )
    if _not_finite(values):
        rate = f" Lower config.optim.lr (now {config.optim.lr})"
        return (
            f"{described(step, values)} No checkpoint of this state was written; the"
            f" earlier ones are sound.{rate} or lengthen the warm-up, use float32, or"
            " look for broken rows in the data."
        )
    if policy.spike and values.get("spike", 0.0) > policy.spike:
        return (
            f"Step {step}: the loss {values['loss']:.4g} is {values['spike']:.3g} times"
            f" the median of the last {WINDOW} steps; config.numbers.spike is"
            f" {policy.spike}.{_ADVICE}"
        )
    return ""


_ADVICE = " Lower config.optim.lr, or look for broken rows in the data."


def described(step: int, values: dict[str, float]) -> str:
    """Says which numbers of a step are bad."""
    shown = {k: v for k, v in values.items() if k not in ("bad", "in_a_row")}
    bad = _not_finite(shown)
    listing = ", ".join(f"{name} = {value:.4g}" for name, value in shown.items())
    if bad:
        return f"Step {step}: {' and '.join(bad)} not finite ({listing})."
    return f"Step {step}: the loss has jumped ({listing})."


def _not_finite(values: dict[str, float]) -> list[str]:
    # Until the window is full, there is no median.
    return [k for k, v in values.items() if not math.isfinite(v) and k != "spike"]
