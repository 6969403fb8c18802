import collections

import numpy as np
import pytest

from lsrjax.config.nodes import entry
from lsrjax.data.batching.negatives import SAMPLERS, Choice, sampler
from lsrjax.data.examples import Group
from lsrjax.errors import InputError


def group(positive_scores, negative_scores, scored=True):
    scores = np.array([*positive_scores, *negative_scores], np.float32)
    return Group(
        id="row 7",
        query={"en": "q"},
        positives=[{"en": f"p{i}"} for i in range(len(positive_scores))],
        negatives=[{"en": f"n{i}"} for i in range(len(negative_scores))],
        scores=scores if scored else None,
    )


def draws(choice, example, size, count=400):
    return [choice(example, size, np.random.default_rng(seed)) for seed in range(count)]


def shares(chosen, first):
    """How often each negative was chosen."""
    counts = collections.Counter(place - first for row in chosen for place in row)
    return np.array([counts[i] / len(chosen) for i in range(max(counts) + 1)])


TEN = group([9.0, 8.0], np.linspace(7, 1, 10))


@pytest.mark.parametrize("negatives", SAMPLERS)
@pytest.mark.parametrize("positives", [1, 2])
def test_positives_then_distinct_negatives(negatives, positives):
    choice = Choice(sampler(negatives), positives)
    for size in (positives + 1, positives + 4, positives + 10):
        for row in draws(choice, TEN, size, 30):
            assert len(set(row)) == len(row) == size
            assert all(place < 2 for place in row[:positives])
            assert all(2 <= place < 12 for place in row[positives:])
        assert draws(choice, TEN, size, 30) == draws(choice, TEN, size, 30)
    # Each of the positives comes first.
    assert {row[0] for row in draws(choice, TEN, 3, 30)} == {0, 1}


@pytest.mark.parametrize("negatives", SAMPLERS)
def test_a_positive_alone(negatives):
    assert Choice(sampler(negatives))(
        group([1.0], []), 1, np.random.default_rng(0)
    ) == [0]


def test_the_first_negatives():
    for row in draws(Choice(sampler("top")), TEN, 5, 20):
        assert row[1:] == [2, 3, 4, 5]


def test_by_rank_the_odds_fall_evenly():
    chosen = [
        row[1:]
        for row in draws(Choice(sampler(entry("rank", scale=2.0))), TEN, 2, 4000)
    ]
    expected = np.exp(-np.arange(10) / 2)
    expected *= 4000 / expected.sum()
    # 27.9 is the 99.9 % point of chi-square with nine degrees of freedom.
    assert ((shares(chosen, 2) * 4000 - expected) ** 2 / expected).sum() < 27.9
    # No odds are too long where nothing else is left.
    steep = Choice(sampler(entry("rank", scale=1e-3)))
    assert draws(steep, TEN, 11, 1)[0][1:] == list(range(2, 12))


def test_by_rank_as_given_whatever_is_filtered():
    """The first two are filtered out: the third is no likelier for that."""
    example = group([9.0], [8.9, 8.9, 1, 1, 1])
    choice = Choice(sampler(entry("rank", scale=1.0)), margin=1.0)
    found = shares([row[1:] for row in draws(choice, example, 2, 2000)], 1)
    expected = np.exp(-np.arange(2, 5))
    assert found[:2].tolist() == [0, 0]
    np.testing.assert_allclose(found[2:], expected / expected.sum(), atol=0.04)


def test_margins_are_balanced():
    # Margins 0 to 1 (eight of them), 5 and 10: three of five bins have any.
    example = group([10.0], [10 - m for m in [*np.linspace(0, 1, 8), 5, 10]])
    chosen = [
        row[1:]
        for row in draws(
            Choice(sampler(entry("margin_bins", bins=5))), example, 2, 4000
        )
    ]
    expected = np.array([1 / 24] * 8 + [1 / 3] * 2)
    found = shares(chosen, 1)
    assert ((found - expected) ** 2 / expected).sum() * 4000 < 27.9
    # A bin that is empty is not drawn again: the rest are then as likely as each other.
    chosen = [
        row[2:]
        for row in draws(
            Choice(sampler(entry("margin_bins", bins=5))), example, 3, 4000
        )
    ]
    found = shares(chosen, 1)
    np.testing.assert_allclose(found[8:], 1 / 3 / 3 + 1 / 3 / 2, atol=0.03)
    # The largest margin is in the last bin, with 8.5.
    ends = group([10.0], [10.0, 1.5, 0.0])
    chosen = [
        r[1:]
        for r in draws(Choice(sampler(entry("margin_bins", bins=5))), ends, 2, 2000)
    ]
    np.testing.assert_allclose(shares(chosen, 1), [1 / 2, 1 / 4, 1 / 4], atol=0.04)
    # Negatives that all score the same are one bin.
    same = group([3.0], [1.0] * 6)
    found = shares(
        [r[1:] for r in draws(Choice(sampler("margin_bins")), same, 2, 2000)], 1
    )
    np.testing.assert_allclose(found, 1 / 6, atol=0.04)


@pytest.mark.parametrize("negatives", SAMPLERS)
def test_false_negatives_are_left_out(negatives):
    by_score = Choice(sampler(negatives), max_score=3.0)
    by_margin = Choice(sampler(negatives), margin=2.5)
    both = Choice(sampler(negatives), max_score=6.0, margin=2.5)
    example = group([8.0, 7.0], [9.0, 6.5, 5.5, 4.5, 3.0, 1.0])
    # Against the positive that is drawn: 5.5 = 8 - 2.5, 4.5 = 7 - 2.5.
    allowed = {by_score: {0: {6, 7}, 1: {6, 7}}, by_margin: {0: {4, 5, 6, 7}}}
    allowed[by_margin][1] = {5, 6, 7}
    allowed[both] = allowed[by_margin]
    for choice, by_positive in allowed.items():
        found = collections.defaultdict(set)
        for row in draws(choice, example, 3):
            found[row[0]].update(row[1:])
        for positive, places in found.items():
            assert places <= by_positive[positive]
            assert places == by_positive[positive] or negatives == "top"
    # Of several positives the lowest one counts.
    rows = draws(Choice(sampler(negatives), 2, margin=2.5), example, 4)
    assert set().union(*(row[2:] for row in rows)) <= {5, 6, 7}


def test_too_few_documents_name_the_example():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"row 7: 10 negatives, but .* needs 11.*mine"):
        Choice()(TEN, 12, rng)
    message = (
        r"row 7: 10 negatives, 2 of them within data.negative_max_score = 2 and"
        r" data.negative_margin = -inf, but a group of 4 documents needs 3\..*loosen"
    )
    with pytest.raises(InputError, match=message):
        Choice(max_score=2.0)(TEN, 4, rng)
    with pytest.raises(
        InputError, match="row 7: 2 positives, but .*positives asks for 3"
    ):
        Choice(positives=3)(TEN, 5, rng)


@pytest.mark.parametrize(
    "choice",
    [Choice(sampler("margin_bins")), Choice(max_score=1.0), Choice(margin=0.0)],
)
def test_missing_scores_name_the_example(choice):
    bare = group([1.0], [1.0, 2.0], scored=False)
    with pytest.raises(InputError, match="row 7: no teacher scores .*prepare.scores"):
        choice(bare, 2, np.random.default_rng(0))
    assert not Choice(sampler("rank")).needs_scores
