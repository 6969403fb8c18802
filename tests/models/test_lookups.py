"""Tables of tokens: their lookups equal plain Python's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsrjax.models import lookups
from lsrjax.models.lookups import (
    CHARACTERS,
    CLASS,
    LATIN,
    LETTER,
    LETTERS,
    MARK,
    SIZES,
    UNSPACED,
    Dictionary,
    Ngrams,
    Stems,
)
from lsrjax.models.texts import Texts

hashed, stems = (jax.jit(f, static_argnums=3) for f in (lookups.hashed, lookups.stems))
TOKENS = ["", " puzzle", "ズ", "", " a", "bc", "d", "漢字かな交じり文の長い単語です"]
COLUMNS = 101


@nnx.jit
def of(module, parts):
    """What a module of texts gives for these parts of them."""
    return module(Texts.of(parts))


def characters():
    table = np.zeros((len(TOKENS), CHARACTERS), np.float32)
    for row, token in zip(table, TOKENS, strict=True):
        points = [*map(ord, token[:CHARACTERS])]
        row[: len(points)] = points
    return table


KINDS = {
    UNSPACED: r"[\u3040-\u30ff\u3400-\u9fff]",
    LATIN: "[a-z0-9]",
    MARK: "\u0301",
    LETTER: r"[а-я가-힣]",
}


def letters(tokens):
    """The table of `stems`."""
    table = np.zeros((len(tokens), CHARACTERS), np.float32)
    for row, token in zip(table, tokens, strict=True):
        for place, char in enumerate(token[:CHARACTERS]):
            kinds = (k for k, those in KINDS.items() if re.match(those, char))
            row[place] = ord(char) + CLASS * next(kinds, 0)
    return table


def column(gram):
    """By the docstring of `hashed`, with numbers that never overflow."""
    h = 0
    for char in gram:
        h = (1_000_003 * h + ord(char)) % 2**32
    h = (h ^ (h >> 15)) * 0x2C1B3C6D % 2**32
    return (h ^ (h >> 12)) % COLUMNS


def columns_of(ids):
    text = "".join(TOKENS[i] for i in ids)
    grams = (text[i : i + n] for n in SIZES for i in range(len(text) - n + 1))
    return {column(gram) for gram in grams}


# A token without characters in between, too few characters, none, a long token.
ROWS = [[1, 2, 3, 4, 5, 6], [5, 6], [3, 3], [7, 7, 1], [6]]


def padded(rows, length=7, pad=5):
    """The padding's token has characters, which must not count."""
    ids = np.array([row + [pad] * (length - len(row)) for row in rows], np.int32)
    mask = np.arange(length) < np.array([[len(row)] for row in rows])
    return {"ids": ids, "mask": mask.astype(np.int32)}


def test_ngrams_are_those_of_the_characters_side_by_side():
    batch = padded(ROWS)
    keep = batch["mask"].astype(bool)
    found = np.asarray(hashed(jnp.asarray(characters()), batch["ids"], keep, COLUMNS))
    for row, ids in zip(found, ROWS, strict=True):
        assert set(row.tolist()) - {-1} == columns_of(ids)


# A word of two tokens, classes side by side, a mark inside, pairs, a single character.
WORDS = {
    (" translat", "ions", " of", ",", "c"): ["trans", "of", "c"],
    (" gnu", "용", "자는"): ["gnu", "용자는"],
    (" по", "ка\u0301зывать"): ["пока\u0301"],
    (" 数学", "に", "基く"): ["数学", "学に", "に基", "基く"],
    (" 猫", " 犬猫x", "y1"): ["猫", "犬猫", "xy1"],
    ("a", "", "  ", "!"): ["a"],
}


def test_stems_are_the_first_letters_of_words():
    tokens = ["pad", *sorted({token for text in WORDS for token in text})]
    rows = [[tokens.index(token) for token in text] for text in WORDS]
    batch = padded(rows, 6, pad=0)
    keep = batch["mask"].astype(bool)
    found = stems(jnp.asarray(letters(tokens)), batch["ids"], keep, COLUMNS)
    for row, expected in zip(np.asarray(found).tolist(), WORDS.values(), strict=True):
        buckets = [bucket for bucket in row if bucket >= 0]
        assert buckets == [column(one[:LETTERS]) for one in expected]


def test_a_word_brings_the_terms_of_its_bucket():
    tokens = ["pad", " puzz", "les", " puzzling", " on"]
    table = Stems(len(tokens), COLUMNS, 2, size=9)
    table.characters[...] = letters(tokens)
    table.terms[column("puzzl")] = jnp.array([3.0, 4.0])
    table.weights[column("puzzl")] = jnp.array([0.5, -1.0])
    found = of(table, [padded([[1, 2], [4, 3], [4], [1]], 2, pad=1)])
    expected = np.zeros((4, 9), np.float32)
    expected[:2, 3] = 0.5
    np.testing.assert_array_equal(found, expected)


def test_an_ngram_weighs_its_column_once_and_negative_weights_nothing():
    view = Ngrams(len(TOKENS), COLUMNS)
    weights = np.random.default_rng(0).normal(size=COLUMNS).astype(np.float32)
    view.characters[...], view.weights[...] = characters(), weights
    found = np.asarray(of(view, [padded(ROWS)]).weights_BV)
    for row, ids in zip(found, ROWS, strict=True):
        expected = np.zeros(COLUMNS, np.float32)
        for i in columns_of(ids):
            expected[i] = max(weights[i], 0)
        np.testing.assert_array_equal(row, expected)


def filled():
    rng = np.random.default_rng(1)
    table = Dictionary(len(TOKENS), 2, size=9)
    table.terms[...] = rng.integers(0, 9, (len(TOKENS), 2)).astype(np.float32)
    table.weights[...] = rng.normal(size=(len(TOKENS), 2)).astype(np.float32)
    return table


def test_a_dictionary_gives_the_largest_weight_of_each_term():
    table = filled()
    terms, weights = (np.asarray(x[...]) for x in (table.terms, table.weights))
    found = np.asarray(of(table, [padded(ROWS)]))
    for row, ids in zip(found, ROWS, strict=True):
        expected = np.zeros(9, np.float32)
        for token in ids:
            for term, weight in zip(terms[token], weights[token], strict=True):
                expected[int(term)] = max(expected[int(term)], weight)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("length", [6, 9])
def test_padding_and_parts_change_nothing(length):
    view, table = Ngrams(len(TOKENS), COLUMNS), filled()
    view.characters[...] = characters()
    view.weights[...] = np.arange(COLUMNS, dtype=np.float32)
    parts = [padded(ROWS[:2], length), padded(ROWS[2:], 3)]
    whole = [padded(ROWS)]
    for part in (view, table):
        one, other = (jax.tree.leaves(of(part, given))[0] for given in (whole, parts))
        np.testing.assert_array_equal(one, other)
