"""vocab_pool against its definition, against PyTorch, and its own promises."""

import math
import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.ops import hardware, pallas_pool
from lsrjax.ops.vocab_pool import vocab_pool, vocab_pool_naive

B, L, D, V = 5, 11, 13, 509
MODES = ("exclude", "multiply")


def coarse(values):
    """Seven bits: float32 holds sums of products in any order, on any processor."""
    return np.clip(np.round(16 * values), -127, 127) / 16


def make_inputs(seed=0, shape=(B, L, D, V), dtype=jnp.float32):
    """h, w, b and a mask with a full row, ragged rows and a row without a token."""
    b_, l_, d_, v_ = shape
    rng = np.random.default_rng(seed)
    h_BLD = jnp.asarray(coarse(rng.standard_normal((b_, l_, d_))), dtype)
    w_VD = jnp.asarray(coarse(rng.standard_normal((v_, d_))), jnp.float32)
    # Around the usual max, so that the 0 of padding wins about half of the time.
    b_V = coarse(rng.standard_normal(v_) - math.sqrt(d_) * 1.5)
    b_V = jnp.asarray(b_V, jnp.float32)
    lengths_B = np.linspace(0, l_, b_).round().astype(int)
    return h_BLD, w_VD, b_V, jnp.asarray(np.arange(l_) < lengths_B[:, None])


def make_cotangent(share, shape=(B, V), seed=1):
    rng = np.random.default_rng(seed)
    keep_BV = rng.random(shape) < share
    g_BV = np.where(keep_BV, coarse(rng.standard_normal(shape)), 0)
    return jnp.asarray(g_BV, jnp.float32)


def value_and_grads(pool, h_BLD, w_VD, b_V, mask_BL, g_BV):
    """((max, argmax), (dh, dw, db)) with the incoming gradient g_BV."""

    def loss(h_BLD, w_VD, b_V):
        max_BV, argmax_BV = pool(h_BLD, w_VD, b_V, mask_BL)
        return (max_BV * g_BV).sum(), (max_BV, argmax_BV)

    dx, values = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(h_BLD, w_VD, b_V)
    return values, dx


@partial(jax.jit, static_argnames=("pool_mask", "impl", "block"))
def run(*inputs, pool_mask="exclude", impl="auto", block=None):
    """`value_and_grads` of vocab_pool, compiled once for all cotangents."""
    pool = partial(vocab_pool, pool_mask=pool_mask, impl=impl, block=block)
    return value_and_grads(pool, *inputs)


def assert_same(got, want, rtol=1e-5, atol=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        as64 = partial(np.asarray, dtype=np.float64)
        np.testing.assert_allclose(as64(x), as64(y), rtol=rtol, atol=atol)


@pytest.mark.parametrize("pool_mask", MODES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("block", [None, 1, 60])
def test_values_and_gradients_are_the_naive_ones(pool_mask, share, block):
    inputs = make_inputs()
    g_BV = make_cotangent(share)
    want = run(*inputs, g_BV, pool_mask=pool_mask, impl="naive")
    got = run(*inputs, g_BV, pool_mask=pool_mask, block=block)
    assert_same(got, want)


@pytest.mark.parametrize("crowded", ["text", "terms"])
def test_sparse_gradients_with_one_crowded_row_drop_nothing(crowded):
    # Below the dense threshold over all, but one text, or one run of terms, is full,
    # which takes many rounds of compaction.
    shape = (7, 5, 3, 1031)
    inputs = make_inputs(2, shape)
    g_BV = make_cotangent(1.0, (7, 1031))
    keep_BV = np.zeros((7, 1031), bool)
    if crowded == "text":
        keep_BV[4] = True
    else:
        keep_BV[:, 600:760] = True
    g_BV = jnp.where(keep_BV, g_BV, 0)
    assert 0.1 < float((g_BV != 0).mean()) < 0.2
    want = run(*inputs, g_BV, impl="naive")
    for block in (None, 37):
        got = run(*inputs, g_BV, block=block)
        assert_same(got, want)


def test_one_entry_reaches_only_its_token_and_its_term():
    h_BLD, w_VD, b_V, mask_BL = make_inputs()
    g_BV = jnp.zeros((B, V)).at[3, 401].set(-2.5)
    (_, argmax_BV), (dh_BLD, dw_VD, db_V) = run(h_BLD, w_VD, b_V, mask_BL, g_BV)
    token = int(argmax_BV[3, 401])
    want_dh = jnp.zeros_like(h_BLD).at[3, token].set(-2.5 * w_VD[401])
    want_dw = jnp.zeros_like(w_VD).at[401].set(-2.5 * h_BLD[3, token])
    want_db = jnp.zeros_like(b_V).at[401].set(-2.5)
    assert_same((dh_BLD, dw_VD, db_V), (want_dh, want_dw, want_db), 1e-6, 0)


@pytest.mark.parametrize("impl", ["blocked", "naive"])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_ties_go_to_the_first_real_token(impl, share):
    h_BLD, w_VD, b_V, _ = make_inputs()
    h_BLD = jnp.broadcast_to(h_BLD[:, :1], h_BLD.shape)
    mask_BL = jnp.ones((B, L), bool).at[:, :2].set(False)
    g_BV = make_cotangent(share)
    (_, argmax_BV), (dh_BLD, _, _) = run(h_BLD, w_VD, b_V, mask_BL, g_BV, impl=impl)
    assert (argmax_BV == 2).all()
    assert_same(dh_BLD[:, 2], g_BV @ w_VD, 1e-4, 1e-4)
    assert not np.delete(np.asarray(dh_BLD), 2, axis=1).any()


@pytest.mark.parametrize("impl", ["blocked", "naive"])
def test_multiply_ties_with_padding_go_to_the_real_token(impl):
    h_BLD, w_VD, _, mask_BL = make_inputs()
    pool = partial(vocab_pool, pool_mask="multiply", impl=impl)
    max_BV, argmax_BV = pool(jnp.zeros_like(h_BLD), w_VD, jnp.zeros(V), mask_BL)
    assert not max_BV.any()
    has_token_B1 = mask_BL.any(axis=1)[:, None]
    assert (argmax_BV == jnp.where(has_token_B1, 0, -1)).all()


@pytest.mark.parametrize("impl", ["blocked", "naive"])
@pytest.mark.parametrize("pool_mask", MODES)
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_text_without_a_token_gives_zero_and_no_gradient(impl, pool_mask, share):
    h_BLD, w_VD, b_V, mask_BL = make_inputs()
    pool = partial(run, pool_mask=pool_mask, impl=impl)
    g_BV = make_cotangent(share)
    (max_BV, argmax_BV), (dh_BLD, dw_VD, db_V) = pool(
        h_BLD, w_VD, b_V + 9, mask_BL, g_BV
    )
    assert not mask_BL[0].any() and mask_BL[1].any()
    assert not max_BV[0].any() and (argmax_BV[0] == -1).all()
    assert not dh_BLD[0].any() and dh_BLD[1].any()
    _, without = pool(h_BLD[1:], w_VD, b_V + 9, mask_BL[1:], g_BV[1:])
    assert_same((dw_VD, db_V), without[1:])


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_padding_changes_nothing_even_if_it_is_nan(share):
    h_BLD, w_VD, b_V, mask_BL = make_inputs()
    g_BV = make_cotangent(share)
    values, grads = run(h_BLD, w_VD, b_V, mask_BL, g_BV)
    longer_BLD = jnp.pad(h_BLD, ((0, 0), (0, 6), (0, 0)), constant_values=1e4)
    longer_BL = jnp.pad(mask_BL, ((0, 0), (0, 6)))
    for filler in (1e4, jnp.nan):
        h2_BLD = jnp.where(longer_BL[:, :, None], longer_BLD, filler)
        values2, (dh2_BLD, *rest2) = run(h2_BLD, w_VD, b_V, longer_BL, g_BV)
        assert_same(values2, values, 1e-6, 1e-6)
        assert_same((dh2_BLD[:, :L], *rest2), grads)
        assert not dh2_BLD[:, L:].any()


@pytest.mark.parametrize("share", [0.02, 1.0])
@pytest.mark.parametrize("pool_mask", MODES)
def test_bfloat16_states_with_float32_weights(share, pool_mask):
    inputs = make_inputs(dtype=jnp.bfloat16)
    g_BV = make_cotangent(share)
    values, grads = run(*inputs, g_BV, pool_mask=pool_mask)
    assert values[0].dtype == jnp.float32 and values[1].dtype == jnp.int32
    assert [x.dtype for x in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    # In float32, from the same rounded inputs: what is left is the rounding of the
    # gradients to bfloat16, 2^-8 of each term.
    h_BLD, w_VD, b_V, mask_BL = inputs
    exact = h_BLD.astype(jnp.float32), w_VD.astype(jnp.bfloat16).astype(jnp.float32)
    want_values, want_grads = run(
        *exact, b_V, mask_BL, g_BV, pool_mask=pool_mask, impl="naive"
    )
    assert_same(values, want_values)
    want_dtypes = [x.astype(y.dtype) for x, y in zip(want_grads, grads, strict=True)]
    for got, want in zip(grads, want_dtypes, strict=True):
        scale = float(jnp.abs(want.astype(jnp.float32)).max())
        assert_same(got, want, rtol=0, atol=2**-7 * scale)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_two_runs_are_bit_identical(share):
    inputs = make_inputs(3, (17, 19, 23, 1031))
    g_BV = make_cotangent(share, (17, 1031))
    first = run(*inputs, g_BV)
    second = run(*inputs, g_BV)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_shards_of_the_vocabulary_give_their_part():
    h_BLD, w_VD, b_V, mask_BL = make_inputs()
    g_BV = make_cotangent(0.1)
    whole = run(h_BLD, w_VD, b_V, mask_BL, g_BV)
    parts = [
        run(h_BLD, w_VD[s], b_V[s], mask_BL, g_BV[:, s])
        for s in (slice(0, 211), slice(211, V))
    ]
    (values1, grads1), (values2, grads2) = parts
    values = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), values1, values2)
    dw_db = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), grads1[1:], grads2[1:])
    assert_same((values, (grads1[0] + grads2[0], *dw_db)), whole)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_in_lax_map_over_checkpoint(share):
    h_BLD, w_VD, b_V, mask_BL = make_inputs(4, (6, L, D, V))
    g_BV = make_cotangent(share, (6, V))

    def chunked(h_BLD, w_VD, b_V, mask_BL):
        encode = jax.checkpoint(lambda x: vocab_pool(x[0], w_VD, b_V, x[1]))
        chunks = (h_BLD.reshape(3, 2, L, D), mask_BL.reshape(3, 2, L))
        return jax.tree.map(lambda x: x.reshape(6, V), jax.lax.map(encode, chunks))

    want = run(h_BLD, w_VD, b_V, mask_BL, g_BV)
    got = jax.jit(partial(value_and_grads, chunked))(h_BLD, w_VD, b_V, mask_BL, g_BV)
    assert_same(got, want)


# (texts, tokens), each of another prime number; one text alone, and one token alone.
PARTS = ((3, 7), (2, 13), (1, 11), (5, 1), (7, 5))


def make_parts(parts=PARTS, dim=D, terms=V):
    """h of each part, w, b and the masks."""
    made = [make_inputs(i, (*part, dim, terms)) for i, part in enumerate(parts)]
    h, _, _, masks = zip(*made, strict=True)
    # A part of one text has one, or its only row would have no token.
    masks = [m.at[-1].set(True) for m in masks]
    return h, *made[0][1:3], masks


def assert_parts_are_each_alone(together, alone, share, parts=PARTS):
    """Of `together(h_TD, w, b, masks, g)` and `alone(h_BLD, w, b, mask, g)`."""
    h, w_VD, b_V, masks = make_parts(parts)
    texts = [count for count, _ in parts]
    g_BV = make_cotangent(share, (sum(texts), V))
    h_TD = jnp.concatenate([h_BLD.reshape(-1, D) for h_BLD in h])
    values, (dh_TD, dw_VD, db_V) = together(h_TD, w_VD, b_V, tuple(masks), g_BV)
    g = jnp.split(g_BV, np.cumsum(texts)[:-1])
    found = [
        alone(h_BLD, w_VD, b_V, mask_BL, g_BV)
        for h_BLD, mask_BL, g_BV in zip(h, masks, g, strict=True)
    ]
    want_values = jax.tree.map(lambda *x: jnp.concatenate(x), *[v for v, _ in found])
    assert_same(values[0], want_values[0], 1e-6, 2e-6)
    np.testing.assert_array_equal(values[1], want_values[1])
    assert (values[1] >= -1).all() and (values[1] < max(n for _, n in parts)).all()
    want_dh_TD = jnp.concatenate([dx[0].reshape(-1, D) for _, dx in found])
    assert_same(dh_TD, want_dh_TD)
    assert_same(dw_VD, sum(dx[1] for _, dx in found))
    assert_same(db_V, sum(dx[2] for _, dx in found))
    assert jnp.any(dh_TD) and jnp.any(dw_VD) and jnp.any(db_V)


@pytest.mark.parametrize("pool_mask", MODES)
@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize(
    ("impl", "block"), [("blocked", None), ("blocked", 60), ("naive", None)]
)
def test_parts_are_each_alone(pool_mask, share, impl, block):
    pool = partial(run, pool_mask=pool_mask, impl=impl, block=block)
    alone = partial(run, pool_mask=pool_mask, impl="naive")
    assert_parts_are_each_alone(pool, alone, share)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_parts_are_each_alone_in_the_kernel(monkeypatch, backend, share):
    """Interpreted, with the gradient of the blocked version."""
    kernel, taken = pallas_pool.project_max, []

    def interpreted(*given, backend):
        taken.append(backend)
        return kernel(*given, backend=backend, interpret=True)

    monkeypatch.setattr(pallas_pool, "project_max", interpreted)

    def pool(*inputs):
        here = types.SimpleNamespace(platform=backend)
        with monkeypatch.context() as patched:
            patched.setattr(hardware, "device", lambda: here)
            pool = partial(vocab_pool, impl="pallas")
            return jax.jit(partial(value_and_grads, pool))(*inputs)

    with jax.default_matmul_precision("highest"):
        parts = PARTS if backend == "gpu" else PARTS[:3]
        assert_parts_are_each_alone(pool, partial(run, impl="naive"), share, parts)
    assert taken and set(taken) == {backend}


def test_a_part_of_its_own_is_the_array_of_its_texts():
    h_BLD, w_VD, b_V, mask_BL = make_inputs()
    want = vocab_pool(h_BLD, w_VD, b_V, mask_BL)
    for h in (h_BLD, h_BLD.reshape(-1, D)):
        got = vocab_pool(h, w_VD, b_V, (mask_BL,))
        jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_no_part_changes_another(share):
    """Not even one whose states are NaN, or whose texts have no token."""
    h, w_VD, b_V, masks = make_parts()
    g_BV = make_cotangent(share, (sum(texts for texts, _ in PARTS), V))
    first, last = 3, 5  # the texts of the second part
    others = np.delete(np.arange(len(g_BV)), range(first, last))

    def pooled(part, mask):
        changed = [h[0], part, *h[2:]]
        h_TD = jnp.concatenate([h_BLD.reshape(-1, D) for h_BLD in changed])
        found = run(h_TD, w_VD, b_V, (masks[0], mask, *masks[2:]), g_BV)
        (max_BV, argmax_BV), (dh_TD, *_) = found
        outside = np.delete(np.asarray(dh_TD), range(3 * 7, 3 * 7 + 2 * 13), axis=0)
        return max_BV[others], argmax_BV[others], outside

    want = pooled(h[1], masks[1])
    assert_same(pooled(jnp.full_like(h[1], jnp.nan), masks[1]), want, 1e-6, 1e-6)
    assert_same(pooled(h[1], jnp.zeros_like(masks[1])), want, 1e-6, 1e-6)


def test_no_buffer_has_the_size_of_the_logits_of_all_parts():
    parts, terms = ((7, 31), (3, 61), (11, 2)), 4099
    tokens = sum(texts * length for texts, length in parts)
    h, w_VD, b_V, masks = make_parts(parts, 11, terms)
    h_TD = jnp.concatenate([h_BLD.reshape(-1, 11) for h_BLD in h])
    pool = partial(vocab_pool, block=128)
    logits = tokens * terms
    assert largest_of(pool, h_TD, w_VD, b_V, tuple(masks)) < logits / 5
    assert largest_of(vocab_pool_naive, h_TD, w_VD, b_V, tuple(masks)) > logits / 3


def largest_buffer(pool, shape):
    """Of inputs of this shape."""
    return largest_of(pool, *make_inputs(0, shape))


def largest_of(pool, h, w_VD, b_V, mask):
    """Elements of the largest array in the optimised HLO of value and gradients."""

    def loss(h, w_VD, b_V):
        return jnp.log1p(jax.nn.relu(pool(h, w_VD, b_V, mask)[0])).sum()

    grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    text = grads.lower(h, w_VD, b_V).compile().as_text()
    sizes = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", text)
    return max(math.prod(map(int, size.split(","))) for size in sizes)


@pytest.mark.parametrize("pool_mask", MODES)
def test_no_buffer_has_the_size_of_the_logits(pool_mask):
    shape = (7, 61, 11, 4099)
    logits = 7 * 61 * 4099
    assert largest_buffer(partial(vocab_pool_naive, pool_mask=pool_mask), shape) >= (
        logits
    )
    pool = partial(vocab_pool, pool_mask=pool_mask, block=128)
    assert largest_buffer(pool, shape) < logits / 10


def test_multiply_gradients_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    inputs = make_inputs()
    g_BV = make_cotangent(0.3)
    h, w, b, mask, g = (
        torch.from_numpy(np.array(x, np.float32)) for x in (*inputs, g_BV)
    )
    for x in (h, w, b):
        x.requires_grad_()
    logits_BLV = torch.einsum("bld,vd->blv", h, w) + b
    max_BV = (logits_BLV * mask[:, :, None]).max(dim=1).values
    dx = torch.autograd.grad((max_BV * g).sum(), (h, w, b))
    assert 0.1 < float((max_BV == 0).float().mean()) < 0.9
    values, grads = run(*inputs, g_BV, pool_mask="multiply")
    want = [x.detach().numpy() for x in (max_BV, *dx)]
    assert_same((values[0], *grads), want, 1e-4, 1e-4)


@pytest.mark.parametrize("pool_mask", MODES)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_diverged_state_or_weight_is_not_hidden(pool_mask, bad):
    h_BLD, w_VD, b_V, mask_BL = make_inputs()
    h_BLD, w_VD = h_BLD.at[4, 2, 1].set(bad), w_VD.at[7, 3].set(bad)
    inputs = h_BLD, w_VD, b_V, mask_BL, make_cotangent(1.0)
    (max_BV, _), _ = run(*inputs, pool_mask=pool_mask)
    want_BV = np.zeros((B, V), bool)
    want_BV[4], want_BV[1:, 7] = True, True
    np.testing.assert_array_equal(np.isnan(max_BV), want_BV)


def test_refuses_what_it_does_not_know():
    h_BLD, w_VD, b_V, mask_BL = make_inputs()
    with pytest.raises(ValueError, match="expected 'exclude' or 'multiply'"):
        vocab_pool(h_BLD, w_VD, b_V, mask_BL, pool_mask="mean")
    with pytest.raises(ValueError, match="'auto', 'blocked', 'naive' or 'pallas'"):
        vocab_pool(h_BLD, w_VD, b_V, mask_BL, impl="fast")
    with pytest.raises(ValueError, match="block is 0"):
        vocab_pool(h_BLD, w_VD, b_V, mask_BL, block=0)
    with pytest.raises(ValueError, match="has no effect"):
        vocab_pool(h_BLD, w_VD, b_V, mask_BL, impl="naive", block=8)
    with pytest.raises(ValueError, match="w_VD \\(13, 509\\)"):
        vocab_pool(h_BLD, w_VD.T, b_V, mask_BL)
    h_TD = h_BLD.reshape(-1, D)
    match = r"h \(55, 13\).* mask \(5, 11\), \(5, 11\); .* masks of T tokens in all"
    with pytest.raises(ValueError, match=match):
        vocab_pool(h_TD, w_VD, b_V, (mask_BL, mask_BL))
    with pytest.raises(ValueError, match=r"mask \(55,\)"):
        vocab_pool(h_TD, w_VD, b_V, (mask_BL.reshape(-1),))
    with pytest.raises(ValueError, match=r"h \(5, 11, 13\)"):
        vocab_pool(h_BLD, w_VD, b_V, (mask_BL[:2], mask_BL[2:]))
    with pytest.raises(ValueError, match="empty axis"):
        vocab_pool(h_TD[:0], w_VD, b_V, (mask_BL[:0],))
