"""What moves the regularizers' lambdas: schedules, and a controller of active terms.

Lambdas go by the option of the regularizer that gives them: `query` and `document` for
the vocabulary view, `source_query` and `source_document` for the source view. All
functions take the regularizer's options.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.regularizers import OfDocuments

# Lambdas are steered within this many powers of e around the config's: a target that
# cannot be reached must not wind the multiplier up for the rest of the run.
_LARGEST_LOG = 10.0


def init(options: OfDocuments) -> dict[str, dict[str, jax.Array]]:
    """The controller's part of a train state, empty where nothing is steered.

    It is `{"controller": {name: logarithm of what the lambda is multiplied by}}`.
    """
    zeros = {name: jnp.zeros((), jnp.float32) for name in options.steered}
    return {"controller": zeros} if zeros else {}


def lambdas(options: OfDocuments, state: dict) -> dict[str, jax.Array]:
    """The lambdas of a step by name; those that the options leave at 0 are left out.

    Args:
      options: of the regularizer.
      state: the train state before the step.
    """
    rise = _rise(options, state)
    found = {name: rise * value for name, value in options.lambdas.items()}
    for name in options.steered:
        found[name] *= jnp.exp(state["controller"][name])
    return found


def steered(
    options: OfDocuments, state: dict, active: dict[str, jax.Array]
) -> dict[str, dict[str, jax.Array]]:
    """The controller's part of the train state after a step; see `steer`.

    Args:
      options: of the regularizer.
      state: the train state before the step.
      active: mean number of active terms in the step, by lambda.
    """
    # While lambdas are still low, too many terms say nothing about their full height.
    gain = options.active_gain * _rise(options, state)
    moved = {
        name: steer(state["controller"][name], active[name], target, gain)
        for name, target in options.steered.items()
    }
    return {"controller": moved} if moved else {}


def steer(
    log_multiplier: jax.Array, active: jax.Array, target: float, gain: jax.Array
) -> jax.Array:
    """`m + gain * clip(log(active / target), -1, 1)`, within bounds.

    An integral controller in log space. Far from the target it moves at a constant
    speed, by a factor of e in 1 / gain steps. Near it, where the number of terms
    follows lambda after some tau steps, to the power -k (k is below 1), the loop has
    the damping 1 / (2 sqrt(gain * k * tau)): at tau = 50 steps, a gain of .01 leaves
    it without oscillation worth the name.

    Args:
      log_multiplier: of this step; a scalar.
      active: mean number of active terms of a text, in this step.
      target: the number wanted, > 0.
      gain: of one step; 0 leaves the multiplier as it is.
    """
    # An empty vector's logarithm is cut off like that of any far too small number.
    error = jnp.log(jnp.maximum(active, 1e-6) / target)
    moved = log_multiplier + gain * jnp.clip(error, -1.0, 1.0)
    return jnp.clip(moved, -_LARGEST_LOG, _LARGEST_LOG)


def _rise(options: OfDocuments, state: dict) -> jax.Array:
    """The share of the full lambdas that a step has."""
    schedule = options.schedule
    return schedule.entry.fn(state["step"], **dataclasses.asdict(schedule.options))
