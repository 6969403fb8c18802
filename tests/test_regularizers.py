"""Regularizers and schedules against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax import reps
from lsrjax.regularizers import REGULARIZERS, SCHEDULES, flops, l1

WEIGHTS = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
VECTOR = reps.Vector(WEIGHTS, WEIGHTS)
# The same vectors; the first text's term 2 comes in two parts, and 1 is padding.
BAG = reps.Bag(
    jnp.array([[2, 0, 2, 1], [0, 1, 1, 1]]),
    jnp.array([[0.5, 1, 1.5, 0], [3, 0, 0, 0]]),
    3,
)


@pytest.mark.parametrize("view", [VECTOR, BAG])
def test_by_hand(view):
    assert float(l1(view)) == pytest.approx((3 + 3) / 2)
    assert float(flops(view)) == pytest.approx(2**2 + 0**2 + 1**2)


def test_flops_prefers_terms_spread_over_the_vocabulary():
    """Equal L1, fewer shared posting lists."""
    spread = reps.Vector(jnp.eye(4), jnp.eye(4))
    same = jnp.zeros((4, 4)).at[:, 0].set(1.0)
    same = reps.Vector(same, same)
    assert float(l1(spread)) == float(l1(same)) == 1
    assert float(flops(spread)) == pytest.approx(0.25)
    assert float(flops(same)) == pytest.approx(1)


@pytest.mark.parametrize("view", [VECTOR, BAG])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_pushes_active_weights_down(name, view):
    field = "weights_BV" if isinstance(view, reps.Vector) else "weights_BK"

    def penalty(weights):
        leaves = {**vars(view), field: weights}
        return REGULARIZERS[name](type(view)(**leaves))

    weights = getattr(view, field)
    value, gradient = jax.value_and_grad(penalty)(weights)
    assert value.shape == () and value > 0
    assert np.isfinite(gradient).all() and (gradient >= 0).all()
    assert (gradient[weights > 0] > 0).all()
    assert float(penalty(jnp.zeros_like(weights))) == 0


@pytest.mark.parametrize(
    ("name", "start", "half"),
    [("constant", 1, 1), ("linear", 0, 0.5), ("quadratic", 0, 0.25)],
)
def test_schedules(name, start, half):
    schedule = SCHEDULES[name]
    values = [float(schedule(jnp.int32(step), 10)) for step in (0, 5, 10, 25)]
    assert values == pytest.approx([start, half, 1, 1])
    assert float(schedule(jnp.int32(1), 0)) == 1


def test_all_schedules_are_tested():
    assert set(SCHEDULES) == {"constant", "linear", "quadratic"}
