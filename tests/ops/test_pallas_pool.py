"""The Pallas kernels against the blocked forward pass, and their lowering.

On a GPU or a TPU its own kernel runs for real; everything else is interpreted.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.ops.pallas_pool import project_max
from lsrjax.ops.vocab_pool import _project_max

BACKENDS = ("gpu", "tpu")
DTYPES = (jnp.float32, jnp.bfloat16)
# [B, L, D, V]: one tile with all axes cut; several tiles along each axis, none of
# which divides; short texts, many to a tile; axes of 1.
SHAPES = (
    (5, 11, 13, 509),
    (9, 151, 71, 1031),
    (37, 17, 23, 131),
    (1, 1, 1, 1),
    (3, 7, 1, 2),
    (2, 1, 5, 1),
)


@partial(jax.jit, static_argnames="backend")
def pallas(h_BLD, w_VD, mask_BL, backend):
    """Of texts of one length."""
    h_TD, real_T = h_BLD.reshape(-1, h_BLD.shape[-1]), mask_BL.reshape(-1)
    interpret = jax.default_backend() != backend
    options = {"backend": backend, "interpret": interpret}
    return project_max(h_TD, w_VD, real_T, (mask_BL.shape,), **options)


@jax.jit
def blocked(h_BLD, w_VD, mask_BL):
    h_TD, real_T = h_BLD.reshape(-1, h_BLD.shape[-1]), mask_BL.reshape(-1)
    return _project_max(128, "blocked", (mask_BL.shape,), h_TD, w_VD, real_T)


@pytest.fixture(autouse=True)
def exact_float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def make_mask(b_, l_):
    """Holes anywhere; the first texts are full, only their last token, and empty."""
    mask_BL = np.random.default_rng(7).random((b_, l_)) < 0.6
    for text, row_L in enumerate((True, np.arange(l_) == l_ - 1, False)[:b_]):
        mask_BL[text] = row_L
    return jnp.asarray(mask_BL)


def make_inputs(shape, dtype=jnp.float32, seed=0):
    """Inputs of seven bits: float32 holds their products and sums in any order."""
    b_, l_, d_, v_ = shape
    rng = np.random.default_rng(seed)
    h_BLD, w_VD = (
        jnp.asarray(np.clip(np.round(16 * rng.standard_normal(size)), -127, 127) / 16)
        for size in ((b_, l_, d_), (v_, d_))
    )
    return h_BLD.astype(dtype), w_VD.astype(dtype), make_mask(b_, l_)


def make_whole_numbers(shape, dtype, seed=0):
    """Inputs whose products are exact in any order, with many ties."""
    b_, l_, d_, v_ = shape
    rng = np.random.default_rng(seed)
    h_BLD, w_VD = (
        jnp.asarray(rng.integers(-1, 2, size) * (rng.random(size) < 0.4), dtype)
        for size in ((b_, l_, d_), (v_, d_))
    )
    return h_BLD, w_VD, make_mask(b_, l_)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_blocked_version(backend, dtype, shape):
    inputs = make_inputs(shape, dtype)
    top_BV, first_BV = pallas(*inputs, backend)
    want_top_BV, want_first_BV = blocked(*inputs)
    assert top_BV.dtype == jnp.float32 and first_BV.dtype == jnp.int32
    np.testing.assert_array_equal(top_BV, want_top_BV)
    np.testing.assert_array_equal(first_BV, want_first_BV)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ties_go_to_the_first_token(backend, dtype, shape):
    h_BLD, w_VD, mask_BL = make_whole_numbers(shape, dtype)
    got = pallas(h_BLD, w_VD, mask_BL, backend)
    logits_BLV = np.einsum("bld,vd->blv", *(np.array(x, int) for x in (h_BLD, w_VD)))
    logits_BLV = np.where(np.array(mask_BL)[:, :, None], logits_BLV, -np.inf)
    top_BV = logits_BLV.max(axis=1)
    if shape[1] > 100:
        ties_BV = (logits_BLV == top_BV[:, None]).sum(axis=1)
        assert (np.delete(ties_BV, 2, axis=0) > 1).mean() > 0.2
    np.testing.assert_array_equal(got[0], top_BV)
    np.testing.assert_array_equal(got[1], logits_BLV.argmax(axis=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_tokens_in_several_tiles_give_the_first_real_one(backend):
    h_BLD, w_VD, _ = make_inputs((2, 401, 5, 37))
    h_BLD = jnp.broadcast_to(h_BLD[:, :1], h_BLD.shape)
    for first in (0, 3, 250, 400):
        mask_BL = jnp.broadcast_to(jnp.arange(401) >= first, (2, 401))
        assert (pallas(h_BLD, w_VD, mask_BL, backend)[1] == first).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_text_without_a_token_gives_minus_infinity(backend):
    h_BLD, w_VD, mask_BL = make_inputs((5, 151, 13, 131))
    top_BV, first_BV = pallas(h_BLD, w_VD, mask_BL, backend)
    assert not mask_BL[2].any()
    assert (top_BV[2] == -jnp.inf).all() and not first_BV[2].any()
    assert np.isfinite(np.delete(top_BV, 2, axis=0)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filler", [1e4, jnp.nan])
def test_padding_changes_nothing_even_if_it_is_nan(backend, filler):
    h_BLD, w_VD, mask_BL = make_whole_numbers((5, 11, 13, 131), jnp.float32)
    want = pallas(h_BLD, w_VD, mask_BL, backend)
    longer_BL = jnp.pad(mask_BL, ((0, 0), (0, 150)))
    h_BLD = jnp.pad(h_BLD, ((0, 0), (0, 150), (0, 0)))
    h_BLD = jnp.where(longer_BL[:, :, None], h_BLD, filler)
    got = pallas(h_BLD, w_VD, longer_BL, backend)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("length", [11, 151])
def test_nan_and_infinity_stay_where_they_are(backend, bad, length):
    h_BLD, w_VD, mask_BL = make_whole_numbers((5, length, 13, 131), jnp.float32)
    want = pallas(h_BLD, w_VD, mask_BL, backend)
    bad_BLD = h_BLD.at[0, 2, 1].set(bad).at[1, -1].set(bad)
    top_BV, first_BV = pallas(bad_BLD, w_VD.at[7, 3].set(bad), mask_BL, backend)
    assert ((first_BV >= 0) & (first_BV < length)).all()
    # Texts and terms without one see nothing of it.
    others = np.ix_(range(2, 5), np.delete(np.arange(131), 7))
    np.testing.assert_array_equal(np.array(top_BV)[others], np.array(want[0])[others])
    np.testing.assert_array_equal(np.array(first_BV)[others], np.array(want[1])[others])


# (texts, tokens), of other primes each, of one tile of tokens and of several.
PARTS = ((3, 7), (2, 151), (5, 1), (1, 13))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [13, 71])
def test_parts_are_each_alone(backend, dtype, dim):
    """What stands in one part's padding, even NaN, does not reach another either."""
    made = [
        make_whole_numbers((*part, dim, 131), dtype, seed)
        for seed, part in enumerate(PARTS)
    ]
    w_VD = made[0][1]
    masks = [mask_BL for *_, mask_BL in made]
    h = [jnp.where(m[:, :, None], h_BLD, jnp.nan) for h_BLD, _, m in made]
    got = jax.jit(
        partial(
            project_max,
            parts=PARTS,
            backend=backend,
            interpret=jax.default_backend() != backend,
        )
    )(
        jnp.concatenate([h_BLD.reshape(-1, dim) for h_BLD in h]),
        w_VD,
        jnp.concatenate([mask_BL.reshape(-1) for mask_BL in masks]),
    )
    alone = [pallas(x, w_VD, m, backend) for x, m in zip(h, masks, strict=True)]
    plain = [blocked(x, w_VD, m) for (x, *_), m in zip(made, masks, strict=True)]
    for want in (alone, plain):
        for x, *y in zip(got, *want, strict=True):
            np.testing.assert_array_equal(x, jnp.concatenate(y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_take_the_dtype_of_the_states(backend):
    h_BLD, w_VD, mask_BL = make_inputs((3, 11, 13, 131), jnp.bfloat16)
    w_VD = make_inputs((3, 11, 13, 131))[1]
    assert w_VD.dtype == jnp.float32
    # The mask need not be boolean either.
    got = pallas(h_BLD, w_VD, 2.5 * mask_BL, backend)
    want = pallas(h_BLD, w_VD.astype(jnp.bfloat16), mask_BL, backend)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 128, 768, 30522), *SHAPES])
def test_lowers_for_its_device_without_one(backend, dtype, shape):
    if backend == "gpu" and jax.__version_info__ >= (0, 11):
        pytest.skip("since jax 0.11 Triton lowers only where it sees a GPU")
    b_, l_, d_, v_ = shape
    arrays = (
        jax.ShapeDtypeStruct((b_ * l_, d_), dtype),
        jax.ShapeDtypeStruct((v_, d_), dtype),
        jax.ShapeDtypeStruct((b_ * l_,), jnp.bool_),
    )
    platform, call = {
        "gpu": ("cuda", "@__gpu$xla.gpu.triton("),
        "tpu": ("tpu", "@tpu_custom_call("),
    }[backend]
    kernel = partial(project_max, parts=((b_, l_),), backend=backend)
    traced = jax.jit(kernel).trace(*arrays)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count(f"stablehlo.custom_call {call}") == 1


def test_refuses_what_it_does_not_know():
    h_BLD, w_VD, mask_BL = make_inputs((3, 5, 7, 11))
    h_TD, real_T, parts = h_BLD.reshape(-1, 7), mask_BL.reshape(-1), ((3, 5),)
    with pytest.raises(ValueError, match="expected 'gpu', 'hopper' or 'tpu'"):
        project_max(h_TD, w_VD, real_T, parts, backend="cuda")
    with pytest.raises(ValueError, match="w_VD \\(7, 11\\)"):
        project_max(h_TD, w_VD.T, real_T, parts, backend="gpu")
    with pytest.raises(ValueError, match=r"h_TD \(15, 7\).* parts \(\(3, 4\),\)"):
        project_max(h_TD, w_VD, real_T, ((3, 4),), backend="gpu")
    with pytest.raises(ValueError, match="4096 hidden dimensions in float32"):
        ones = jnp.ones((1, 5000))
        project_max(ones, ones, jnp.ones(1), ((1, 1),), backend="tpu")
    with pytest.raises(ValueError, match="empty axis"):
        project_max(h_TD[:0], w_VD, real_T[:0], ((3, 0),), backend="tpu")
