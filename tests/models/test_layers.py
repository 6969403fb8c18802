"""Norms and GELU, whose gradients are their own, against JAX's; what dropout draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsrjax.models.layers import LayerNorm, RMSNorm, dropout, gelu

T, D, EPS = 37, 23, 1e-5


def states(mean, spread=1.0):
    """Rows around a mean, of which the first is constant and the second zero."""
    x_TD = mean + spread * np.random.default_rng(0).normal(size=(T, D))
    x_TD[0], x_TD[1] = mean, 0.0
    return jnp.asarray(x_TD, jnp.float32)


def incoming(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def modules():
    """Ours and JAX's, of the same parameters."""
    ours = LayerNorm(D, EPS, rngs=nnx.Rngs(0))
    theirs = nnx.LayerNorm(D, epsilon=EPS, use_fast_variance=False, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(2)
    ours.scale[...] = jnp.asarray(1 + rng.normal(size=D), jnp.float32)
    ours.bias[...] = jnp.asarray(rng.normal(size=D), jnp.float32)
    nnx.update(theirs, nnx.state(ours))
    return ours, theirs


def value_and_gradients(module, x_TD, g_TD):
    """Value, and gradients of the states, the scale and the bias."""
    graphdef, params = nnx.split(module)

    @jax.jit
    def found(x_TD, params, g_TD):
        def value(x_TD, params):
            return nnx.merge(graphdef, params)(x_TD)

        y_TD, backward = jax.vjp(value, x_TD, params)
        return y_TD, backward(g_TD.astype(y_TD.dtype))

    y_TD, (dx_TD, dparams) = found(x_TD, params, g_TD)
    gradients = nnx.to_pure_dict(dparams)
    return {"value": y_TD, "x": dx_TD, **gradients}


def assert_close(found, wanted):
    """Within 1e-6 of the largest entry of each array."""
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        have, want = np.asarray(found[name]), np.asarray(want)
        assert have.shape == want.shape and have.dtype == want.dtype == np.float32
        tolerance = 1e-6 * np.abs(want).max()
        np.testing.assert_allclose(have, want, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.5, 2.0), (0.0, 1e-2)])
def test_layer_norm_is_that_of_jax_with_its_gradients(mean, spread):
    x_TD, g_TD = states(mean, spread), incoming((T, D))
    ours, theirs = (value_and_gradients(m, x_TD, g_TD) for m in modules())
    assert set(ours) == {"value", "x", "scale", "bias"}
    assert_close(ours, theirs)
    assert all(np.any(leaf) for leaf in ours.values())


@pytest.mark.parametrize("around_one", [False, True])
@pytest.mark.parametrize("shape", [(T, D), (3, 4, 5, D)])
def test_rms_norm_is_that_of_jax_with_its_gradients(shape, around_one):
    ours = RMSNorm(D, EPS, around_one=around_one)
    theirs = nnx.RMSNorm(D, epsilon=EPS, use_fast_variance=False, rngs=nnx.Rngs(0))
    scale_D = jnp.asarray(1 + np.random.default_rng(2).normal(size=D), jnp.float32)
    ours.scale[...], theirs.scale[...] = scale_D - around_one, scale_D
    x = jnp.resize(states(0.5, 2.0), shape)
    found, wanted = (value_and_gradients(m, x, incoming(shape)) for m in (ours, theirs))
    assert_close(found, wanted)
    assert all(np.any(leaf) for leaf in found.values())


def test_the_mean_may_be_large_against_the_spread():
    """As in double precision, where the difference of the squares loses all digits."""
    x_TD = states(300.0, 0.1)
    ours, _ = modules()
    x = np.asarray(x_TD, np.float64)[2:]
    centered = x - x.mean(axis=1, keepdims=True)
    normal = centered / np.sqrt(np.square(centered).mean(axis=1, keepdims=True) + EPS)
    wanted = normal * np.asarray(ours.scale[...]) + np.asarray(ours.bias[...])
    # A state of 300 is off by 1.5e-5 in float32, and so is their mean.
    np.testing.assert_allclose(ours(x_TD)[2:], wanted, rtol=0, atol=2e-3)


def test_layer_norm_in_bfloat16():
    """States and their gradients stay in it; parameters' gradients are float32."""
    x_TD = states(0.5).astype(jnp.bfloat16)
    ours, _ = modules()
    found = value_and_gradients(ours, x_TD, incoming((T, D)))
    assert found["value"].dtype == found["x"].dtype == jnp.bfloat16
    assert found["scale"].dtype == found["bias"].dtype == jnp.float32
    # It computes in float32: all that is lost is the rounding of what comes out.
    g_TD = incoming((T, D)).astype(jnp.bfloat16).astype(jnp.float32)
    wanted = value_and_gradients(ours, x_TD.astype(jnp.float32), g_TD)
    for name in ("value", "x"):
        want = np.asarray(wanted[name])
        have = np.asarray(found[name].astype(jnp.float32))
        np.testing.assert_allclose(
            have, want, rtol=2**-8, atol=1e-6 * np.abs(want).max()
        )
    for name in ("scale", "bias"):
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-6 * scale)


def gelu_of_jax(x):
    return jax.nn.gelu(x, approximate=False)


def gelu_and_gradient(function, x, g):
    @jax.jit
    def found(x, g):
        y, backward = jax.vjp(function, x)
        return y, backward(g.astype(y.dtype))[0]

    y, dx = found(x, g)
    return {"value": y, "x": dx}


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_gelu_is_that_of_jax_with_its_gradient(scale):
    x, g = scale * states(0.0), incoming((T, D))
    ours, theirs = (gelu_and_gradient(f, x, g) for f in (gelu, gelu_of_jax))
    assert_close(ours, theirs)


def test_gelu_far_from_zero_and_at_it():
    x = jnp.array([-1e30, -1e4, -30.0, -6.0, -0.0, 0.0, 6.0, 30.0, 1e4, 1e30])
    found = gelu_and_gradient(gelu, x, jnp.ones_like(x))
    wanted = gelu_and_gradient(gelu_of_jax, x, jnp.ones_like(x))
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(found["x"][np.array([0, 1, 8, 9])], [0, 0, 1, 1])


def test_gelu_in_bfloat16():
    x = states(0.0).astype(jnp.bfloat16)
    found = gelu_and_gradient(gelu, x, incoming((T, D)))
    assert found["value"].dtype == found["x"].dtype == jnp.bfloat16
    g = incoming((T, D)).astype(jnp.bfloat16).astype(jnp.float32)
    wanted = gelu_and_gradient(gelu, x.astype(jnp.float32), g)
    want, have = (np.asarray(f["x"].astype(jnp.float32)) for f in (wanted, found))
    np.testing.assert_allclose(have, want, rtol=2**-8, atol=1e-6 * np.abs(want).max())
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(jax.grad(lambda x: gelu(x).sum()), x.astype(jnp.float32))


@pytest.mark.parametrize(
    "function", [gelu, modules()[0], RMSNorm(D, EPS)], ids=["gelu", "LayerNorm", "RMS"]
)
def test_of_arrays_as_large_only_the_argument_waits_for_the_backward_pass(function):
    x_TD = states(0.0).astype(jnp.bfloat16)
    _, backward = jax.vjp(function, x_TD)
    kept = [leaf for leaf in jax.tree.leaves(backward) if np.size(leaf) >= T * D]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_dropout_keeps_the_mean():
    x = jnp.full((211, 199), 3.0)
    keys = jax.random.split(jax.random.key(5), 211)
    dropped = np.asarray(dropout(x, 0.25, keys))
    assert set(np.unique(dropped)) == {0.0, 4.0}
    assert abs((dropped == 0).mean() - 0.25) < 0.01
    assert len({tuple(row) for row in dropped}) == 211
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, keys) is x
    assert dropout(x.astype(jnp.bfloat16), 0.25, keys).dtype == "bfloat16"


def finalized(h: int) -> int:
    """The finalizer of MurmurHash3_x86_32, in whole numbers."""
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def test_dropout_draws_by_the_hash_of_key_and_place():
    assert finalized(1) == 0x514E28B7  # as its test suites have it
    keys = jax.random.split(jax.random.key(2), 3)
    kept = np.asarray(dropout(jnp.ones((3, 2, 5)), 0.4, keys)) != 0
    for row, (first, last) in enumerate(jax.random.key_data(keys).tolist()):
        bits = [finalized(last ^ finalized(first ^ place)) for place in range(10)]
        assert kept[row].ravel().tolist() == [one < 0.6 * 2**32 for one in bits]


def test_dropout_draws_are_independent():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(2048))
    kept = np.asarray(dropout(jnp.ones((2048, 512)), 0.5, keys)) != 0
    for axis in (0, 1):
        # The variance of a mean of independent draws, and their chance to be equal.
        of_mean = kept.mean(axis).var() * kept.shape[axis] / 0.25
        assert abs(of_mean - 1) < 0.2
        for step in (1, 2, 7, 64):
            equal = kept == np.roll(kept, step, axis)
            assert abs(equal.mean() - 0.5) < 0.003
