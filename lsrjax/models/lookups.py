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
# Of a word that `Stems` looks up, in characters.
LETTERS = 5
# Classes of characters, see `stems`: 0 separates words. The class stands above all
# code points, and a float32 holds both.
LETTER, LATIN, UNSPACED, MARK = 1, 2, 3, 4
CLASS = 2**21
# Of the hash, see `hashed`.
BASE, MIXER = 1_000_003, 0x2C1B_3C6D


def sharded(rows: int, size: int) -> jax.Array:
    """Zeros, [rows, size and what the devices of the vocabulary need to divide it]."""
    width = size + -size % sharding.axis_size(sharding.MODEL)
    return jnp.zeros((rows, width), jnp.float32)


class Dictionary(nnx.Module):
    """Terms of another vocabulary that each token brings along, with learned weights.

    A text's logit of a term is the largest of its tokens' weights for it, as those of
    the encoder are maxima over tokens, and 0 for a term that no token brings.
    """

    def __init__(self, keys: int, terms: int, *, size: int):
        """`terms` for each of `keys`, of a vocabulary of `size`; all 0 at first."""
        self.terms = Fixed(jnp.zeros((keys, terms)))
        self.weights = nnx.Param(jnp.zeros((keys, terms)))
        self.size = size

    def keys(self, texts: Texts) -> jax.Array:
        """What a text has of them, [B, N] int32; -1 is none."""
        mask_BL = texts.padded(texts.mask).astype(bool)
        return jnp.where(mask_BL, texts.padded(texts.ids), -1)

    def __call__(self, texts: Texts) -> jax.Array:
        """The logits, [B, size] float32, >= 0."""
        keys_BN = self.keys(texts)
        terms_BNK = self.terms[...].astype(jnp.int32)[keys_BN]
        weights_BNK = jax.nn.relu(self.weights[...][keys_BN])
        weights_BNK = jnp.where(keys_BN[:, :, None] < 0, 0.0, weights_BNK)
        rows_B11 = jnp.arange(len(keys_BN))[:, None, None]
        logits_BV = sharded(len(keys_BN), self.size)
        logits_BV = logits_BV.at[rows_B11, terms_BNK].max(weights_BNK)
        return sharding.constrain(logits_BV, sharding.DATA, sharding.MODEL)


class Stems(Dictionary):
    """Terms that each word's beginning brings along, by a hash of its letters.

    Most forms of a word begin alike, but are cut into different tokens, which mean
    little by themselves. The first letters are a simple stem for any language
    (McNamee and Mayfield 2004, "truncation").
    """

    def __init__(self, tokens: int, buckets: int, terms: int, *, size: int):
        """`terms` for each of `buckets`, see `Dictionary`."""
        super().__init__(buckets, terms, size=size)
        self.characters = Fixed(jnp.zeros((tokens, CHARACTERS)))

    def keys(self, texts: Texts) -> jax.Array:
        """The buckets of a text's words, [B, N] int32; -1 is none."""
        ids_BL = texts.padded(texts.ids)
        keep_BL = texts.padded(texts.mask).astype(bool)
        return stems(self.characters[...], ids_BL, keep_BL, len(self.weights[...]))


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
    text_BT = _side_by_side(characters_VC, ids_BL, keep_BL)
    found, hash_BT = [], jnp.zeros(text_BT.shape, jnp.uint32)
    for n in range(max(SIZES)):
        next_BT = jnp.pad(text_BT[:, n:], ((0, 0), (0, n)))
        hash_BT = hash_BT * jnp.uint32(BASE) + next_BT
        if n + 1 in SIZES:
            column_BT = _mixed(hash_BT, columns)
            # Behind the last character there is none.
            found.append(jnp.where(next_BT > 0, column_BT, -1))
    return jnp.concatenate(found, axis=1)


def stems(characters_VC, ids_BL, keep_BL, buckets: int) -> jax.Array:
    """The buckets of the beginnings of each text's words, [B, L C] int32; -1 is none.

    A word is a run of letters of one class; its beginning is the first `LETTERS` of
    them, or the word. Scripts without spaces have a word of two characters at each of
    them. The hash is that of `hashed`.

    Args:
      characters_VC: code points of each token's characters + `CLASS` times the class of
        each, 0 behind the last one.
      ids_BL: tokens.
      keep_BL: which of them are no padding.
      buckets: how many there are.
    """
    text_BT = _side_by_side(characters_VC, ids_BL, keep_BL)
    class_BT, text_BT = text_BT // CLASS, text_BT % CLASS
    before_BT = jnp.pad(class_BT[:, :-1], ((0, 0), (1, 0)))
    goes_on_BT = (class_BT == before_BT) | (before_BT == MARK)
    unspaced_BT = class_BT == UNSPACED
    first_BT = (class_BT > 0) & (class_BT != MARK) & (unspaced_BT | ~goes_on_BT)
    hash_BT, inside_BT = jnp.zeros(text_BT.shape, jnp.uint32), first_BT
    for n in range(LETTERS):
        following_BT = jnp.pad(class_BT[:, n:], ((0, 0), (0, n)))
        inside_BT &= (following_BT == class_BT) | (following_BT == MARK)
        inside_BT &= ~unspaced_BT | (n < 2)
        next_BT = jnp.pad(text_BT[:, n:], ((0, 0), (0, n)))
        longer_BT = hash_BT * jnp.uint32(BASE) + next_BT
        hash_BT = jnp.where(inside_BT, longer_BT, hash_BT)
        if n == 1:
            # The last character of a run is in a pair already.
            first_BT &= ~unspaced_BT | inside_BT | (before_BT != UNSPACED)
    return jnp.where(first_BT, _mixed(hash_BT, buckets), -1)


def _side_by_side(characters_VC, ids_BL, keep_BL) -> jax.Array:
    """The characters of each text, without what tokens lack, [B, L C] uint32."""
    B, L = ids_BL.shape
    T = L * characters_VC.shape[1]
    chars_BLC = characters_VC.astype(jnp.int32)[ids_BL]
    chars_BT = jnp.where(keep_BL[:, :, None], chars_BLC, 0).reshape(B, T)
    place_BT = jnp.where(chars_BT > 0, jnp.cumsum(chars_BT > 0, axis=1) - 1, T)
    text_BT = jnp.zeros((B, T), jnp.uint32)
    rows_B1 = jnp.arange(B)[:, None]
    return text_BT.at[rows_B1, place_BT].set(chars_BT.astype(jnp.uint32), mode="drop")


def _mixed(hash_BT: jax.Array, columns: int) -> jax.Array:
    """The columns of hashes, int32."""
    mixed_BT = (hash_BT ^ (hash_BT >> 15)) * jnp.uint32(MIXER)
    mixed_BT ^= mixed_BT >> 12
    return (mixed_BT % jnp.uint32(columns)).astype(jnp.int32)
