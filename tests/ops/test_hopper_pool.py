"""The kernel for Hopper GPUs against numpy, and its lowering.

It is interpreted unless there is such a GPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.ops import hardware, hopper_pool
from lsrjax.ops.hopper_pool import HopperTiles
from lsrjax.ops.pallas_pool import project_max

plgpu = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
if not hasattr(plgpu, "InterpretGPUParams"):
    pytest.skip(
        "Mosaic GPU is not interpreted before jax 0.11", allow_module_level=True
    )

# Tiles of 64 tokens and few blocks at a time, so that small arrays have several tiles
# along each axis, waves of blocks, and texts that a block takes after one another.
PLAIN = HopperTiles(tokens=64, turns=3)
TILES = {
    "plain": PLAIN,
    "one at a time": HopperTiles(tokens=64, lag=0, ahead=0, stages=2, turns=1),
    "pairs": HopperTiles(tokens=64, cluster=2, hidden=32, stages=5, lag=3, turns=100),
    "chunks": HopperTiles(tokens=128, terms=256, chunks=4, turns=2, group_bytes=1),
}
# (texts, tokens), of one tile of tokens and of several, few of whole rows of 8.
PARTS = ((1, 7), (5, 131), (1, 16))


@pytest.fixture(autouse=True)
def few_multiprocessors(monkeypatch):
    monkeypatch.setattr(hopper_pool, "_multiprocessors", lambda: 4)


def run(h_TD, w_VD, real_T, parts, **options):
    """`hopper` as `project_max` calls it."""
    options.setdefault("tiles", PLAIN)
    device = jax.devices()[0]
    hopper = hardware.is_cuda(device, 9.0) and not hardware.is_cuda(device, 10.0)
    kernel = partial(hopper_pool.hopper, parts=parts, interpret=not hopper, **options)
    arrays = jnp.asarray(h_TD, jnp.bfloat16), jnp.asarray(w_VD, jnp.bfloat16)
    return jax.jit(kernel)(*arrays, jnp.asarray(real_T, jnp.int32))


def expect(h_TD, w_VD, real_T, parts):
    """Maxima and the first token of each, of all texts."""
    logits_TV = np.where(real_T[:, None], h_TD, 0) @ w_VD.T
    logits_TV = np.where(real_T[:, None], logits_TV, -np.inf)
    top, first, start = [], [], 0
    for texts, length in parts:
        stop = start + texts * length
        logits_BLV = logits_TV[start:stop].reshape(texts, length, -1)
        top.append(logits_BLV.max(axis=1))
        first.append(logits_BLV.argmax(axis=1))
        start = stop
    return np.concatenate(top), np.concatenate(first)


def make(parts, dim, terms, seed=0):
    """Small whole numbers, exact and with many ties; NaN wherever there is padding.

    Of each part, the first text is full, the second has no token, the third ends
    anywhere, and others lack tokens between real ones too.
    """
    rng = np.random.default_rng(seed)
    masks = []
    for texts, length in parts:
        ends_B = rng.integers(1, length + 1, texts)
        ends_B[:1], ends_B[1:2] = length, 0
        mask_BL = np.arange(length)[None] < ends_B[:, None]
        mask_BL[3:] &= rng.random(mask_BL[3:].shape) < 0.7
        masks.append(mask_BL)
    real_T = np.concatenate([mask_BL.reshape(-1) for mask_BL in masks])
    h_TD = rng.integers(-2, 3, (len(real_T), dim)).astype(np.float32)
    w_VD = rng.integers(-2, 3, (terms, dim)).astype(np.float32)
    return np.where(real_T[:, None], h_TD, np.nan), w_VD, real_T


def assert_same(got, want):
    assert got[0].dtype == jnp.float32 and got[1].dtype == jnp.int32
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("tiles", TILES)
def test_maxima_and_first_tokens_of_parts(tiles):
    arrays = make(PARTS, 71, 260)
    got = run(*arrays, PARTS, tiles=TILES[tiles])
    assert_same(got, expect(*arrays, PARTS))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (4, 7, 5, 129)])
def test_short_axes(shape):
    b_, l_, d_, v_ = shape
    arrays = make(((b_, l_),), d_, v_)
    assert_same(run(*arrays, ((b_, l_),)), expect(*arrays, ((b_, l_),)))


def test_equal_tokens_give_the_first_real_one():
    # The last tile overlaps the one before it: 200 rows are not whole tiles.
    for first in (63, 199):
        real_T = np.arange(200) >= first
        top_BV, first_BV = run(np.ones((200, 3)), np.ones((5, 3)), real_T, ((1, 200),))
        assert (top_BV == 3).all() and (first_BV == first).all()


def test_a_text_without_a_token_gives_minus_infinity():
    h_TD, w_VD, _ = make(((2, 70),), 3, 5)
    real_T = np.zeros(140, bool)
    top_BV, first_BV = run(h_TD, w_VD, real_T, ((2, 70),))
    assert (top_BV == -jnp.inf).all() and not first_BV.any()


def test_nan_and_infinity_stay_where_they_are():
    parts = ((4, 70),)
    h_TD, w_VD, _ = make(parts, 3, 7)
    real_T = np.ones(280, bool)
    h_TD = np.nan_to_num(h_TD)
    want = expect(h_TD, w_VD, real_T, parts)
    for text, bad in enumerate((np.nan, np.inf, -np.inf)):
        h_TD[70 * text + 5, 1] = w_VD[4 + text, 2] = bad
    top_BV, first_BV = run(h_TD, w_VD, real_T, parts)
    assert ((first_BV >= 0) & (first_BV < 70)).all()
    assert_same((top_BV[3:, :4], first_BV[3:, :4]), [x[3:, :4] for x in want])


def test_project_max_calls_it_for_bfloat16_only():
    parts, (h_TD, w_VD, real_T) = ((2, 9),), make(((2, 9),), 3, 5)
    call = partial(project_max, parts=parts, backend="hopper", interpret=True)
    got = call(jnp.asarray(h_TD, jnp.bfloat16), jnp.asarray(w_VD), jnp.asarray(real_T))
    assert_same(got, expect(h_TD, w_VD, real_T, parts))
    with pytest.raises(ValueError, match="h_TD is float32; backend='hopper'"):
        call(jnp.asarray(h_TD), jnp.asarray(w_VD), jnp.asarray(real_T))


@pytest.mark.parametrize("parts", [((8, 128),), ((3, 7), (2, 151))])
def test_lowers_without_a_gpu(parts):
    tokens = sum(texts * length for texts, length in parts)
    arrays = (
        jax.ShapeDtypeStruct((tokens, 768), jnp.bfloat16),
        jax.ShapeDtypeStruct((30522, 768), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.bool_),
    )
    kernel = partial(project_max, parts=parts, backend="hopper")
    traced = jax.jit(kernel).trace(*arrays)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @mosaic_gpu_v2(") == 1
