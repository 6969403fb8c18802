"""The fused sum over tokens against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.ops.vocab_sum import vocab_sum

B, L, D, V = 3, 5, 7, 23


def plain(h_BLD, w_VD, b_V, mask_BL):
    logits_BLV = jnp.einsum("bld,vd->blv", h_BLD, w_VD) + b_V
    weights_BLV = jnp.log1p(jax.nn.relu(logits_BLV))
    return (weights_BLV * mask_BL[:, :, None]).sum(axis=1)


def inputs():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(B, L, D)).astype(np.float32)
    w = rng.normal(size=(V, D)).astype(np.float32)
    b = rng.normal(size=V).astype(np.float32)
    mask = (np.arange(L) < np.array([[L], [2], [0]])).astype(np.int32)
    return h, w, b, mask, rng.normal(size=(B, V)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 4, 23, None])
def test_sums_and_gradients_are_those_of_the_definition(block):
    *factors, mask, incoming = inputs()

    def total(pool):
        return lambda *factors: (pool(*factors, mask) * incoming).sum()

    fused = lambda *a: vocab_sum(*a, block=block)  # noqa: E731
    np.testing.assert_allclose(
        fused(*factors, mask), plain(*factors, mask), rtol=1e-5, atol=1e-6
    )
    found = jax.grad(total(fused), (0, 1, 2))(*factors)
    expected = jax.grad(total(plain), (0, 1, 2))(*factors)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [4, None])
def test_parts_are_each_alone(block):
    _, w, b, *_ = inputs()
    rng = np.random.default_rng(1)
    parts = ((3, 7), (2, 13), (5, 1))
    h = [rng.normal(size=(*part, D)).astype(np.float32) for part in parts]
    masks = tuple((rng.random(part) < 0.7).astype(np.int32) for part in parts)
    incoming = rng.normal(size=(10, V)).astype(np.float32)

    def alone(h, w, b):
        sums = [plain(x, w, b, mask) for x, mask in zip(h, masks, strict=True)]
        return (jnp.concatenate(sums) * incoming).sum()

    def together(h, w, b):
        end_to_end = jnp.concatenate([x.reshape(-1, D) for x in h])
        return (vocab_sum(end_to_end, w, b, masks, block=block) * incoming).sum()

    found, expected = (
        jax.value_and_grad(total, (0, 1, 2))(h, w, b) for total in (together, alone)
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


def test_what_stands_in_the_padding_does_not_matter():
    h, w, b, mask, incoming = inputs()
    spoiled = np.where(mask[:, :, None] == 0, np.nan, h)

    def total(h, w):
        return (vocab_sum(h, w, b, mask, block=4) * incoming).sum()

    both = jax.value_and_grad(total, (0, 1))
    jax.tree.map(np.testing.assert_array_equal, both(spoiled, w), both(h, w))


def test_logits_of_all_terms_are_never_held():
    h, w, b, mask, incoming = (np.tile(x, (1,) * x.ndim) for x in inputs())
    gradient = jax.jit(
        jax.grad(lambda h: (vocab_sum(h, w, b, mask, block=4) * incoming).sum())
    )
    text = gradient.lower(h).compile().as_text()
    assert f"f32[{B},{L},4]" in text or f"f32[{B * L},4]" in text
    assert f"f32[{B},{L},{V}]" not in text
