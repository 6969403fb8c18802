"""Embeddings have length 1, whatever the size of what they are made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.models.views import normalized

ROWS, SIZE = 3, 7
# Of squares that are infinite, that are just finite, and that are usual.
SCALES = [1e37, 1e30, 1.01e15, 0.99e15, 1e3, 1.0, 1e-5]


def vectors(scale):
    x = np.random.default_rng(3).normal(size=(ROWS, SIZE)).astype(np.float32)
    return (x * np.float32(scale)).astype(np.float32)


def reference(x):
    """In float64: the unit vectors, and their Jacobian (I - u u') / |x|."""
    x = x.astype(np.float64)
    lengths = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    unit = x / lengths
    outer = np.eye(SIZE) - unit[:, :, None] * unit[:, None, :]
    return unit, outer / lengths[:, :, None]


@pytest.mark.parametrize("scale", SCALES)
def test_vectors_of_any_size_have_length_1(scale):
    x = vectors(scale)
    unit, _ = reference(x)
    np.testing.assert_allclose(normalized(jnp.asarray(x)), unit, atol=1e-6)


# Float32 has no gradients as small as those of the largest.
@pytest.mark.parametrize("scale", SCALES[1:])
def test_their_gradients_are_right(scale):
    x = vectors(scale)
    _, wanted = reference(x)
    found = jax.vmap(jax.jacrev(normalized))(jnp.asarray(x))
    # They are as small as the vectors are large.
    found, wanted = np.asarray(found, np.float64) * scale, wanted * scale
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_rows_of_different_sizes_do_not_touch_each_other():
    x = np.stack([vectors(1e30)[0], np.zeros(SIZE), vectors(1.0)[2], vectors(1e-30)[1]])
    x = x.astype(np.float32)
    found = np.asarray(normalized(jnp.asarray(x)))
    alone = np.stack([normalized(jnp.asarray(row)) for row in x])
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_allclose(found[0], reference(x[:1])[0][0], atol=1e-6)
    assert not found[1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(bad):
    x = vectors(1.0)
    x[1, 2] = bad
    finite = np.isfinite(normalized(jnp.asarray(x))).all(axis=1)
    np.testing.assert_array_equal(finite, [True, False, True])
