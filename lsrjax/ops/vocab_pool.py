"""Vocabulary projection fused with the max over tokens.

A sparse head scores every vocabulary term at every token and keeps each term's best
token. Written plainly that makes logits of shape [B, L, V], which for one batch of 32
texts, 256 tokens and 250,002 terms is 8 GB. Here the projection goes over blocks of V
and only the maximum and its position survive a block.

Texts may come in parts, each padded to its own length; their tokens are stored end to
end, so that the products run over all of them at once.

Axes: B texts, L tokens of a text, T all tokens, D hidden, V vocabulary (or one shard of
it), K compacted entries, P terms of one group, G groups.
"""

import importlib.util
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lsrjax.ops import hardware
from lsrjax.ops.parts import Parts, apart, end_to_end, per_text, starts_of

# Above this share of non-zero incoming gradients, gathering rows costs more than
# multiplying by the zeros. Both sides of the choice are exact.
_DENSE_ABOVE = 0.2
# Terms whose weight gradients are accumulated together in the sparse backward pass:
# one tile of a matrix unit.
_GROUP = 128


def vocab_pool(
    h: jax.Array,
    w_VD: jax.Array,
    b_V: jax.Array,
    mask: jax.Array | Sequence[jax.Array],
    *,
    pool_mask: str = "exclude",
    impl: str = "auto",
    block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns max over tokens of `h @ w.T + b`, and the token where it is reached.

    Differentiable once in h, w and b; the position carries no gradient. Ties go to
    the first token. The bias is the same for every token and is added after the max,
    so positions are those of the projection before its rounding. Every term is
    computed on its own, so any slice of V gives that slice of the result.

    Args:
      h: hidden states, [B, L, D]; or of all parts end to end, [T, D]. Their dtype is
        that of the matrix products; products are accumulated, and the maximum is
        taken, in float32.
      w_VD: one row per vocabulary term, cast to the dtype of `h`.
      b_V: bias of each term, added in float32.
      mask: non-zero at real tokens, zero at padding, [B, L]; or one such array for
        each part.
      pool_mask: 'exclude' leaves padding out of the maximum; a text without any token
        gets 0. 'multiply' is the MILCO reference, max over tokens of (logit x mask):
        any padding adds a 0 to the maximum. Where that 0 is the result, or there is
        no token, the position is -1 and no gradient flows. A logit of exactly 0 wins
        over padding.
      impl: 'blocked' (the blocks described above), 'naive' (`vocab_pool_naive`, which
        makes the [T, V] logits), 'pallas' (`pallas_pool` forward on a GPU or TPU, the
        gradient of 'blocked'), or 'auto', the fastest in measurements: 'pallas' on CUDA
        devices of capability 8.0 and above, 'blocked' elsewhere (TPUs have not been
        measured).
      block: vocabulary terms projected at a time, which sets the extra memory
        (4 * T * block bytes); need not divide V. By default a size that keeps the
        tile in the processor's cache, or fills an accelerator.

    Returns:
      max_BV in float32, argmax_BV in int32, of the texts of all parts end to end. A NaN
      or infinity in a real token's state or in a term's weights makes that text's or
      that term's maxima NaN (with 'naive' the result depends on the backend).

    Raises:
      ValueError: shapes that do not agree, or an unknown `pool_mask` or `impl`.
    """
    masks = tuple(mask) if isinstance(mask, Sequence) else (mask,)
    _check(h, w_VD, b_V, masks, pool_mask, impl, block)
    if impl == "naive":
        if block is not None:
            raise ValueError(
                f"block={block} has no effect with impl='naive'; leave it out."
            )
        return vocab_pool_naive(h, w_VD, b_V, masks, pool_mask=pool_mask)
    if impl == "auto":
        impl = "pallas" if pallas_is_faster() else "blocked"
    masks = tuple(mask_BL != 0 for mask_BL in masks)
    real_T = end_to_end(masks)
    # A padded state may hold anything, even NaN (attention over no token at all), and
    # the dense backward pass multiplies it by zero.
    h_TD = h.reshape(-1, h.shape[-1])
    h_TD = jnp.where(real_T[:, None], h_TD, jnp.zeros((), h.dtype))
    parts = tuple(mask_BL.shape for mask_BL in masks)
    top_BV, argmax_BV = _project_max(block, impl, parts, h_TD, w_VD, real_T)
    top_BV = top_BV + b_V.astype(jnp.float32)[None]
    # XLA's max on CPU drops NaN, which would hide a run that has diverged; checking the
    # factors is cheaper than checking the products.
    sound_B = per_text(jnp.isfinite(h_TD).all(axis=1), parts, jnp.all)
    sound_V = jnp.isfinite((w_VD * 0).sum(axis=1))
    top_BV += jnp.where(sound_B[:, None] & sound_V[None], 0.0, jnp.nan)
    # -inf only in texts without a token; NaN must stay visible, hence no `>`.
    keep_BV = jnp.broadcast_to(per_text(real_T, parts, jnp.any)[:, None], top_BV.shape)
    if pool_mask == "multiply":
        keep_BV &= per_text(real_T, parts, jnp.all)[:, None] | ~(top_BV < 0)
    return jnp.where(keep_BV, top_BV, 0.0), jnp.where(keep_BV, argmax_BV, -1)


def vocab_pool_naive(
    h: jax.Array,
    w_VD: jax.Array,
    b_V: jax.Array,
    mask: jax.Array | Sequence[jax.Array],
    *,
    pool_mask: str = "exclude",
) -> tuple[jax.Array, jax.Array]:
    """The definition of `vocab_pool`, with [B, L, V] logits and autodiff."""
    masks = tuple(mask) if isinstance(mask, Sequence) else (mask,)
    _check(h, w_VD, b_V, masks, pool_mask, "naive", None)
    h_TD = h.reshape(-1, h.shape[-1])
    found = [
        _naive(h_BLD, w_VD, b_V, mask_BL, pool_mask)
        for h_BLD, mask_BL in zip(
            apart(h_TD, tuple(mask_BL.shape for mask_BL in masks)), masks, strict=True
        )
    ]
    max_BV, first_BV = (jnp.concatenate(x) for x in zip(*found, strict=True))
    return max_BV, first_BV


def _naive(h_BLD, w_VD, b_V, mask_BL, pool_mask):
    length = h_BLD.shape[1]
    mask_BL1 = (mask_BL != 0)[:, :, None]
    logits_BLV = jnp.einsum(
        "bld,vd->blv",
        h_BLD,
        w_VD.astype(h_BLD.dtype),
        preferred_element_type=jnp.float32,
    ) + b_V.astype(jnp.float32)
    padded = -jnp.inf if pool_mask == "exclude" else 0.0
    logits_BLV = jnp.where(mask_BL1, logits_BLV, padded)
    top_BV = lax.stop_gradient(logits_BLV.max(axis=1))
    token_BLV = lax.broadcasted_iota(jnp.int32, logits_BLV.shape, 1)
    is_top_BLV = (logits_BLV == top_BV[:, None]) & mask_BL1
    first_BV = jnp.where(is_top_BLV, token_BLV, length).min(axis=1)
    # A selection rather than `max`, whose gradient is split between ties.
    chosen_BLV = token_BLV == first_BV[:, None]
    max_BV = jnp.where(chosen_BLV, logits_BLV, 0.0).sum(axis=1)
    max_BV = jnp.where(jnp.isnan(top_BV), jnp.nan, max_BV)
    return max_BV, jnp.where(first_BV == length, -1, first_BV)


def pallas_is_faster() -> bool:
    """Whether `pallas_pool` is the fastest on the device of this computation."""
    return hardware.is_cuda(hardware.device(), 8.0) and has_triton()


def _check(h, w_VD, b_V, masks, pool_mask, impl, block):
    shapes = f"h {h.shape}, w_VD {w_VD.shape}, b_V {b_V.shape}, mask " + ", ".join(
        str(mask_BL.shape) for mask_BL in masks
    )
    tokens = sum(mask_BL.size for mask_BL in masks)
    fits = h.shape[:-1] == (tokens,) or [h.shape[:-1]] == [m.shape for m in masks]
    if (
        not fits
        or any(mask_BL.ndim != 2 for mask_BL in masks)
        or w_VD.shape != (*b_V.shape, h.shape[-1])
    ):
        raise ValueError(
            f"vocab_pool got {shapes}; expected [B, L, D], [V, D], [V] and [B, L], or"
            " [T, D] and several masks of T tokens in all."
        )
    if 0 in h.shape or 0 in w_VD.shape:
        raise ValueError(f"vocab_pool got an empty axis: {shapes}.")
    if pool_mask not in ("exclude", "multiply"):
        raise ValueError(
            f"pool_mask is {pool_mask!r}; expected 'exclude' or 'multiply'."
        )
    if impl not in ("auto", "blocked", "naive", "pallas"):
        raise ValueError(
            f"impl is {impl!r}; expected 'auto', 'blocked', 'naive' or 'pallas'."
        )
    if impl == "pallas" and hardware.device().platform == "cpu":
        raise ValueError(
            "impl='pallas' needs a GPU or TPU, and there is none; use 'auto'."
        )
    if block is not None and block < 1:
        raise ValueError(f"block is {block}; expected at least 1 vocabulary term.")


# Numbers in a tile of an accelerator, which is fastest with few, large products: of the
# logits, and of the dense backward pass, which reads and writes the gradient of all
# states for every tile.
_TILE, _DENSE_TILE = 2**24, 2**27


def _block(given: int | None, h_by_group: list, tile: int = _TILE) -> int:
    tokens, dim = max(h_TD.shape for h_TD in h_by_group)
    if given is not None:
        return given
    # A CPU tile should stay in the cache between the product and the max; this matters
    # less the longer the product takes compared with the max.
    if hardware.device().platform == "cpu":
        return min(max(256, 6144 * dim // tokens // 128 * 128), 1024)
    return max(128, tile // tokens // 128 * 128)


def start_of(i: jax.Array, width: int, total: int) -> jax.Array:
    """The first term of block i; the last block overlaps the one before it."""
    return jnp.minimum(i * width, total - width)


# Gradient of m[b,v] = max_l sum_d h[b,l,d] w[v,d], reached at token t = t[b,v]:
#
#   dm[b,v] / dh[b,l,d] = [l = t[b,v]] w[v,d]                    only the best token
#   dm[b,v] / dw[v,d]   = h[b,t[b,v],d]
#
# so for an incoming gradient g[b,v], with S[b,l,v] = [l = t[b,v]] g[b,v],
#
#   dh[b,l,d] = sum_v   S[b,l,v] w[v,d]                          B L D
#   dw[v,d]   = sum_b,l S[b,l,v] h[b,l,d]                        V D
#
# These are two matrix products with a matrix that has one entry per (b, v), and none
# where g[b,v] = 0. After relu most g are 0: about 1 % of a trained model's terms are
# active. The dense backward pass makes the tile of S for one block of V and multiplies.
# The sparse one compacts the non-zero entries first, per text for dh and per group of
# P terms for dw, K at a time until none is left, and does the same products over them:
#
#   dh[b,l,d] += sum_k [l = t_k] g_k w[v_k,d]                    k-th entry of text b
#   dw[p,d]   += sum_k [p = v_k] g_k h[b_k,t_k,d]                k-th entry of group
#
# An entry costs L D and P D multiplications on top of two gathered rows. No scatter
# appears, so the order of the sums is fixed, on accelerators as well.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _project_max(block, impl, parts, h_TD, w_VD, real_T):
    """Max over real tokens of h @ w.T (-inf if there is none), and its first token."""
    if impl == "pallas":
        # Here, because it imports backends that may be absent.
        from lsrjax.ops import pallas_pool

        backend = "tpu" if hardware.device().platform == "tpu" else "gpu"
        return pallas_pool.project_max(h_TD, w_VD, real_T, parts, backend=backend)
    B, V = sum(texts for texts, _ in parts), w_VD.shape[0]
    groups = _groups(parts)
    h_by_group = _by_group(h_TD, groups)
    block = min(_block(block, h_by_group), V)
    padding = _by_group(jnp.where(real_T, 0.0, -jnp.inf).astype(jnp.float32), groups)
    dtype = h_TD.dtype

    def best(tile_BLP):
        top_BP = tile_BLP.max(axis=1)
        # argmax as two plain reductions: XLA's own, over pairs, is not vectorised on
        # CPU. The bound covers NaN, which equals nothing.
        token_BLP = lax.broadcasted_iota(jnp.int32, tile_BLP.shape, 1)
        last = tile_BLP.shape[1] - 1
        is_top_BLP = tile_BLP == top_BP[:, None]
        return top_BP, jnp.where(is_top_BLP, token_BLP, last).min(axis=1)

    def project(i, carry):
        start = start_of(i, block, V)
        w_PD = lax.dynamic_slice_in_dim(w_VD, start, block).astype(dtype)
        found = []
        for h_TD, padding_T, own in zip(h_by_group, padding, groups, strict=True):
            tile_TP = jnp.einsum(
                "td,pd->tp", h_TD, w_PD, preferred_element_type=jnp.float32
            )
            found += map(best, apart(tile_TP + padding_T[:, None], own))
        pair_BP = (jnp.concatenate(x) for x in zip(*found, strict=True))
        return tuple(
            lax.dynamic_update_slice_in_dim(x_BV, x_BP, start, 1)
            for x_BV, x_BP in zip(carry, pair_BP, strict=True)
        )

    empty = jnp.zeros((B, V), jnp.float32), jnp.zeros((B, V), jnp.int32)
    return lax.fori_loop(0, ceil_div(V, block), project, empty)


def _project_max_fwd(block, impl, parts, h_TD, w_VD, real_T):
    top_BV, first_BV = _project_max(block, impl, parts, h_TD, w_VD, real_T)
    return (top_BV, first_BV), (h_TD, w_VD, first_BV)


def _project_max_bwd(block, impl, parts, saved, cotangents):
    h_TD, w_VD, first_BV = saved
    g_BV = cotangents[0]
    dense = jnp.mean(g_BV != 0, dtype=jnp.float32) > _DENSE_ABOVE
    dh_TD, dw_VD = lax.cond(
        dense,
        partial(_dense_gradients, block, parts),
        partial(_sparse_gradients, block, parts),
        *(h_TD, w_VD, first_BV, g_BV),
    )
    return dh_TD, dw_VD, None


_project_max.defvjp(_project_max_fwd, _project_max_bwd)


def _rows_of(x_BK, parts: Parts) -> Sequence[jax.Array]:
    return lax.split(x_BK, [texts for texts, _ in parts])


def _groups(parts: Parts) -> list[Parts]:
    """The parts that share a product.

    An accelerator is fastest with few, large products; on a CPU, a part's tile of
    logits fits in the cache.
    """
    cpu = hardware.device().platform == "cpu"
    return [(part,) for part in parts] if cpu else [parts]


def _by_group(x_T: jax.Array, groups: list[Parts]) -> Sequence[jax.Array]:
    sizes = [sum(texts * length for texts, length in group) for group in groups]
    return lax.split(x_T, sizes)


def _dense_gradients(block, parts, h_TD, w_VD, first_BV, g_BV):
    V, dtype = w_VD.shape[0], h_TD.dtype
    groups = _groups(parts)
    h_by_group = _by_group(h_TD, groups)
    block = min(_block(block, h_by_group, _DENSE_TILE), V)

    def add(i, carry):
        dh_by_group, dw_VD = carry
        start = start_of(i, block, V)
        w_PD = lax.dynamic_slice_in_dim(w_VD, start, block).astype(dtype)
        # The last block overlaps: writing its dw again is harmless, but its dh would be
        # added twice.
        fresh_P = start + jnp.arange(block) >= i * block
        w_PD = jnp.where(fresh_P[:, None], w_PD, jnp.zeros((), dtype))
        first_BP = lax.dynamic_slice_in_dim(first_BV, start, block, 1)
        g_BP = lax.dynamic_slice_in_dim(g_BV, start, block, 1)
        chosen = [
            _one_hot(first, g, length, dtype)
            for first, g, (_, length) in zip(
                _rows_of(first_BP, parts), _rows_of(g_BP, parts), parts, strict=True
            )
        ]
        dw_PD, next_dh = jnp.zeros((block, w_VD.shape[1]), jnp.float32), []
        for group, h_TD, dh_TD in zip(groups, h_by_group, dh_by_group, strict=True):
            own, chosen = chosen[: len(group)], chosen[len(group) :]
            s_TP = end_to_end(own)
            next_dh.append(dh_TD + _product("tp,pd->td", s_TP, w_PD))
            if len(group) == 1:
                # With tokens as two axes, XLA on CPU transposes separately instead of
                # running a product that is three times as slow.
                dw_PD += _product("blp,bld->pd", own[0], *apart(h_TD, group))
            else:
                dw_PD += _product("tp,td->pd", s_TP, h_TD)
        dw_VD = lax.dynamic_update_slice_in_dim(
            dw_VD, dw_PD.astype(dw_VD.dtype), start, 0
        )
        return next_dh, dw_VD

    empty = [jnp.zeros(h_TD.shape, jnp.float32) for h_TD in h_by_group]
    blocks = ceil_div(V, block)
    dh_by_group, dw_VD = lax.fori_loop(0, blocks, add, (empty, jnp.zeros_like(w_VD)))
    return jnp.concatenate(dh_by_group).astype(dtype), dw_VD


def _product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _sparse_gradients(block, parts, h_TD, w_VD, first_BV, g_BV):
    dh_TD = _sparse_dh(parts, h_TD, w_VD, first_BV, g_BV)
    return dh_TD, _sparse_dw(block, parts, h_TD, w_VD, first_BV, g_BV)


def _sparse_dh(parts, h_TD, w_VD, first_BV, g_BV):
    lengths = [length for _, length in parts]

    def add(entry_BK, live_BK, dh_TD):
        g_BK = jnp.where(live_BK, _entries(g_BV, entry_BK), 0.0)
        first_BK = _entries(first_BV, entry_BK)
        rows = (_rows_of(x, parts) for x in (first_BK, g_BK, entry_BK))
        more_TD = end_to_end(
            jnp.einsum(
                "blk,bkd->bld",
                _one_hot(first, g, length, h_TD.dtype),
                w_VD[entry].astype(h_TD.dtype),
                preferred_element_type=jnp.float32,
            )
            for first, g, entry, length in zip(*rows, lengths, strict=True)
        )
        return dh_TD + more_TD

    dh_TD = jnp.zeros(h_TD.shape, jnp.float32)
    return fold_nonzero(g_BV, add, dh_TD).astype(h_TD.dtype)


def _sparse_dw(block, parts, h_TD, w_VD, first_BV, g_BV):
    D, (B, V) = h_TD.shape[1], g_BV.shape
    # A few groups at a time keep the gathered rows small; without a [T, P] tile the
    # steps can be larger than in the forward pass.
    width = min(V, 8 * _block(block, _by_group(h_TD, _groups(parts))))
    P = min(_GROUP, width)
    G = width // P
    width = G * P
    start_B = jnp.asarray(starts_of(parts))

    def grouped(x_BV, start):
        """The entries [B, width] as [G, B * P], text by text within a group."""
        x_BW = lax.dynamic_slice_in_dim(x_BV, start, width, 1)
        return x_BW.reshape(B, G, P).transpose(1, 0, 2).reshape(G, B * P)

    def write(i, dw_VD):
        start = start_of(i, width, V)
        g_GN, first_GN = grouped(g_BV, start), grouped(first_BV, start)

        def add(entry_GK, live_GK, dw_GPD):
            text_GK, term_GK = entry_GK // P, entry_GK % P
            g_GK = jnp.where(live_GK, _entries(g_GN, entry_GK), 0.0)
            first_GK = _entries(first_GN, entry_GK)
            return dw_GPD + jnp.einsum(
                "gpk,gkd->gpd",
                _one_hot(term_GK, g_GK, P, h_TD.dtype),
                h_TD[start_B[text_GK] + first_GK],
                preferred_element_type=jnp.float32,
            )

        dw_GPD = fold_nonzero(g_GN, add, jnp.zeros((G, P, D), jnp.float32))
        dw_WD = dw_GPD.reshape(width, D).astype(dw_VD.dtype)
        return lax.dynamic_update_slice_in_dim(dw_VD, dw_WD, start, 0)

    return lax.fori_loop(0, ceil_div(V, width), write, jnp.zeros_like(w_VD))


def _entries(x_GN, entry_GK):
    """[G, K]; the positions are in the rows."""
    return jnp.take_along_axis(x_GN, entry_GK, 1, mode="promise_in_bounds")


def _one_hot(index_GK, value_GK, size, dtype):
    """[G, size, K] with value_GK at row index_GK of its column, zeros elsewhere."""
    row_1P1 = jnp.arange(size, dtype=jnp.int32)[None, :, None]
    s_GPK = jnp.where(row_1P1 == index_GK[:, None], value_GK[:, None], 0.0)
    return s_GPK.astype(dtype)


def fold_nonzero(x_GN, add, total, at_once: int | None = None):
    """Folds the non-zero entries of each row into `total`, K of every row at a time.

    `add(entry_GK, live_GK, total)` receives ascending positions in the rows and which
    of them are real: shorter rows are filled up with position N-1. Runs until the
    fullest row is done, so no entry is dropped. K is at most `at_once`, if given.
    """
    G, N = x_GN.shape
    # Sized so that 1 to 2 % of the entries, the usual share, take one round.
    K = min(N, max(32, N // 64), at_once or N)
    M = ceil_div(N, 32)
    bits_GN = jnp.pad(x_GN != 0, ((0, 0), (0, 32 * M - N)))
    bit_32 = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)
    word_GM = jnp.where(bits_GN.reshape(G, M, 32), bit_32, 0).sum(-1, dtype=jnp.uint32)
    end_GM = jnp.cumsum(_count_bits(word_GM), axis=1)
    most = end_GM[:, -1].max()

    def body(carry):
        done, total = carry
        rank_K = done + jnp.arange(K, dtype=jnp.int32)
        entry_GK = jnp.minimum(_select_bits(word_GM, end_GM, rank_K), N - 1)
        live_GK = rank_K < end_GM[:, -1:]
        return done + K, add(entry_GK, live_GK, total)

    zero = jnp.zeros((), jnp.int32)
    return lax.while_loop(lambda c: c[0] < most, body, (zero, total))[1]


def _select_bits(word_GM, end_GM, rank_K):
    """Position of the set bit with each rank; meaningless past the last one.

    `end_GM` counts the bits up to and including each word. A search over the words and
    a binary search within the word are much cheaper on a CPU than a scatter over all N
    positions.
    """
    search = partial(jnp.searchsorted, v=rank_K, side="right", method="scan")
    at_GK = jnp.minimum(jax.vmap(search)(end_GM), word_GM.shape[1] - 1)
    at_GK = at_GK.astype(jnp.int32)
    word_GK = _entries(word_GM, at_GK)
    before_GK = _entries(end_GM, at_GK) - _count_bits(word_GK)
    rank_GK = rank_K - before_GK
    bit_GK = jnp.zeros_like(rank_GK)
    for width in (16, 8, 4, 2, 1):
        low_GK = word_GK & jnp.uint32((1 << width) - 1)
        count_GK = _count_bits(low_GK)
        above_GK = rank_GK >= count_GK
        rank_GK = jnp.where(above_GK, rank_GK - count_GK, rank_GK)
        bit_GK = jnp.where(above_GK, bit_GK + width, bit_GK)
        word_GK = jnp.where(above_GK, word_GK >> width, low_GK)
    return 32 * at_GK + bit_GK


def _count_bits(word_GK):
    return lax.population_count(word_GK).astype(jnp.int32)


def has_triton() -> bool:
    """Whether this version of JAX has the Triton backend of Pallas."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)
