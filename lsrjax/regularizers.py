"""Sparsity regularizers over representations, and the schedules of their weights.

To add one: write it here with its source, and add a line to the table.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsrjax import reps


def l1(view: reps.Vector | reps.Bag) -> jax.Array:
    """Mean over texts of the sum of a text's weights (weights are >= 0)."""
    return view.row_sums().mean()


def flops(view: reps.Vector | reps.Bag) -> jax.Array:
    """FLOPS: sum over terms of the squared mean weight (Paria et al. 2020)."""
    return jnp.square(view.column_means()).sum()


def constant(step: jax.Array, steps: int) -> jax.Array:
    """1 from the first step on."""
    return jnp.ones((), jnp.float32)


def linear(step: jax.Array, steps: int) -> jax.Array:
    """Rises from 0 to 1 over `steps` steps in a straight line."""
    return jnp.minimum(step / max(steps, 1), 1.0)


def quadratic(step: jax.Array, steps: int) -> jax.Array:
    """(t / T)^2 up to 1 (SPLADE v2, Formal et al. 2021)."""
    return jnp.square(linear(step, steps))


REGULARIZERS: dict[str, Callable] = {"l1": l1, "flops": flops}
SCHEDULES: dict[str, Callable] = {
    "constant": constant,
    "linear": linear,
    "quadratic": quadratic,
}
