"""Bad numbers: a loss or gradient that is not finite, or a loss that has jumped.

What the policy remembers of earlier steps is part of the train state. A step's fate is
thus a pure function of state and batch, and a resumed run decides like one that never
stopped. The guard is not an optax transformation, which sees only updates and the
optimizer's state: a skipped step must also leave the controller of the lambdas and the
counts of a head's latents unchanged.
"""

import math

import jax
import jax.numpy as jnp

from lsrjax.errors import TrainingFailed


class BadNumbers(TrainingFailed):
    """A step (counted from 1) has a bad loss or gradient, or its loss has jumped."""

    def __init__(self, message: str, step: int, values: dict[str, float]):
        super().__init__(message)
        self.step, self.values = step, values


# A loss is compared with the median of the 32 sound steps before it; with fewer sound
# steps, no loss counts as a jump.
WINDOW = 32
KEY = "numbers"


def init(config) -> dict:
    """The policy's part of the state, under `KEY`; empty if the policy needs none.

    Returns:
      With `spike`, `losses`: [WINDOW] of the last sound steps, NaN where there is none
      yet. With the policy "skip", `skipped` and `in_a_row`: the number of skipped steps
      in total, and since the last sound one.
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
    """The state after a step whose numbers were checked, and what to log.

    Args:
      config: the stage's `numbers`.
      after: the state that the step proposes.

    Returns:
      `after`, or for a skipped step, `before` with the step counted. To log: with
      `spike`, `spike`, the loss over the median; with the policy "skip", `bad` (1 if
      this step was skipped), `skipped` and `in_a_row`.
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
    """Why a step's numbers end the run, or an empty string."""
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
    """Describes which numbers of a step are bad."""
    shown = {k: v for k, v in values.items() if k not in ("bad", "in_a_row")}
    bad = _not_finite(shown)
    listing = ", ".join(f"{name} = {value:.4g}" for name, value in shown.items())
    if bad:
        return f"Step {step}: {' and '.join(bad)} not finite ({listing})."
    return f"Step {step}: the loss has jumped ({listing})."


def _not_finite(values: dict[str, float]) -> list[str]:
    # Until the window is full, there is no median.
    return [k for k, v in values.items() if not math.isfinite(v) and k != "spike"]
