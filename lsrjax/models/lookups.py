"""Parts of heads that look tokens up in tables, whatever their context.

What a small encoder cannot keep, a table can: the translations of each token, and the
characters that two spellings share.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.models.layers import Fixed
from lsrjax.models.texts import Texts
from lsrjax.models.views import Vector

# Lengths of the n-grams, in characters; short ones match too much, and longer ones are
# words, which the tokens are.
SIZES = (3, 4)
# Characters of a token that are read; the rest of a longer one is left out.
CHARACTERS = 16
# Of the hash, see `hashed`.
_BASE, _MIXER = 1_000_003, 0x2C1B_3C6D


def sharded(rows: int, size: int) -> jax.Array:
    """Zeros, [rows, size and what the devices of the vocabulary need to divide it]."""
    width = size + -size % sharding.axis_size(sharding.MODEL)
    return jnp.zeros((rows, width), jnp.float32)


class Dictionary(nnx.Module):
    """Terms of another vocabulary that each token brings along, with learned weights.

    A text's logit of a term is the largest of its tokens' weights for it, as those of
    the encoder are maxima over tokens, and 0 for a term that no token brings.
    """

    def __init__(self, tokens: int, terms: int, *, size: int):
        """`terms` for each of `tokens`, of a vocabulary of `size`; all 0 at first."""
        self.terms = Fixed(jnp.zeros((tokens, terms)))
        self.weights = nnx.Param(jnp.zeros((tokens, terms)))
        self.size = size

    def __call__(self, texts: Texts) -> jax.Array:
        """The logits, [B, size] float32, >= 0."""
        ids_BL = texts.padded(texts.ids)
        mask_BL = texts.padded(texts.mask).astype(bool)
        terms_BLK = self.terms[...].astype(jnp.int32)[ids_BL]
        weights_BLK = jax.nn.relu(self.weights[...][ids_BL])
        weights_BLK = jnp.where(mask_BL[:, :, None], weights_BLK, 0.0)
        rows_B11 = jnp.arange(len(ids_BL))[:, None, None]
        logits_BV = sharded(len(ids_BL), self.size)
        logits_BV = logits_BV.at[rows_B11, terms_BLK].max(weights_BLK)
        return sharding.constrain(logits_BV, sharding.DATA, sharding.MODEL)


class Ngrams(nnx.Module):
    """A view of a text's character n-grams, which share columns by a hash.

    An n-gram that a text has weighs what its column has learned, however often it
    occurs. Spellings that differ, names that are cut into other tokens, and words that
    two languages took from a third are found by them (McNamee and Mayfield 2004).

    Tokens without characters, such as special ones, are passed over.
    """

    def __init__(self, tokens: int, columns: int):
        """Weights start at 0."""
        self.characters = Fixed(jnp.zeros((tokens, CHARACTERS)))
        self.weights = nnx.Param(jnp.zeros(columns))
        self.size = columns

    def __call__(self, texts: Texts) -> Vector:
        """The view; its weights are also the raw values."""
        ids_BL = texts.padded(texts.ids)
        keep_BL = texts.padded(texts.mask).astype(bool)
        columns_BN = hashed(self.characters[...], ids_BL, keep_BL, self.size)
        weights_BN = jax.nn.relu(self.weights[...])[columns_BN]
        weights_BN = jnp.where(columns_BN < 0, 0.0, weights_BN)
        rows_B1 = jnp.arange(len(ids_BL))[:, None]
        found_BV = sharded(len(ids_BL), self.size)
        found_BV = found_BV.at[rows_B1, columns_BN].max(weights_BN)
        found_BV = sharding.constrain(found_BV, sharding.DATA, sharding.MODEL)
        return Vector(found_BV, found_BV)


def hashed(characters_VC, ids_BL, keep_BL, columns: int) -> jax.Array:
    """The columns of the n-grams of each text, [B, N] int32; -1 is none.

    N is `len(SIZES) * L * C`. Of an n-gram of code points c, the hash is h = 0, then
    h = 1,000,003 h + c for each of them, and h ^= h >> 15, h *= 0x2C1B3C6D,
    h ^= h >> 12, all modulo 2^32; its column is h modulo `columns`.

    Args:
      characters_VC: code points of each token's characters, 0 behind the last one.
      ids_BL: tokens.
      keep_BL: which of them are no padding.
      columns: of the view.
    """
    B, L = ids_BL.shape
    T = L * characters_VC.shape[1]
    chars_BLC = characters_VC.astype(jnp.int32)[ids_BL]
    chars_BT = jnp.where(keep_BL[:, :, None], chars_BLC, 0).reshape(B, T)
    # The characters side by side, without what tokens lack.
    place_BT = jnp.where(chars_BT > 0, jnp.cumsum(chars_BT > 0, axis=1) - 1, T)
    rows_B1 = jnp.arange(B)[:, None]
    text_BT = jnp.zeros((B, T), jnp.uint32)
    text_BT = text_BT.at[rows_B1, place_BT].set(
        chars_BT.astype(jnp.uint32), mode="drop"
    )
    found, hash_BT = [], jnp.zeros((B, T), jnp.uint32)
    for n in range(max(SIZES)):
        next_BT = jnp.pad(text_BT[:, n:], ((0, 0), (0, n)))
        hash_BT = hash_BT * jnp.uint32(_BASE) + next_BT
        if n + 1 in SIZES:
            mixed_BT = (hash_BT ^ (hash_BT >> 15)) * jnp.uint32(_MIXER)
            mixed_BT ^= mixed_BT >> 12
            column_BT = (mixed_BT % jnp.uint32(columns)).astype(jnp.int32)
            # Behind the last character there is none.
            found.append(jnp.where(next_BT > 0, column_BT, -1))
    return jnp.concatenate(found, axis=1)
