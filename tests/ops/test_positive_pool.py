"""The positive part of the pooled projection, against the plain projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.ops import positive_pool as module
from lsrjax.ops import vocab_pool

# As programs do: one operation after the other compiles each.
positive_pool = jax.jit(module.positive_pool, static_argnames=("impl", "block"))
vocab_pool_naive = jax.jit(vocab_pool.vocab_pool_naive)
B, L, D, V = 4, 6, 32, 300


def inputs(share, seed=0):
    """States, weights, a bias that lets about this share be positive, and a mask."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(B, L, D)).astype(np.float32)
    w = rng.normal(size=(V, D)).astype(np.float32)
    mask = (np.arange(L) < np.array([[6], [3], [1], [0]])).astype(np.int32)
    top, _ = vocab_pool_naive(h, w, np.zeros(V, np.float32), mask)
    b = np.full(V, -np.quantile(top[:3], 1 - share), np.float32)
    return h, w, b + rng.normal(0, 0.1, V).astype(np.float32), mask


def plain(h, w, b, mask):
    return np.asarray(jax.nn.relu(vocab_pool_naive(h, w, b, mask)[0]))


@pytest.mark.parametrize("block", [64, 128, 1000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.6])
def test_it_is_the_plain_one(share, block):
    factors = inputs(share)
    wanted = plain(*factors)
    found = positive_pool(*factors, impl="screened", block=block)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert (wanted[:3] > 0).mean() == pytest.approx(share, abs=0.05)
    assert not wanted[3].any()


def test_terms_that_bfloat16_would_lose_are_found():
    """Logits that are just above 0, of which rounding makes negative ones."""
    h, w, b, mask = inputs(0.1)
    top, _ = vocab_pool_naive(h[:1], w, 0 * b, mask[:1])
    b = 1e-4 - np.asarray(top[0])
    rounded = [
        np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float32) for x in (h, w)
    ]
    lost = plain(rounded[0][:1], rounded[1], b, mask[:1])[0] == 0
    found = np.asarray(positive_pool(h, w, b, mask, impl="screened"))
    assert 0.2 < lost.mean() < 0.8
    # To the rounding of logits that are far larger.
    np.testing.assert_allclose(found[0], 1e-4, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found, plain(h, w, b, mask), rtol=0, atol=2e-5)


def test_one_text_with_far_more_terms_than_the_others_loses_none():
    rng = np.random.default_rng(3)
    h = rng.normal(size=(16, L, D)).astype(np.float32)
    h[1:] *= 1e-3
    w = rng.normal(size=(V, D)).astype(np.float32)
    b, mask = np.full(V, -0.1, np.float32), np.ones((16, L), np.int32)
    wanted = plain(h, w, b, mask)
    assert (wanted[0] > 0).mean() > 0.9 and (wanted > 0).mean() < 0.1
    found = positive_pool(h, w, b, mask, impl="screened")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_tokens_that_count_may_lie_anywhere():
    h, w, b, mask = inputs(0.05)
    mask = np.random.default_rng(3).permuted(mask, axis=1)
    assert (mask[:, 0] == 0).any() and (mask[0] == 0).sum() == h.shape[1] - 6
    found = positive_pool(h, w, b, mask, impl="screened")
    np.testing.assert_allclose(found, plain(h, w, b, mask), rtol=0, atol=2e-5)
    assert np.any(found)


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_padding_may_hold_anything(share):
    h, w, b, mask = inputs(share)
    wanted = positive_pool(h, w, b, mask, impl="screened")
    h = np.where(mask[:, :, None] == 0, np.nan, h)
    np.testing.assert_array_equal(positive_pool(h, w, b, mask, impl="screened"), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("share", [0.01, 0.9])
def test_a_diverged_state_or_weight_is_not_hidden(bad, share):
    h, w, b, mask = inputs(share)
    h[1, 2, 3] = bad
    w[7, 5] = bad
    found = np.asarray(positive_pool(h, w, b, mask, impl="screened"))
    wrong = np.zeros((B, V), bool)
    wrong[1], wrong[:3, 7] = True, True
    np.testing.assert_array_equal(np.isnan(found), wrong)


def test_shards_of_the_vocabulary_give_their_part():
    h, w, b, mask = inputs(0.05)
    whole = positive_pool(h, w, b, mask, impl="screened")
    parts = [
        positive_pool(h, w[part], b[part], mask, impl="screened")
        for part in (slice(0, 150), slice(150, V))
    ]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("impl", ["screened", "plain"])
def test_parts_are_each_alone(impl):
    rng = np.random.default_rng(5)
    w, b = inputs(0.1)[1:3]
    parts = ((3, 7), (2, 13), (5, 1))
    h = [rng.normal(size=(*part, D)).astype(np.float32) for part in parts]
    masks = [rng.random(part) < 0.7 for part in parts]
    wanted = np.concatenate([plain(x, w, b, m) for x, m in zip(h, masks, strict=True)])
    end_to_end = np.concatenate([x.reshape(-1, D) for x in h])
    found = positive_pool(end_to_end, w, b, tuple(masks), impl=impl)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    assert np.any(found) and not np.all(found)


@pytest.mark.parametrize(
    ("dtype", "unit", "tokens", "wanted"),
    [
        (jnp.float32, True, 256, True),
        (jnp.float32, True, 252, False),
        (jnp.float32, False, 256, False),
        (jnp.bfloat16, True, 256, False),
    ],
)
def test_it_screens_many_float32_where_there_is_a_unit(
    monkeypatch, dtype, unit, tokens, wanted
):
    monkeypatch.setattr(module, "has_bfloat16_unit", lambda: unit)
    w, b = inputs(0.05)[1:3]
    h = jnp.ones((4, tokens // 4, w.shape[1]), dtype)
    mask = jnp.ones(h.shape[:2], jnp.int32)
    made = str(jax.make_jaxpr(lambda *of: module.positive_pool(*of))(h, w, b, mask))
    assert ("cond" in made) == wanted


def test_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="impl is 'fast'; expected 'auto'"):
        positive_pool(*inputs(0.1), impl="fast")
