"""IBM Model 1 against the textbook's loops."""

import collections

import numpy as np
import pytest

from lsrjax.initial.word_translations import translation_table

# das Haus, das Buch, ein Buch, and a text with a repeated word.
SOURCE = [[1, 2], [1, 4], [5, 4], [1, 2, 1, 6]]
TARGET = [[0, 3], [0, 2], [6, 2], [0, 3, 5]]
SIZES = (8, 7)


def em(pairs, iterations):
    """Expected counts and their normalisation, one cell after the other."""
    p = collections.defaultdict(lambda: 1.0)
    for _ in range(iterations):
        counts = collections.Counter()
        for left, right in pairs:
            for word in right:
                total = sum(p[s, word] for s in left)
                for s in left:
                    counts[s, word] += p[s, word] / total
        totals = collections.Counter()
        for (s, _), count in counts.items():
            totals[s] += count
        p = {cell: count / totals[cell[0]] for cell, count in counts.items()}
    table = np.zeros(SIZES)
    for cell, value in p.items():
        table[cell] = value
    return table


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_is_the_em_of_model_1(iterations):
    found = translation_table(SOURCE, TARGET, *SIZES, iterations=iterations)
    expected = em(list(zip(SOURCE, TARGET, strict=True)), iterations)
    assert found.dtype == np.float32 and found.shape == SIZES
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)


def test_rows_are_distributions_and_tokens_that_never_occur_have_none():
    sums = translation_table(SOURCE, TARGET, *SIZES).sum(axis=1)
    np.testing.assert_allclose(np.ravel(sums), [0, 1, 1, 0, 1, 1, 1, 0], rtol=1e-6)


def test_em_finds_which_word_is_which():
    best = translation_table(SOURCE, TARGET, *SIZES, iterations=30).argmax(axis=1)
    assert [best[s, 0] for s in (1, 2, 4, 5)] == [0, 3, 2, 6]


def test_pairs_beyond_the_limit_are_left_out():
    # The first two pairs have four cells each.
    for limit, pairs in ((8, 2), (11, 2), (12, 3)):
        found = translation_table(SOURCE, TARGET, *SIZES, max_cells=limit)
        few = translation_table(SOURCE[:pairs], TARGET[:pairs], *SIZES)
        assert (found != few).nnz == 0
    assert translation_table(SOURCE, TARGET, *SIZES, max_cells=3).nnz == 0


def test_texts_without_tokens_and_no_texts_explain_nothing():
    found = translation_table([[], *SOURCE, [3]], [[4], *TARGET, []], *SIZES)
    assert (found != translation_table(SOURCE, TARGET, *SIZES)).nnz == 0
    for nothing in ([], [[]]):
        table = translation_table(nothing, nothing, *SIZES)
        assert table.shape == SIZES and table.nnz == 0
