"""What a stage starts from: the texts that statistics are taken from."""

import pytest

from lsrjax import build


@pytest.mark.parametrize(("count", "sizes"), [(3, [3]), (4, [4]), (9, [4, 4])])
def test_few_texts_are_one_batch_and_many_are_full_ones(count, sizes):
    texts = [[str(i) for i in range(count // 2)], ["x"] * (count - count // 2)]
    assert [len(batch) for batch in build._batches(texts, 4)] == sizes


def test_a_sample_is_spread_over_languages_and_texts():
    texts = {"en": [str(i) for i in range(101)], "ja": ["a", "b"]}
    assert build._sample(texts, 10) == {
        "en": ["0", "25", "50", "75", "100"],
        "ja": ["a", "b"],
    }
