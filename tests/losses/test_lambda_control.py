"""Lambdas by schedule, and the controller that steers them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.losses import lambda_control
from lsrjax.losses.regularizers import of


def config_of(**fields):
    """The options of a regularizer."""
    return of({"name": "l1", "query": 0.5, "document": 0.25} | fields).options


def rising(name):
    return {"name": name, "steps": 10}


def state_of(step, **controller):
    state = {"step": jnp.int32(step)}
    if controller:
        state["controller"] = {k: jnp.float32(v) for k, v in controller.items()}
    return state


def test_lambdas_follow_the_schedule():
    config = config_of(source_document=0.1, schedule=rising("quadratic"))
    found = lambda_control.lambdas(config, state_of(5))
    expected = {"query": 0.125, "document": 0.0625, "source_document": 0.025}
    assert found.keys() == expected.keys()  # those of 0 are left out
    for field, value in expected.items():
        assert float(found[field]) == pytest.approx(value)


def test_without_a_target_there_is_no_controller():
    config = config_of()
    assert lambda_control.init(config) == {}
    assert lambda_control.steered(config, state_of(3), {"query": jnp.float32(9)}) == {}


def test_a_steered_lambda_is_multiplied():
    config = config_of(active_document=20.0)
    assert lambda_control.init(config) == {"controller": {"document": 0}}
    found = lambda_control.lambdas(config, state_of(0, document=np.log(3)))
    assert float(found["query"]) == pytest.approx(0.5)
    assert float(found["document"]) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("active", "moved"),
    [(20, 0), (20 * np.e**0.5, 0.5), (20 / np.e**0.5, -0.5), (1e4, 1), (0, -1)],
)
def test_a_step_of_the_controller_is_bounded(active, moved):
    config = config_of(active_document=20.0, active_gain=0.1)
    active = {"document": jnp.float32(active), "query": jnp.float32(7)}
    after = lambda_control.steered(config, state_of(4, document=0.3), active)
    assert after.keys() == {"controller"} and after["controller"].keys() == {"document"}
    found = float(after["controller"]["document"])
    assert found == pytest.approx(0.3 + 0.1 * moved, rel=1e-5)


def test_the_controller_waits_for_the_warm_up():
    config = config_of(active_document=20.0, active_gain=0.1, schedule=rising("linear"))
    active = {"document": jnp.float32(1e4)}
    for step, share in ((0, 0), (5, 0.5), (10, 1), (20, 1)):
        after = lambda_control.steered(config, state_of(step, document=0.0), active)
        found = float(after["controller"]["document"])
        assert found == pytest.approx(0.1 * share)


def test_a_target_out_of_reach_does_not_wind_the_controller_up():
    config = config_of(active_document=20.0, active_gain=1.0)
    state = state_of(0, document=0.0)
    for _ in range(50):
        state |= lambda_control.steered(config, state, {"document": jnp.float32(1e6)})
    highest = float(state["controller"]["document"])
    assert highest <= 10
    after = lambda_control.steered(config, state, {"document": jnp.float32(1)})
    assert float(after["controller"]["document"]) == pytest.approx(highest - 1)
    for _ in range(50):
        state |= lambda_control.steered(config, state, {"document": jnp.float32(1)})
    assert float(state["controller"]["document"]) == pytest.approx(-highest)


TEXTS, TERMS, RATE = 16, 200, 0.02


def trained(config, steps, start=None):
    """Active terms of each step of texts drawn to weights of their own and by L1 to 0.

    Each weight follows lambda with a lag of 1 / RATE = 50 steps.
    """
    wanted = np.random.default_rng(0).normal(size=(TEXTS, TERMS)).astype(np.float32)

    def step(state, _):
        weights = jnp.maximum(state["params"], 0)
        active = {"document": (weights > 0).sum(axis=1).mean()}
        pull = (
            state["params"] - wanted + lambda_control.lambdas(config, state)["document"]
        )
        after = {"step": state["step"] + 1, "params": state["params"] - RATE * pull}
        return after | lambda_control.steered(config, state, active), active["document"]

    state = start or {**state_of(0), "params": wanted, **lambda_control.init(config)}
    return jax.lax.scan(step, state, length=steps)


@pytest.mark.parametrize("target", [5.0, 20.0, 60.0])
@pytest.mark.parametrize("start", [1e-3, 1.0])
def test_the_number_of_active_terms_comes_to_the_target_and_stays(target, start):
    config = config_of(active_document=target, document=start)
    _, active = trained(config, 2500)
    assert abs(float(active[0]) / target - 1) > 0.5
    np.testing.assert_allclose(active[-500:], target, rtol=0.03)


def test_without_the_controller_it_does_not():
    _, active = trained(config_of(document=1e-3), 1500)
    assert abs(float(active[-1]) / 20 - 1) > 0.5


def test_the_controller_goes_on_from_its_state():
    config = config_of(active_document=20.0)
    whole, active = trained(config, 300)
    half, first = trained(config, 120)
    rest, second = trained(config, 180, start=half)
    jax.tree.map(np.testing.assert_array_equal, rest, whole)
    np.testing.assert_array_equal(np.concatenate([first, second]), active)
