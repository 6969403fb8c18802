"""Losses equal those of torch, or a computation by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lsrjax import reps
from lsrjax.losses import LOSSES, alignment, infonce, kl

B, G, V = 3, 4, 11


def normal(seed, *shape, scale=2.0):
    values = scale * np.random.default_rng(seed).normal(size=shape)
    return values.astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_kl_is_that_of_torch(temperature):
    scores, teacher = normal(0, B, G), normal(1, B, G)
    student = torch.tensor(scores, requires_grad=True)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(student / temperature, dim=1),
        torch.softmax(torch.tensor(teacher) / temperature, dim=1),
        reduction="batchmean",
    )
    expected = expected * temperature**2
    expected.backward()
    found, gradient = jax.value_and_grad(kl)(scores, teacher, temperature)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=1e-6)


def test_kl_of_equal_distributions_is_zero():
    scores = normal(0, B, G)
    shifted = scores + normal(1, B, 1)
    assert float(kl(scores, shifted)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("group", [1, 4])
def test_infonce_is_the_cross_entropy_of_torch(group, temperature):
    scores = normal(2, B, B * group)
    logits = torch.tensor(scores, requires_grad=True)
    positives = torch.tensor([b * group for b in range(B)])
    expected = torch.nn.functional.cross_entropy(logits / temperature, positives)
    expected.backward()
    found, gradient = jax.value_and_grad(infonce)(scores, temperature)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-5)


def test_alignment_by_hand():
    raw = jnp.array([[1.0, -2.0, 3.0], [-1.0, -1.0, 0.5]])
    teacher = jnp.array([[2.0, 1.0, -1.0], [-5.0, -1.0, 0.0]])
    # Either side is positive at (0, 0), (0, 1), (0, 2) and (1, 2).
    by_hand = (1 + 9 + 16 + 0.25) / 4
    loss, gradient = jax.value_and_grad(alignment)(raw, teacher)
    assert float(loss) == pytest.approx(by_hand)
    np.testing.assert_allclose(gradient, [[-0.5, -1.5, 2.0], [0, 0, 0.25]])


def test_alignment_without_a_positive_coordinate_is_zero():
    raw, teacher = -jnp.ones((2, 3)), -2 * jnp.ones((2, 3))
    loss, gradient = jax.value_and_grad(alignment)(raw, teacher)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def vector(seed, count):
    raw_BV = jnp.asarray(normal(seed, count, V))
    return {"pivot": reps.Vector(jnp.log1p(jax.nn.relu(raw_BV)), raw_BV)}


def inputs(loss):
    counts = {"document": B * G}
    views = {
        name: vector(seed, counts.get(name, B)) for seed, name in enumerate(loss.texts)
    }
    targets = {
        "views": {"teacher": vector(9, B)},
        "scores": {"scores": normal(8, B, G)},
    }
    return views, targets.get(loss.target, {})


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_reaches_every_text(name):
    loss = LOSSES[name]
    views, targets = inputs(loss)
    options = dict.fromkeys(loss.options, 1.0)

    def total(views):
        parts = loss.fn(views, targets, **options)
        assert {part.shape for part in parts.values()} == {()}
        return sum(parts.values())

    value, gradients = jax.value_and_grad(total)(views)
    assert np.isfinite(value)
    for text in loss.texts:
        leaves = jax.tree.leaves(gradients[text])
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any(np.asarray(leaf).any() for leaf in leaves)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_ignores_the_order_of_the_examples(name):
    loss = LOSSES[name]
    views, targets = inputs(loss)
    options = dict.fromkeys(loss.options, 1.0)
    order = np.array([2, 0, 1])

    def reordered(leaf):
        return leaf.reshape(B, -1, leaf.shape[-1])[order].reshape(leaf.shape)

    changed = jax.tree.map(reordered, (views, targets))
    before = loss.fn(views, targets, **options)
    after = loss.fn(*changed, **options)
    for part, value in before.items():
        assert float(after[part]) == pytest.approx(float(value), rel=1e-5)
