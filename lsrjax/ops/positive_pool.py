"""The positive part of the pooled vocabulary projection, without a gradient.

A sparse head's weights are `log1p(relu(max over tokens of the logits))`, and about 1 %
of the terms are above 0. The projection in bfloat16, for which processors have units
many times as fast, shows which these may be: a term whose logit is further below 0 than
rounding explains is 0 in float32 as well. The others are projected again in float32, so
that the result is that of the plain projection.

Axes: B texts, L tokens, D hidden, V vocabulary (or one shard of it), K compacted
entries, P terms of a block.
"""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lsrjax.ops import hardware
from lsrjax.ops.parts import by_part
from lsrjax.ops.vocab_pool import ceil_div, fold_nonzero, start_of, vocab_pool

# The relative error of a factor rounded to bfloat16.
_ROUNDED = 2.0**-9
# For norms and bounds, which are rounded too.
_SLACK = 1.001
# Above this share of terms that might be positive, it costs less to project all.
_DENSE_ABOVE = 0.2
# Terms of a text that are projected again together; limits the gathered rows.
_AT_ONCE = 256
# Below this number of tokens, selecting costs more than it saves.
_FEW_TOKENS = 256


def positive_pool(
    h: jax.Array,
    w_VD: jax.Array,
    b_V: jax.Array,
    mask: jax.Array | Sequence[jax.Array],
    *,
    impl: str = "auto",
    block: int = 512,
) -> jax.Array:
    """Returns relu(max over tokens of `h @ w.T + b`), as `vocab_pool` would.

    With x' for x in bfloat16, |x - x'| <= r |x| for each entry, r = 2^-9. So by
    Cauchy-Schwarz |h w - h' w'| <= (2 r + r^2) |h| |w|, to which the two sums in
    float32 add at most D 2^-23 |h| |w|. A term whose maximum in bfloat16 is below 0 by
    more than that, with the largest |h| of the text, is 0.

    Args:
      h: hidden states, [B, L, D], or of all parts end to end, [T, D].
      w_VD: one row per vocabulary term.
      mask: non-zero at tokens, zero at padding: [B, L], or one such array for each
        part. A text without a token gets 0.
      impl: 'screened', as above; 'plain', `vocab_pool`; or 'auto', 'screened' if the
        states are float32, of at least 256 tokens, and the processor multiplies
        matrices in bfloat16.

    Returns:
      [B, V] float32. NaN where `vocab_pool` gives NaN.

    Raises:
      ValueError: an unknown `impl`.
    """
    if impl not in ("auto", "screened", "plain"):
        raise ValueError(f"impl is {impl!r}; expected 'auto', 'screened' or 'plain'.")

    def one_part(h_BLD, mask_BL):
        return _one_part(h_BLD, w_VD, b_V, mask_BL, impl, block)

    return by_part(one_part, h, mask)


def _one_part(h_BLD, w_VD, b_V, mask_BL, impl, block):
    if impl == "auto":
        many = h_BLD.shape[0] * h_BLD.shape[1] >= _FEW_TOKENS
        fast = many and h_BLD.dtype == jnp.float32 and has_bfloat16_unit()
        impl = "screened" if fast else "plain"

    def plain(h_BLD):
        return jax.nn.relu(vocab_pool(h_BLD, w_VD, b_V, mask_BL)[0])

    if impl == "plain":
        return plain(h_BLD)
    V, D = w_VD.shape
    w_VD, b_V, real_BL = jnp.asarray(w_VD), jnp.asarray(b_V), jnp.asarray(mask_BL) != 0
    # Padding repeats a token of the text, which changes no maximum.
    first_B11 = jnp.argmax(real_BL, axis=1)[:, None, None]
    token_B1D = jnp.take_along_axis(h_BLD, first_B11, axis=1)
    h_BLD = jnp.where(real_BL[:, :, None], h_BLD, token_B1D)
    top_BV = _top_in_bfloat16(h_BLD, w_VD, min(block, V)) + b_V
    share = _SLACK * (2 * _ROUNDED + _ROUNDED**2 + D * 2.0**-23)
    long_B = jnp.linalg.norm(h_BLD, axis=2).max(axis=1)
    long_V = jnp.linalg.norm(w_VD, axis=1)
    # NaN is not below anything.
    maybe_BV = ~(top_BV < -share * long_B[:, None] * long_V)
    maybe_BV &= real_BL.any(axis=1)[:, None]
    exact = functools.partial(_exact, w_VD, b_V, maybe_BV)
    dense = maybe_BV.mean(dtype=jnp.float32) > _DENSE_ABOVE
    return lax.cond(dense, plain, exact, h_BLD)


def _top_in_bfloat16(h_BLD, w_VD, block: int) -> jax.Array:
    """Max over tokens of h @ w.T, [B, V]."""
    V = len(w_VD)
    h_BLD = h_BLD.astype(jnp.bfloat16)

    def project(i, top_BV):
        start = start_of(i, block, V)
        w_PD = lax.dynamic_slice_in_dim(w_VD, start, block)
        # The units need a matrix of rows; without the barrier XLA folds this away.
        w_DP = lax.optimization_barrier(w_PD.astype(jnp.bfloat16).T)
        tile_BLP = jnp.einsum(
            "bld,dp->blp", h_BLD, w_DP, preferred_element_type=jnp.float32
        )
        return lax.dynamic_update_slice_in_dim(top_BV, tile_BLP.max(axis=1), start, 1)

    empty = jnp.zeros((len(h_BLD), V), jnp.float32)
    return lax.fori_loop(0, ceil_div(V, block), project, empty)


def _exact(w_VD, b_V, maybe_BV, h_BLD) -> jax.Array:
    """The chosen terms in float32, 0 elsewhere."""
    # XLA's max on CPU drops NaN.
    wrong_B = jnp.where(jnp.isfinite(h_BLD).all(axis=(1, 2)), 0.0, jnp.nan)
    rows_B1 = jnp.arange(len(h_BLD))[:, None]

    def add(entry_BK, live_BK, found_BV):
        w_BKD = w_VD[entry_BK]
        logits_BKL = jnp.einsum("bkd,bld->bkl", w_BKD, h_BLD)
        wrong_BK = wrong_B[:, None] + (w_BKD * 0).sum(axis=2)
        top_BK = logits_BKL.max(axis=2) + b_V[entry_BK] + wrong_BK
        # Rows are filled up with copies of their last entry.
        top_BK = jnp.where(live_BK, jax.nn.relu(top_BK), 0.0)
        return found_BV.at[rows_B1, entry_BK].add(top_BK)

    nothing_BV = jnp.zeros(maybe_BV.shape, jnp.float32)
    return fold_nonzero(maybe_BV, add, nothing_BV, _AT_ONCE)


def has_bfloat16_unit() -> bool:
    """Whether this program computes on a processor with AMX."""
    return hardware.device().platform == "cpu" and _amx()


@functools.cache
def _amx() -> bool:
    try:
        return " amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
