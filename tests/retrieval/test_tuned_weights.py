"""Weights of fused rankings are the best of their grid."""

import itertools

import pytest

from lsrjax.retrieval.tuned_weights import WEIGHTS, best


def test_the_best_of_two_is_that_of_the_whole_grid():
    def value(weights):
        return -abs(weights[1] / weights[0] - 0.29)

    assert best(2, value) == [1.0, max(WEIGHTS, key=lambda w: value([1.0, w]))]


def test_of_three_no_single_change_is_better():
    def value(weights):
        _, a, b = weights
        return -((a - 0.1) ** 2) - (b - 3) ** 2 - 0.1 * abs(a - b)

    found = best(3, value)
    changes = itertools.product((1, 2), WEIGHTS)
    for place, weight in changes:
        other = [*found[:place], weight, *found[place + 1 :]]
        assert value(other) <= value(found)


@pytest.mark.parametrize("count", [2, 4])
def test_weights_that_change_nothing_stay(count):
    assert best(count, lambda weights: 0.5) == [1.0] * count
