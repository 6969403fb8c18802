"""Controls the regularizers' lambdas: schedules, and a controller of active terms.

Lambdas have the names of the regularizer's options: `query` and `document` for the
vocabulary view, `source_query` and `source_document` for the source view.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.losses.regularizers import OfDocuments

# Limits steering to this many powers of e around the config's lambda, so that an
# unreachable target does not wind the multiplier up for the rest of the run.
_LARGEST_LOG = 10.0


def init(options: OfDocuments) -> dict[str, dict[str, jax.Array]]:
    """The controller's part of a train state, empty if nothing is steered.

    It is `{"controller": {name: logarithm of the lambda's factor}}`.
    """
    zeros = {name: jnp.zeros((), jnp.float32) for name in options.steered}
    return {"controller": zeros} if zeros else {}


def lambdas(options: OfDocuments, state: dict) -> dict[str, jax.Array]:
    """The lambdas of a step by name, without those that the options leave at 0.

    `state` is the train state before the step.
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

    `active` is the mean number of active terms in the step, by lambda.
    """
    # While lambdas are warming up, too many terms do not mean that they end too low.
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
    speed, by a factor of e in 1 / gain steps. Near the target, if the number of terms
    follows lambda with a delay of tau steps, to the power -k (k < 1), the loop has the
    damping 1 / (2 sqrt(gain * k * tau)): at tau = 50 steps, a gain of .01 gives almost
    no oscillation.

    Args:
      log_multiplier: m of this step, a scalar.
      active: mean number of active terms of a text, in this step.
      target: wanted number of active terms, > 0.
      gain: of one step; 0 leaves m unchanged.
    """
    # Bounds the logarithm for empty vectors.
    error = jnp.log(jnp.maximum(active, 1e-6) / target)
    moved = log_multiplier + gain * jnp.clip(error, -1.0, 1.0)
    return jnp.clip(moved, -_LARGEST_LOG, _LARGEST_LOG)


def _rise(options: OfDocuments, state: dict) -> jax.Array:
    """The share of the full lambdas that applies to a step."""
    schedule = options.schedule
    return schedule.entry.fn(state["step"], **dataclasses.asdict(schedule.options))
