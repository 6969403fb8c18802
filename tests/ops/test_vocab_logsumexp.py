"""The fused logarithm of a softmax's denominator against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.ops.vocab_logsumexp import SILENT, vocab_logsumexp

T, D, V = 11, 7, 23


def inputs(scale=1.0):
    rng = np.random.default_rng(0)
    h = scale * rng.normal(size=(T, D)).astype(np.float32)
    w = rng.normal(size=(V, D)).astype(np.float32)
    b = rng.normal(size=V).astype(np.float32)
    return h, w, b, rng.normal(size=(T, 1)).astype(np.float32)


def squashed(logits):
    return 3 * jnp.tanh(logits / 3)


@pytest.mark.parametrize("squash", [lambda logits: logits, squashed])
@pytest.mark.parametrize("block", [4, 23])
def test_value_and_gradients_are_those_of_the_definition(block, squash):
    *factors, incoming = inputs()

    def total(of):
        return lambda *factors: (of(*factors) * incoming).sum()

    def fused(h, w, b):
        return vocab_logsumexp(h, w, b, np.ones(T), block=block, squash=squash)

    def plain(h, w, b):
        return jax.nn.logsumexp(squash(h @ w.T + b), axis=1, keepdims=True)

    np.testing.assert_allclose(fused(*factors), plain(*factors), rtol=1e-6)
    found, expected = (jax.grad(total(f), (0, 1, 2))(*factors) for f in (fused, plain))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_large_logits_are_no_infinity():
    h, w, b, _ = inputs(scale=1e4)
    found = vocab_logsumexp(h, w, b, np.ones(T), block=4)
    logits = h.astype(np.float64) @ w.T + b
    np.testing.assert_allclose(found[:, 0], logits.max(axis=1), rtol=1e-5)


def test_silent_terms_do_not_count():
    h, w, b, _ = inputs()
    b[3] = SILENT
    found = vocab_logsumexp(h, w, b, np.ones(T), block=4, squash=squashed)
    logits = np.delete(squashed(h @ w.T + b), 3, axis=1)
    np.testing.assert_allclose(found[:, 0], jax.nn.logsumexp(logits, axis=1), rtol=1e-6)


def test_a_shift_of_all_biases_shifts_the_result():
    h, w, b, _ = inputs()
    found = [vocab_logsumexp(h, w, b + by, np.ones(T), block=5) for by in (0, 2)]
    np.testing.assert_allclose(found[1] - found[0], 2, rtol=1e-5)


def test_what_stands_where_nothing_is_asked_does_not_matter():
    h, w, b, incoming = inputs()
    mask = np.arange(T) % 3 != 0
    incoming = np.where(mask[:, None], incoming, 0)
    spoiled = np.where(mask[:, None], h, np.nan)

    def total(h, w):
        return (vocab_logsumexp(h, w, b, mask, block=4) * incoming).sum()

    both = jax.value_and_grad(total, (0, 1))
    jax.tree.map(np.testing.assert_array_equal, both(spoiled, w), both(h, w))


def test_logits_of_all_terms_are_never_held():
    h, w, b, incoming = inputs()
    gradient = jax.jit(
        jax.grad(
            lambda h, w: (
                vocab_logsumexp(h, w, b, np.ones(T), block=4) * incoming
            ).sum(),
            (0, 1),
        )
    )
    text = gradient.lower(h, w).compile().as_text()
    assert f"f32[{T},4]" in text and f"[{T},{V}]" not in text
    assert f"[{T},24]" not in text and f"[6,{T},4]" not in text
