"""Group DRO against algorithm 1 of Sagawa et al. 2020 in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.losses.group_weights import KEY, Groups

LOSSES = np.array([3.0, 1.0, 2.0, 0.5, 4.0], np.float32)
GROUPS = np.array([0, 2, 0, 1, 2], np.int32)


def weighed(groups, losses, group, log_K=None):
    state = groups.init()
    if log_K is not None:
        state[KEY]["log"] = jnp.asarray(log_K)
    return groups.weigh(state, jnp.asarray(losses), jnp.asarray(group))


def test_with_every_group_in_the_batch_it_is_algorithm_1():
    groups, q = Groups(3, 0.3), np.full(3, 1 / 3)
    state = groups.init()
    for step in range(4):
        losses = LOSSES * (step + 1)
        means = np.array([losses[g == GROUPS].mean() for g in range(3)])
        q = q * np.exp(0.3 * means)
        q /= q.sum()
        found = groups.weigh(state, jnp.asarray(losses), jnp.asarray(GROUPS))
        loss = float((found.examples_B * losses).sum())
        assert loss == pytest.approx((q * means).sum(), rel=1e-5)
        np.testing.assert_allclose(np.exp(found.state["log"]), q, rtol=1e-5)
        np.testing.assert_allclose(found.state["losses"], means, rtol=1e-6)
        state = {KEY: found.state}
    assert q.argmax() == 0 or q.argmax() == 2


def test_equal_weights_give_the_mean_over_the_groups_of_the_batch():
    """Also where groups are missing, and where a batch has one group alone."""
    for group in (GROUPS, np.array([1, 4, 4, 1, 1]), np.zeros(5, int)):
        found = weighed(Groups(7, 1e-9), LOSSES, group)
        means = [LOSSES[group == g].mean() for g in np.unique(group)]
        loss = float((found.examples_B * LOSSES).sum())
        assert loss == pytest.approx(np.mean(means), rel=1e-5)
    assert float(found.examples_B.sum()) == pytest.approx(1, rel=1e-5)


def test_a_batch_of_one_group_counts_as_much_as_the_group():
    log_K = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    found = weighed(Groups(3, 1e-9), LOSSES, np.ones(5, int), log_K)
    assert float(found.examples_B.sum()) == pytest.approx(3 * 0.6, rel=1e-5)


def test_batches_of_one_group_each_come_to_the_weights_of_algorithm_1():
    """A group's latest loss counts in every step, one not seen yet as the mean."""
    groups, q = Groups(3, 0.5), np.full(3, 1 / 3)
    state, known = groups.init(), {}
    for group in (1, 1, 0, 2, 0, 1):
        known[group] = LOSSES[group]
        found = groups.weigh(
            state, jnp.full(4, LOSSES[group]), jnp.full(4, group, jnp.int32)
        )
        mean = np.mean(list(known.values()))
        q = q * np.exp(0.5 * np.array([known.get(g, mean) for g in range(3)]))
        q /= q.sum()
        np.testing.assert_allclose(np.exp(found.state["log"]), q, rtol=1e-5)
        state = {KEY: found.state}
    assert q.argmax() == 0


def test_a_frequent_group_gains_no_weight_over_a_rare_one_of_equal_loss():
    groups = Groups(3, 0.5)
    state = groups.init()
    for step in range(9):
        # The second is in two of nine batches, the third in none.
        group = [0, 0, 0, int(step % 8 == 0)]
        found = groups.weigh(state, jnp.full(4, 2.0), jnp.array(group))
        state = {KEY: found.state}
    np.testing.assert_allclose(np.exp(state[KEY]["log"]), 1 / 3, rtol=1e-5)


def test_neither_order_nor_a_shift_of_all_losses_changes_the_weights():
    order = np.array([4, 2, 0, 3, 1])
    groups = Groups(3, 0.3)
    first = weighed(groups, LOSSES, GROUPS)
    again = weighed(groups, LOSSES[order], GROUPS[order])
    np.testing.assert_allclose(again.state["log"], first.state["log"], rtol=1e-6)
    np.testing.assert_allclose(again.examples_B, first.examples_B[order], rtol=1e-6)
    shifted = weighed(groups, LOSSES + 5, GROUPS)
    np.testing.assert_allclose(
        shifted.state["log"], first.state["log"], rtol=1e-5, atol=1e-6
    )


def test_no_gradient_flows_through_the_weights():
    groups = Groups(3, 0.3)

    def loss(losses_B):
        found = groups.weigh(groups.init(), losses_B, jnp.asarray(GROUPS))
        return (found.examples_B * losses_B).sum()

    found = weighed(groups, LOSSES, GROUPS)
    gradient = jax.grad(loss)(jnp.asarray(LOSSES))
    np.testing.assert_allclose(gradient, found.examples_B, rtol=1e-6)


def test_without_groups_the_state_has_no_part():
    assert Groups(0, 0.1).init() == {}
