"""Signs of lost models, and when a run stops for them."""

import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax import health, reps


def vector(weights):
    weights = jnp.asarray(weights, jnp.float32)
    return reps.Vector(weights, weights)


VIEWS = {
    "query": {
        "pivot": vector([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 2]]),
        "source": reps.Bag(
            jnp.array([[4, 2], [1, 1], [0, 0]]),
            jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.0]]),
            5,
        ),
    },
    "document": {"dense": reps.Dense(jnp.zeros((3, 2)))},
}


def test_a_text_is_empty_where_no_view_has_a_weight():
    found = health.signs(VIEWS, more=False)
    assert found.keys() == {"empty_query"}
    assert float(found["empty_query"]) == pytest.approx(1 / 3)


def test_unused_terms_are_those_of_no_text_in_the_batch():
    found = health.signs(VIEWS, more=True)
    assert float(found["unused_query_pivot"]) == pytest.approx(2 / 4)
    assert float(found["unused_query_source"]) == pytest.approx(4 / 5)


def test_a_run_stops_after_many_steps_of_empty_vectors_in_a_row():
    watch = health.Watch()
    empty, alive = {"empty_query": 1.0, "empty_document": 0.0}, {"empty_query": 0.99}
    for _ in range(2):
        for _ in range(49):
            assert not watch.look(dict(empty))
        assert not watch.look(dict(alive))
    for _ in range(49):
        assert not watch.look(dict(empty))
    lost = watch.look(dict(empty))
    assert "every query vector has been empty for 50 steps" in lost
    assert "config.regularizer.query" in lost


def test_shares_of_nothing_are_not_logged():
    numbers = {"empty_query": 0.0, "empty_document": 0.25, "loss": 0.0}
    assert not health.Watch().look(numbers)
    assert numbers == {"empty_document": 0.25, "loss": 0.0}
    assert np.isfinite(numbers["loss"])
