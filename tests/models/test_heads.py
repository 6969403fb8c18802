"""Heads: every entry of the table keeps the contract, and LexEcho its options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsrjax import reps
from lsrjax.models import retriever
from lsrjax.models.encoder import EncoderConfig
from lsrjax.models.heads import HEADS, LexEcho
from lsrjax.models.retriever import RetrieverSpec

B, L, D, V, PIVOT = 3, 7, 12, 53, 41
SPECS = {
    "splade": [{"tied": True}, {"tied": False}],
    "milco": [{"lexecho": False}, {"lexecho": True}],
}
CASES = [(head, options) for head in HEADS for options in SPECS[head]]


def spec_of(head="milco", **options):
    encoder = EncoderConfig(
        family="bert",
        vocab_size=V,
        hidden_size=D,
        num_layers=1,
        num_heads=2,
        intermediate_size=17,
        max_positions=L,
        type_vocab_size=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    sizes = {"pivot_vocab_size": PIVOT, "pivot_hidden_size": 10}
    return RetrieverSpec(head=head, encoder=encoder, **sizes, **options)


def texts():
    rng = np.random.default_rng(0)
    mask = (np.arange(L) < np.array([[L], [4], [1]])).astype(np.int32)
    return rng.integers(1, V, (B, L)).astype(np.int32) * mask, mask


@functools.partial(jax.jit, static_argnums=0)
def weighted_sum(graphdef, head_params, hidden, words, weights):
    """A scalar of every view, its gradients, and the views."""

    def total(head_params, hidden, words):
        head = nnx.merge(graphdef, head_params)
        views = head(hidden, *texts(), words)
        parts = [
            (weights[name] * getattr(view, field)).sum()
            for name, view in views.items()
            for field in ("weights_BV", "weights_BK")
            if hasattr(view, field)
        ]
        return sum(parts), views

    gradients, views = jax.grad(total, (0, 1, 2), has_aux=True)(
        head_params, hidden, words
    )
    return gradients, views


@pytest.mark.parametrize(("head", "options"), CASES, ids=str)
def test_contract(head, options):
    """Shapes and types of the views; finite non-zero gradients of every parameter."""
    spec = spec_of(head, **options)
    module = HEADS[head](spec, dtype=jnp.float32, rngs=nnx.Rngs(1))
    graphdef, params = nnx.split(module, nnx.Param)
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(B, L, D)).astype(np.float32)
    words = rng.normal(size=(V, D)).astype(np.float32)
    sizes = {name: L if name == "source" else n for name, n in spec.views.items()}
    weights = {n: rng.normal(size=(B, k)).astype(np.float32) for n, k in sizes.items()}
    gradients, views = weighted_sum(graphdef, params, hidden, words, weights)

    assert list(views) == list(spec.views)
    for name, size in spec.views.items():
        view = views[name]
        if isinstance(view, reps.Vector):
            assert view.weights_BV.shape == view.raw_BV.shape == (B, size)
            assert view.weights_BV.dtype == jnp.float32
            assert (view.weights_BV >= 0).all()
            expected = np.log1p(np.maximum(view.raw_BV, 0))
            np.testing.assert_allclose(view.weights_BV, expected, rtol=1e-5)
        else:
            assert view.ids_BK.shape == view.weights_BK.shape == (B, L)
            assert view.size == size
            assert (view.ids_BK < size).all()
        assert (view.active_terms() > 0).any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[0]):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path
    _, mask = texts()
    assert not np.asarray(gradients[1])[mask == 0].any()
    assert np.asarray(gradients[2]).any() == options.get("tied", False)


@pytest.mark.parametrize(("head", "options"), CASES, ids=str)
def test_spec_comes_back(head, options):
    spec = spec_of(head, special_ids=(0, 2), **options)
    assert RetrieverSpec.from_dict(spec.to_dict()) == spec
    _, abstract = retriever.split(spec)
    params = retriever.init_params(spec, 0)
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(
        lambda a: a.shape, abstract
    )


# One dimension, kernel 1 and bias 0: a token's weight is relu of its hidden state.
HIDDEN = np.array([[2.0, 5, 3, 5, 1, -4, 9]], np.float32)[:, :, None]
IDS = np.array([[7, 8, 7, 8, 2, 3, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 1, 0]], np.int32)


def echo(scale=1.0, **options):
    encoder = EncoderConfig("bert", V, 1, 1, 1, 1, L, 1, 0)
    spec = RetrieverSpec("milco", encoder, lexecho=True, **options)
    module = LexEcho(spec, rngs=nnx.Rngs(0))
    module.kernel[...], module.bias[...] = jnp.ones(1), jnp.zeros(())
    module.scale[...] = jnp.float32(scale)
    return module(jnp.asarray(HIDDEN), jnp.asarray(IDS), jnp.asarray(MASK))


def test_echo_sums_repeats_and_leaves_padding_out():
    bag = echo(scale=0.5)
    np.testing.assert_array_equal(bag.ids_BK, IDS)
    expected = [[1, 2.5, 1.5, 2.5, 0.5, 0, 0]]
    np.testing.assert_allclose(bag.weights_BK, expected)
    assert bag.active_terms().tolist() == [3]


def test_echo_keeps_the_strongest_repeat():
    bag = echo(repeats="max")
    # Of the two 8s of equal weight, the first one stays.
    np.testing.assert_allclose(bag.weights_BK, [[0, 5, 3, 0, 1, 0, 0]])


def test_echo_leaves_special_tokens_out():
    bag = echo(exclude_special_tokens=True, special_ids=(2, 8))
    np.testing.assert_allclose(bag.weights_BK, [[2, 0, 3, 0, 0, 0, 0]])
    kept = echo(exclude_special_tokens=False, special_ids=(2, 8))
    np.testing.assert_allclose(kept.weights_BK, [[2, 5, 3, 5, 1, 0, 0]])
