"""Blocks give what the mask gives, with all gradients, and make no more products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import tiny

from lsrjax.models.backbones import local_attention
from lsrjax.models.backbones.attention import attend, sees_some
from lsrjax.models.backbones.table import backbone

B, H, K, C, E = 2, 4, 2, 6, 5


def drawn(length, seed=0, value=C):
    rng = np.random.default_rng(seed)
    shapes = ((H, C), (K, C), (K, value), (H, value))
    return [rng.normal(size=(B, length, *one)).astype(np.float32) for one in shapes]


def masked(q, k, v, seen, window, scale):
    """By the definition, in float64."""
    L = q.shape[1]
    k, v = (np.repeat(x.astype(float), H // K, axis=2) for x in (k, v))
    ahead = np.arange(L)[None] - np.arange(L)[:, None]
    near = (-window[0] <= ahead) & (ahead <= window[1])
    logits = np.einsum("blhc,bmhc->bhlm", q.astype(float), k) * scale
    logits = np.where(seen[:, None, None] & near, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-1e30))
    sums = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, sums, where=sums > 0, out=np.zeros_like(weights))
    return np.einsum("bhlm,bmhe->blhe", weights, v)


# Blocks that do and do not divide the text; a side that is several blocks, or none.
WINDOWS = [(64, 64, 137), (3, 3, 192), (127, 0, 389), (0, 70, 65), (200, 5, 311)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_blocks_equal_the_definition(window):
    *window, length = window
    q, k, v, _ = drawn(length, value=E)
    seen = np.arange(length)[None] < np.array([length, length // 2])[:, None]
    found = local_attention.local_attention(q, k, v, seen, tuple(window), 0.3)
    some = np.array(sees_some(seen, length, tuple(window)))[..., None, None]
    wanted = masked(q, k, v, seen, window, 0.3)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.where(some, found, 0), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("window", [(9, 9), (13, 0)], ids=str)
def test_gradients_equal_those_of_the_mask(window, monkeypatch):
    """Of padding on the left, and of tokens with nothing in their window."""
    length = 401
    q, k, v, incoming = drawn(length)
    seen = np.arange(length)[None] >= np.array([0, length - 60])[:, None]
    some = sees_some(seen, length, window)[..., None, None]

    def gradients():
        def total(q, k, v):
            mixed = jnp.where(some, attend(q, k, v, jnp.asarray(seen), window), 0)
            return (mixed * incoming).sum(), mixed

        compute = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
        return compute(q, k, v)

    blocks = gradients()
    monkeypatch.setattr(local_attention, "pays", lambda length, window: False)
    for found, wanted in zip(
        jax.tree.leaves(blocks), jax.tree.leaves(gradients()), strict=True
    ):
        tolerance = 1e-6 * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", ["modernbert", "norbert4"])
def test_an_encoder_gives_the_same_states(family, monkeypatch):
    config = tiny.encoder(family, max_positions=400)
    encoder = backbone(family).encoder(config, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(encoder)
    rng = np.random.default_rng(1)
    ids = rng.integers(1, config.vocab_size, (2, 400))
    mask = np.arange(400)[None] < np.array([400, 31])[:, None]
    taken = []
    original = local_attention.local_attention

    def counted(*arguments):
        taken.append(arguments[0].shape)
        return original(*arguments)

    def states():
        return np.asarray(
            jax.jit(lambda params: nnx.merge(graphdef, params)(ids, mask))(params)
        )

    monkeypatch.setattr(local_attention, "local_attention", counted)
    found = states()
    monkeypatch.setattr(local_attention, "pays", lambda length, window: False)
    np.testing.assert_allclose(found[mask], states()[mask], atol=2e-6, rtol=0)
    assert taken


def test_products_of_all_pairs_of_tokens_never_exist():
    length, window = 1024, (64, 64)
    x = jax.ShapeDtypeStruct((B, length, H, C), jnp.float32)
    seen = jax.ShapeDtypeStruct((B, length), jnp.bool_)

    def total(q, k, v, seen):
        return attend(q, k, v, seen, window).sum()

    lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x, seen)
    assert f"{length}x{length}" not in lowered.as_text()
    assert not local_attention.pays(length // 4, window)
