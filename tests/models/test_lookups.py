"""Tables of tokens: their lookups equal plain Python's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.models.lookups import CHARACTERS, SIZES, Dictionary, Ngrams, hashed
from lsrjax.models.texts import Texts

TOKENS = ["", " puzzle", "ズ", "", " a", "bc", "d", "漢字かな交じり文の長い単語です"]
COLUMNS = 101


def characters():
    table = np.zeros((len(TOKENS), CHARACTERS), np.float32)
    for row, token in zip(table, TOKENS, strict=True):
        points = [*map(ord, token[:CHARACTERS])]
        row[: len(points)] = points
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


def test_an_ngram_weighs_its_column_once_and_negative_weights_nothing():
    view = Ngrams(len(TOKENS), COLUMNS)
    weights = np.random.default_rng(0).normal(size=COLUMNS).astype(np.float32)
    view.characters[...], view.weights[...] = characters(), weights
    found = np.asarray(view(Texts.of([padded(ROWS)])).weights_BV)
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
    found = np.asarray(table(Texts.of([padded(ROWS)])))
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
    whole = Texts.of([padded(ROWS)])
    for part in (view, table):
        one, other = (jax.tree.leaves(part(t))[0] for t in (whole, Texts.of(parts)))
        np.testing.assert_array_equal(one, other)
