"""Pallas kernels for the forward pass of `vocab_pool`: projection and max in one.

The blocked version in `vocab_pool.py` leaves fusing to XLA, which on accelerators
writes the [B, L, block] tile of logits to memory and reads it back for the maximum.
Here the tile stays in registers (GPU) or in VMEM (TPU), and only the maximum and its
token leave the chip.

`project_max` computes the same as `_project_max` of `vocab_pool.py`, and `vocab_pool`
uses it with impl='pallas'. The gradient needs only h, w and the first token of the
maximum, so the one in `vocab_pool.py` follows either forward pass.

The GPU kernel takes 0.35 to 0.56 of the blocked version's time on an H100
(docs/performance.md), for which its tile sizes were chosen. The TPU kernel compiles for
TPU v4 to v7 (libtpu 0.0.42) and has been neither run nor timed on hardware.
`hopper_pool.py` has another GPU kernel, for Hopper and bfloat16 only.

XLA cannot split a kernel over devices. With arrays sharded over a mesh, call it inside
`shard_map` (with check_vma=False), each device with its texts and its part of the
vocabulary.

Axes: B texts, L tokens of a text, D hidden, V vocabulary; S texts, T tokens, P terms
and K hidden dimensions of one tile. In `h_TD` and `real_T`, T is all tokens.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lsrjax.ops.parts import apart, starts_of

# The longest row of h or w with which the smallest tiles still fit in VMEM.
_TPU_ROW_BYTES = 16384


def project_max(
    h_TD: jax.Array,
    w_VD: jax.Array,
    real_T: jax.Array,
    parts: tuple[tuple[int, int], ...],
    *,
    backend: str,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns max over real tokens of `h @ w.T`, and the first token that reaches it.

    The forward pass of `vocab_pool` without bias, for GPU and TPU; not differentiable.
    No axis needs to divide by anything, and the content of padded states has no
    influence, even NaN.

    Args:
      h_TD: hidden states of all texts, part by part, float32 or bfloat16: the dtype of
        the products, which are accumulated in float32. The precision of float32
        products follows `jax.default_matmul_precision`; TPU supports only the default
        and 'highest'.
      w_VD: one row per vocabulary term, cast once to the dtype of `h_TD`.
      real_T: non-zero at real tokens, zero at padding.
      parts: (texts, tokens) of each part.
      backend: 'gpu' (Triton), 'tpu' (Mosaic), or 'hopper' (Mosaic GPU) for bfloat16 on
        a GPU of compute capability 9.x.
      interpret: run the kernel as plain jax operations, on any device; slow.

    Returns:
      top_BV in float32, -inf in texts without a token, and first_BV in int32, always
      within the tokens of the text (0 in texts without a token). NaN and infinity in
      real states or weights need not show in top_BV; `vocab_pool` checks for them
      itself.

    Raises:
      ValueError: shapes that do not agree, an empty axis, an unknown `backend`,
        another dtype than bfloat16 with 'hopper', or more than 16 kB of hidden state
        per token on TPU.
    """
    shapes = f"h_TD {h_TD.shape}, w_VD {w_VD.shape}, real_T {real_T.shape}"
    if (
        h_TD.ndim != 2
        or w_VD.ndim != 2
        or w_VD.shape[1] != h_TD.shape[1]
        or real_T.shape != h_TD.shape[:1]
        or sum(texts * length for texts, length in parts) != len(h_TD)
    ):
        raise ValueError(
            f"project_max got {shapes} and parts {parts}; expected [T, D], [V, D], [T]"
            " and parts of T tokens."
        )
    if 0 in h_TD.shape or 0 in w_VD.shape:
        raise ValueError(f"project_max got an empty axis: {shapes}.")
    if backend not in ("gpu", "hopper", "tpu"):
        raise ValueError(f"backend is {backend!r}; expected 'gpu', 'hopper' or 'tpu'.")
    if backend == "hopper" and h_TD.dtype != jnp.bfloat16:
        # Its products of float32 would round the factors to 10 bits.
        raise ValueError(f"h_TD is {h_TD.dtype}; backend='hopper' takes bfloat16.")
    # One pass over w here is cheaper than a cast in every tile that reads it.
    w_VD = w_VD.astype(h_TD.dtype)
    real_T = (real_T != 0).astype(jnp.int32)
    if backend == "gpu":
        return _gpu(h_TD, w_VD, real_T, parts, interpret)
    if backend == "hopper":
        # Here, because it imports a backend that may be absent.
        from lsrjax.ops.hopper_pool import hopper

        return hopper(h_TD, w_VD, real_T, parts, interpret=interpret)
    found = [
        _tpu(h_BLD, w_VD, mask_BL, interpret)
        for h_BLD, mask_BL in zip(apart(h_TD, parts), apart(real_T, parts), strict=True)
    ]
    top_BV, first_BV = (jnp.concatenate(x) for x in zip(*found, strict=True))
    return top_BV, first_BV


def _best(tile, real, axis: int, start):
    """Maximum of a tile over its tokens, and the first token where it is.

    `start` is the tile's first token. Two plain reductions give the argmax, so that
    ties are treated the same way on every backend.
    """
    tile = jnp.where(real, tile, -jnp.inf)
    top = tile.max(axis=axis)
    token = lax.broadcasted_iota(jnp.int32, tile.shape, axis)
    is_top = tile == jnp.expand_dims(top, axis)
    return top, start + jnp.where(is_top, token, tile.shape[axis]).min(axis=axis)


def _better(old, new):
    """The pair with the larger maximum; the old one, of earlier tokens, at a tie.

    Starts from (-inf, 0). NaN and -inf never win: a winner is a real token of its tile,
    and token 0 remains where nothing wins.
    """
    wins = new[0] > old[0]
    return tuple(jnp.where(wins, y, x) for x, y in zip(old, new, strict=True))


def _dot_last(x, y):
    """Products over the last axis of both, summed in float32."""
    # Products of bfloat16 are exact in float32, and Mosaic refuses any precision but
    # the default for them, which None would leave to the user's setting.
    precision = None if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        x,
        y,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


# GPU: one program per text and tile of terms. Terms are the rows of the product and
# tokens the columns, so that a maximum stays within a warp. The loop over a text's
# tiles ends at its last token.
#
# Programs that run at the same time share their reads through the L2 cache, which holds
# neither all of h nor, for a large vocabulary, all of w. So the grid goes group by
# group of a few texts, whose h fits; within a group, tile by tile of terms; and within
# that, text by text. h is then read from memory once, and w once for each group.
#
# Triton is imported where it is used: jax has announced that it will remove this
# backend of Pallas from 0.11 on, and the TPU kernel should outlive it.


@dataclasses.dataclass(frozen=True)
class GpuTiles:
    """Sizes of the GPU kernel: of a tile, a program, and a group of texts.

    `hidden_bytes` of each row are read in one step of the product, `stages` such reads
    are in flight, and a group's h has at most `group_bytes`.
    """

    tokens: int = 256
    terms: int = 128
    hidden_bytes: int = 128
    warps: int = 8
    stages: int = 3
    group_bytes: int = 2**24


TILES = GpuTiles()


def _gpu(h_TD, w_VD, real_T, parts, interpret):
    from jax.experimental.pallas import triton as plgpu

    D, V = h_TD.shape[1], w_VD.shape[0]
    longest = max(length for _, length in parts)
    T = min(max(pl.next_power_of_2(longest), 16), TILES.tokens)
    P = TILES.terms
    K = min(max(pl.next_power_of_2(D), 16), TILES.hidden_bytes // h_TD.dtype.itemsize)
    # Padded, so that no access needs a mask; what is read beyond the end has no effect.
    fill = -D % K
    h_TD = jnp.pad(h_TD, ((0, T), (0, fill)))
    w_VD = jnp.pad(w_VD, ((0, -V % P), (0, fill)))
    start_B = jnp.asarray(starts_of(parts))
    tokens_B = jnp.concatenate(
        [
            (mask_BL * (1 + jnp.arange(mask_BL.shape[1]))[None]).max(axis=1)
            for mask_BL in apart(real_T, parts)
        ]
    )
    B, tiles = len(start_B), pl.cdiv(V, P)
    group = TILES.group_bytes // (longest * h_TD.shape[1] * h_TD.dtype.itemsize)
    group = min(max(group, 1), B)

    def at(i):
        """Text and tile of terms of the i-th program."""
        which, inner = i // (group * tiles), i % (group * tiles)
        size = jnp.minimum(group, B - which * group)
        return which * group + inner % size, inner // size

    one = pl.BlockSpec((None,), lambda i: (at(i)[0],))
    pair_P = pl.BlockSpec((None, P), at)
    kernel = partial(_gpu_kernel, T=T, K=K)
    top_BV, first_BV = pl.pallas_call(
        kernel,
        out_shape=_out_shape(B, tiles * P),
        grid=(B * tiles,),
        in_specs=[
            one,
            one,
            pl.BlockSpec(h_TD.shape, lambda i: (0, 0)),
            pl.BlockSpec((P, D + fill), lambda i: (at(i)[1], 0)),
            pl.BlockSpec((len(h_TD),), lambda i: (0,)),
        ],
        out_specs=(pair_P, pair_P),
        compiler_params=plgpu.CompilerParams(
            num_warps=TILES.warps if TILES.tokens == T else 4,
            num_stages=TILES.stages,
        ),
        interpret=interpret,
        name="project_max_gpu",
    )(start_B, tokens_B, h_TD, w_VD, jnp.pad(real_T, (0, T)))
    return top_BV[:, :V], first_BV[:, :V]


def _gpu_kernel(
    start_ref, tokens_ref, h_ref, w_ref, real_ref, top_ref, first_ref, *, T, K
):
    P, D = w_ref.shape
    start, tokens = start_ref[...], tokens_ref[...]

    def add_tokens(i, best):
        chosen = pl.ds(start + i * T, T)

        def add_hidden(j, tile_PT):
            hidden = pl.ds(j * K, K)
            return tile_PT + _dot_last(w_ref[:, hidden], h_ref[chosen, hidden])

        tile_PT = jnp.zeros((P, T), jnp.float32)
        tile_PT = lax.fori_loop(0, D // K, add_hidden, tile_PT)
        is_token_T = i * T + jnp.arange(T) < tokens
        real_T = (real_ref[chosen] != 0) & is_token_T
        return _better(best, _best(tile_PT, real_T[None, :], 1, i * T))

    best = jnp.full(P, -jnp.inf, jnp.float32), jnp.zeros(P, jnp.int32)
    tiles = (tokens + T - 1) // T
    top_ref[...], first_ref[...] = lax.fori_loop(0, tiles, add_tokens, best)


# TPU: a tile of texts, all its tokens if they fit, times a tile of terms. Terms are on
# the lanes and tokens on the sublanes, so the maximum over tokens is mostly one of
# whole registers. Tokens are the fastest axis of the grid, and the running pair stays
# in the output's block; with one tile of tokens, h stays in VMEM while all of w streams
# by.


def _tpu(h_BLD, w_VD, mask_BL, interpret):
    B, L, D = h_BLD.shape
    V = w_VD.shape[0]
    if V == 1:
        # Mosaic fails at a bfloat16 product with a single column.
        pair_B2 = _tpu(h_BLD, jnp.repeat(w_VD, 2, axis=0), mask_BL, interpret)
        return tuple(x_B2[:, :1] for x_B2 in pair_B2)
    S, T, P = _tpu_tiles(B, L, D, V, h_BLD.dtype.itemsize)
    # Blocks may overhang in B and V: those rows and columns are never written back. In
    # L they would add tokens.
    fill = pl.cdiv(L, T) * T - L
    h_BLD = jnp.pad(h_BLD, ((0, 0), (0, fill), (0, 0)))
    mask_BL1 = jnp.pad(mask_BL, ((0, 0), (0, fill)))[:, :, None]
    pair_SP = pl.BlockSpec((S, P), lambda b, v, t: (b, v))
    return pl.pallas_call(
        _tpu_kernel,
        out_shape=_out_shape(B, V),
        grid=(pl.cdiv(B, S), pl.cdiv(V, P), pl.cdiv(L, T)),
        in_specs=[
            pl.BlockSpec((S, T, D), lambda b, v, t: (b, t, 0)),
            pl.BlockSpec((P, D), lambda b, v, t: (v, 0)),
            pl.BlockSpec((S, T, 1), lambda b, v, t: (b, t, 0)),
        ],
        out_specs=(pair_SP, pair_SP),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="project_max_tpu",
    )(h_BLD, w_VD, mask_BL1)


def _tpu_tiles(B: int, L: int, D: int, V: int, itemsize: int) -> tuple[int, int, int]:
    """Texts, tokens and terms of a tile, so that everything stays within VMEM.

    The smallest VMEM budget of a kernel is 16 MB. It has to hold two tiles of h (2 MB
    each), two of w (1 MB each), the product in float32 (2 MB) and its intermediate
    results. Axes shorter than a tile are taken whole, which is legal for any size;
    others must be multiples of 8 texts, 16 tokens (a bfloat16 register) and 128 terms.
    """
    if D * itemsize > _TPU_ROW_BYTES:
        raise ValueError(
            f"the hidden size is {D}; the TPU kernel holds whole rows and goes up to "
            f"{_TPU_ROW_BYTES // 4} hidden dimensions in float32, "
            f"{_TPU_ROW_BYTES // 2} in bfloat16. Use impl='blocked'."
        )
    rows = min(1024, 2**21 // (D * itemsize))
    P = min(V, max(128, min(512, 2**20 // (D * itemsize) // 128 * 128)))
    S = min(B, max(8, rows // _round_up(L, 16) // 8 * 8))
    tiles = pl.cdiv(L, max(16, rows // S // 16 * 16))
    return S, _round_up(pl.cdiv(L, tiles), 16), P


def _tpu_kernel(h_ref, w_ref, mask_ref, top_ref, first_ref):
    S, T, D = h_ref.shape
    P = w_ref.shape[0]
    tile = pl.program_id(2)

    @pl.when(tile == 0)
    def _():
        top_ref[...] = jnp.full((S, P), -jnp.inf, jnp.float32)
        first_ref[...] = jnp.zeros((S, P), jnp.int32)

    tile_STP = _dot_last(h_ref[...].reshape(S * T, D), w_ref[...]).reshape(S, T, P)
    new = _best(tile_STP, mask_ref[...] != 0, 1, tile * T)
    top_ref[...], first_ref[...] = _better((top_ref[...], first_ref[...]), new)


def _out_shape(B: int, V: int):
    return (
        jax.ShapeDtypeStruct((B, V), jnp.float32),
        jax.ShapeDtypeStruct((B, V), jnp.int32),
    )


def _round_up(n: int, multiple: int) -> int:
    return pl.cdiv(n, multiple) * multiple
