"""The forward pass of `vocab_pool` for Hopper GPUs, in Pallas' Mosaic GPU backend.

It computes what the Triton kernel of `pallas_pool.py` does, for bfloat16, with the
means of the chip (compute capability 9.x): one warp group copies tiles of h and w to
shared memory (TMA), two others multiply them (wgmma) and keep the running maximum.

A block stays on its multiprocessor and takes one text and tile of terms after the
other, so that copies for the next are under way while the last is finished. Terms are
the rows of a product and tokens its columns, so that a maximum stays within the four
threads that share a row. The order of the texts and tiles is that of the Triton kernel,
for the same reason.

It needs jax 0.11; the axes are those of `pallas_pool.py`.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lsrjax.ops import hardware
from lsrjax.ops.parts import apart, starts_of

# Rows of a tile as wgmma reads it from shared memory.
_ROWS = 8
# Warp groups that multiply; the one after them copies.
_GROUPS = 2


@dataclasses.dataclass(frozen=True)
class HopperTiles:
    """Sizes of the kernel: of a tile, of the pipeline, and of a group of texts.

    Attributes:
      tokens: of a tile, a multiple of 64 up to 256.
      terms: of a tile, 128 or 256; tokens * terms is at most 2**15.
      hidden: dimensions that are copied in one step, 32 or 64.
      stages: copies in flight.
      cluster: blocks that take neighbouring tiles of terms of one text, and share their
        copies of h.
      lag: steps that the second warp group starts after the first, so that one
        multiplies while the other looks for the maxima of its tile.
      ahead: 1 if a warp group begins a step before the last is complete, or 0.
      turns: texts and tiles of terms of a block.
      chunks: parts of a tile, in one of which the position of a maximum is looked for.
      group_bytes: of the h of a group of texts, at most.
    """

    tokens: int = 256
    terms: int = 128
    hidden: int = 64
    stages: int = 4
    cluster: int = 1
    lag: int = 2
    ahead: int = 1
    turns: int = 16
    chunks: int = 1
    group_bytes: int = 2**24


TILES = HopperTiles()


def hopper(
    h_TD: jax.Array,
    w_VD: jax.Array,
    real_T: jax.Array,
    parts: tuple[tuple[int, int], ...],
    *,
    tiles: HopperTiles = TILES,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`pallas_pool.project_max` for h_TD and w_VD in bfloat16, which it has checked."""
    V = w_VD.shape[0]
    P, K = tiles.terms, tiles.hidden
    fill = -h_TD.shape[1] % K
    # A copy starts at a multiple of 8 rows, so every text has to.
    masks = [_full_rows(mask_BL) for mask_BL in apart(real_T, parts)]
    if any(length % _ROWS for _, length in parts):
        full = [_full_rows(h_BLD) for h_BLD in apart(h_TD, parts)]
        h_TD = jnp.concatenate([h_BLD.reshape(-1, h_BLD.shape[2]) for h_BLD in full])
    parts = tuple(mask_BL.shape for mask_BL in masks)
    longest = max(length for _, length in parts)
    T = min(_up(longest, 64), tiles.tokens)
    # A tile that would pass the end of h starts earlier, so h needs no more rows than
    # one tile has.
    h_TD = jnp.pad(h_TD, ((0, max(T - len(h_TD), 0)), (0, fill)))
    real_T = jnp.concatenate([mask_BL.reshape(-1) for mask_BL in masks])
    real_T = jnp.pad(real_T, (0, len(h_TD) - len(real_T)))
    w_VD = jnp.pad(w_VD, ((0, -V % (P * tiles.cluster)), (0, fill)))
    start_B = jnp.asarray(starts_of(parts), jnp.int32)
    tokens_B = jnp.concatenate([_last(mask_BL) for mask_BL in masks])
    solid_B = jnp.concatenate([_solid(mask_BL) for mask_BL in masks])
    B, columns = len(start_B), len(w_VD) // (P * tiles.cluster)
    group = tiles.group_bytes // (longest * h_TD.shape[1] * h_TD.dtype.itemsize)
    group = min(max(group, 1), B)
    # Blocks that run at the same time do adjacent programs, for the sake of the cache.
    # There are several such waves, since texts differ in length.
    wave = min(_multiprocessors() // tiles.cluster, B * columns)
    blocks = wave * pl.cdiv(B * columns, wave * tiles.turns)
    kernel = partial(_kernel, T=T, tiles=tiles, group=group, wave=wave)
    stored = (_GROUPS, P // _GROUPS)
    top_BV, first_BV = plgpu.kernel(
        kernel,
        out_type=tuple(
            jax.ShapeDtypeStruct((B, len(w_VD)), dtype)
            for dtype in (jnp.float32, jnp.int32)
        ),
        scratch_types={
            "w_smem": _copies(tiles, P, h_TD.dtype),
            "h_smem": _copies(tiles, T, h_TD.dtype),
            "top_smem": plgpu.SMEM(stored, jnp.float32),
            "first_smem": plgpu.SMEM(stored, jnp.int32),
            "full": plgpu.Barrier(num_arrivals=2, num_barriers=tiles.stages),
            "empty": _empty(tiles),
            "started": plgpu.Barrier(),
        },
        grid=(blocks,),
        grid_names=("block",),
        cluster=(tiles.cluster,),
        cluster_names=("neighbour",),
        num_threads=_GROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        # Before jax 0.11, Mosaic GPU is not interpreted.
        interpret=plgpu.InterpretGPUParams()  # type: ignore[attr-defined]
        if interpret
        else None,
        kernel_name="project_max_hopper",
    )(start_B, tokens_B, solid_B, h_TD, w_VD, real_T)
    return top_BV[:, :V], first_BV[:, :V]


def _full_rows(x_BLD):
    fill = [(0, 0)] * x_BLD.ndim
    fill[1] = (0, -x_BLD.shape[1] % _ROWS)
    return jnp.pad(x_BLD, fill)


def _last(mask_BL):
    """Number of tokens up to the last real one."""
    return (mask_BL * (1 + jnp.arange(mask_BL.shape[1]))[None]).max(axis=1)


def _solid(mask_BL):
    """Number of tokens before the first that is not real."""
    length = mask_BL.shape[1]
    return jnp.where(mask_BL == 0, jnp.arange(length)[None], length).min(axis=1)


def _copies(tiles, rows: int, dtype):
    """Shared memory for tiles of `rows` rows, in the order that wgmma reads best."""
    row = tiles.hidden * dtype.itemsize
    layout = (
        plgpu.TilingTransform((_ROWS, tiles.hidden)),
        plgpu.SwizzleTransform(row),
    )
    return plgpu.SMEM((tiles.stages, rows, tiles.hidden), dtype, transforms=layout)


def _empty(tiles):
    if tiles.cluster == 1:
        return plgpu.Barrier(num_arrivals=_GROUPS, num_barriers=tiles.stages)
    # A copy of h goes to all blocks of a cluster, so all must have made room for it.
    return plgpu.ClusterBarrier(
        collective_axes=("neighbour",),
        num_arrivals=_GROUPS,
        num_barriers=tiles.stages,
    )


def _multiprocessors() -> int:
    """Of the device that the program is for; more or fewer would be right as well."""
    device = hardware.device()
    count = getattr(device, "core_count", None) or getattr(device, "num_cores", None)
    return count if device.platform in ("gpu", "cuda") and count else 132


def _up(n: int, multiple: int) -> int:
    return pl.cdiv(n, multiple) * multiple


def _kernel(
    start_ref,
    tokens_ref,
    solid_ref,
    h_ref,
    w_ref,
    real_ref,
    top_ref,
    first_ref,
    *,
    w_smem,
    h_smem,
    top_smem,
    first_smem,
    full,
    empty,
    started,
    T,
    tiles,
    group,
    wave,
):
    P, K, stages, cluster = tiles.terms, tiles.hidden, tiles.stages, tiles.cluster
    B, steps = start_ref.shape[0], w_ref.shape[1] // K
    columns = w_ref.shape[0] // (P * cluster)
    rows = P // _GROUPS
    mine = lax.axis_index("group")
    block = lax.axis_index("block")
    neighbour = lax.axis_index("neighbour")
    begin = lax.div(block, wave) * wave * tiles.turns + lax.rem(block, wave)
    left = lax.div(B * columns - begin + wave - 1, wave)
    programs = jnp.clip(left, 0, tiles.turns)

    def of(i):
        """Text and first term of the i-th program of this block."""
        i = begin + i * wave
        which, inner = lax.div(i, group * columns), lax.rem(i, group * columns)
        size = jnp.minimum(group, B - which * group)
        column = lax.div(inner, size) * cluster + neighbour
        return which * group + lax.rem(inner, size), pl.multiple_of(column * P, P)

    def for_each(add_tile, i, carry):
        """Calls add_tile(first row of h, its token, carry) for each tile of tokens."""
        b, _ = of(i)
        start, tokens = start_ref[b], tokens_ref[b]

        def add(t, carry):
            row = jnp.minimum(start + t * T, h_ref.shape[0] - T)
            return add_tile(pl.multiple_of(row, _ROWS), row - start, carry)

        return lax.fori_loop(0, lax.div(tokens + T - 1, T), add, carry)

    @pl.when(mine == _GROUPS)
    def _copy():
        plgpu.set_max_registers(40, action="decrease")

        def add_program(i, step):
            _, term = of(i)

            def add_tile(row, _, step):
                def copy(j, step):
                    slot = lax.rem(step, stages)

                    @pl.when(step >= stages)
                    def _():
                        plgpu.barrier_wait(empty.at[slot])

                    hidden = pl.ds(j * K, K)
                    plgpu.copy_gmem_to_smem(
                        w_ref.at[pl.ds(term, P), hidden],
                        w_smem.at[slot],
                        full.at[slot],
                    )
                    plgpu.copy_gmem_to_smem(
                        h_ref.at[pl.ds(row, T), hidden],
                        h_smem.at[slot],
                        full.at[slot],
                        collective_axes="neighbour" if cluster > 1 else None,
                    )
                    return step + 1

                return lax.fori_loop(0, steps, copy, step)

            return for_each(add_tile, i, step)

        step = lax.fori_loop(0, programs, add_program, jnp.int32(0))

        # A block must not end while a neighbour still sends to it or signals it.
        def drain(k, _):
            plgpu.barrier_wait(empty.at[lax.rem(k, stages)])

        lax.fori_loop(jnp.maximum(step - stages, 0), step, drain, None)

    @pl.when(mine < _GROUPS)
    def _multiply():
        plgpu.set_max_registers(232, action="increase")
        # Copies that the second group has not read are at most all there is room for.
        lag, ahead = min(tiles.lag, stages, steps), tiles.ahead

        def product(step, acc_ref):
            def add(j, _):
                slot = lax.rem(step + j, stages)
                plgpu.barrier_wait(full.at[slot])
                plgpu.wgmma(
                    acc_ref,
                    w_smem.at[slot, pl.ds(pl.multiple_of(mine * rows, rows), rows)],
                    h_smem.at[slot].T,
                )
                if lag:

                    @pl.when((step + j == lag - 1) & (mine == 0))
                    def _():
                        plgpu.barrier_arrive(started)

                plgpu.wgmma_wait(ahead)

                @pl.when(j >= ahead)
                def _():
                    plgpu.barrier_arrive(empty.at[lax.rem(step + j - ahead, stages)])

            lax.fori_loop(0, steps, add, None)
            return acc_ref[...]

        def add_program(i, step):
            b, term = of(i)
            tokens, solid = tokens_ref[b], solid_ref[b]

            def add_tile(row, token, carry):
                step, best = carry[0], carry[1:]
                if lag:

                    @pl.when((step == 0) & (mine == 1))
                    def _():
                        plgpu.barrier_wait(started)

                tile = pl.run_scoped(
                    partial(product, step), plgpu.ACC((rows, T), jnp.float32)
                )
                if ahead:
                    plgpu.barrier_arrive(empty.at[lax.rem(step + steps - 1, stages)])
                # Few tiles have padding, and fewer have it between real tokens.
                whole = (token >= 0) & (token + T <= solid)
                kind = jnp.where(whole, 0, jnp.where(solid == tokens, 1, 2))
                tile_best = partial(_best, token=token, chunks=tiles.chunks)
                new = lax.switch(
                    kind,
                    [
                        lambda: tile_best(tile),
                        lambda: tile_best(_cut(tile, tokens, token)),
                        lambda: tile_best(_mask(tile, real_ref, row, tokens, token)),
                    ],
                )
                best = _better(best, new)
                return step + steps, *best

            none = (
                _per_row(jnp.full(rows, -jnp.inf, jnp.float32)),
                _per_row(jnp.zeros(rows, jnp.int32)),
            )
            step, top, first = for_each(add_tile, i, (step, *none))
            # The copies of the program before have left.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            top_smem[mine] = top
            first_smem[mine] = first
            plgpu.commit_smem()
            chosen = pl.ds(term + mine * rows, rows)
            plgpu.copy_smem_to_gmem(top_smem.at[mine], top_ref.at[b, chosen])
            plgpu.copy_smem_to_gmem(first_smem.at[mine], first_ref.at[b, chosen])
            return step

        lax.fori_loop(0, programs, add_program, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)


def _per_row(x):
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA.reduce(1))


def _token(tile):
    return plgpu.broadcasted_iota(jnp.int32, tile.shape, 1, layout=plgpu.Layout.WGMMA)


def _cut(tile, tokens, token):
    """The tile, -inf before the text's first token and after its last."""
    at = _token(tile)
    inside = (at >= -token) & (at < tokens - token)
    return jnp.where(inside, tile, -jnp.inf)


def _mask(tile, real_ref, row, tokens, token):
    """The tile, -inf where a token is not real or of another text."""
    T = tile.shape[1]
    layout = plgpu.Layout.WGMMA.reduce(0)
    real = plgpu.load(real_ref.at[pl.ds(row, T)], layout=layout, optimized=False)
    inside = token + plgpu.broadcasted_iota(jnp.int32, (T,), 0, layout=layout)
    real = jnp.where((inside >= 0) & (inside < tokens), real, 0)
    real = lax.broadcast_in_dim(real, tile.shape, [1])
    return jnp.where(real != 0, tile, -jnp.inf)


def _best(tile, token, chunks):
    """Maximum of each row of a tile, and the first token where it is.

    The position is looked for in the first chunk of the tile that has the maximum,
    which is less work than in all of it.
    """
    width = tile.shape[1] // chunks
    cuts = [tile[:, i * width : (i + 1) * width] for i in range(chunks)]
    tops = [cut.max(axis=1) for cut in cuts]
    top = tops[0]
    for other in tops[1:]:
        top = jnp.maximum(top, other)
    chosen, begin = cuts[-1], jnp.full_like(token, (chunks - 1) * width)
    for i in reversed(range(chunks - 1)):
        here = tops[i] == top
        wide = lax.broadcast_in_dim(here, chosen.shape, [0])
        chosen = jnp.where(wide, cuts[i], chosen)
        begin = jnp.where(here, i * width, begin)
    is_top = chosen == lax.broadcast_in_dim(top, chosen.shape, [0])
    at = jnp.where(is_top, _token(chosen), width).min(axis=1)
    return top, token + begin + at


def _better(old, new):
    """The pair with the larger maximum; the old one, of earlier tokens, at a tie."""
    wins = new[0] > old[0]
    return tuple(jnp.where(wins, y, x) for x, y in zip(old, new, strict=True))
