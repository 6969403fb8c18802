"""Texts in parts, and their tokens end to end."""

import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.models.texts import Texts

# (texts, tokens), of other primes each.
PARTS = ((3, 7), (2, 13), (5, 1))
TOKENS = 3 * 7 + 2 * 13 + 5


def arrays(*rest):
    rng = np.random.default_rng(len(rest))
    return [rng.normal(size=(*part, *rest)).astype(np.float32) for part in PARTS]


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return Texts.of(
        [
            {
                "ids": rng.integers(1, 9, part),
                "mask": rng.integers(0, 2, part).astype(np.int32),
                "query": rng.integers(0, 2, part[0]).astype(bool),
            }
            for part in PARTS
        ]
    )


def test_masks_are_boolean_and_queries_may_be_left_out(texts):
    assert [mask.dtype for mask in texts.mask] == [bool] * 3
    assert [len(query) for query in texts.query] == [3, 2, 5]
    parts = [{"ids": i, "mask": m} for i, m in zip(texts.ids, texts.mask, strict=True)]
    assert Texts.of(parts).query is None


@pytest.mark.parametrize("rest", [(), (4,), (2, 3)])
def test_tokens_go_end_to_end_and_back(texts, rest):
    parts = arrays(*rest)
    x = texts.join(map(jnp.asarray, parts))
    assert x.shape == (TOKENS, *rest)
    wanted = np.concatenate([part.reshape(-1, *rest) for part in parts])
    np.testing.assert_array_equal(x, wanted)
    for found, part in zip(texts.split(x), parts, strict=True):
        np.testing.assert_array_equal(found, part)


def test_texts_go_end_to_end(texts):
    rows = [part[:, 0] for part in arrays(4)]
    np.testing.assert_array_equal(texts.together(rows), np.concatenate(rows))


@pytest.mark.parametrize("rest", [(), (4,)])
def test_short_parts_are_filled_up_with_zeros(texts, rest):
    parts = arrays(*rest)
    found = np.asarray(texts.padded(map(jnp.asarray, parts)))
    assert found.shape == (10, 13, *rest)
    first = 0
    for part in parts:
        own = found[first : first + len(part)]
        np.testing.assert_array_equal(own[:, : part.shape[1]], part)
        assert not own[:, part.shape[1] :].any()
        first += len(part)


def test_each_part_is_given_its_own_of_all_arrays(texts):
    parts, more = arrays(4), arrays()
    found = texts.each(
        lambda x, y: (x.shape, float((x.sum(axis=2) * y).sum())),
        texts.join(map(jnp.asarray, parts)),
        texts.join(map(jnp.asarray, more)),
    )
    for (shape, value), x, y in zip(found, parts, more, strict=True):
        assert shape == x.shape
        assert value == pytest.approx((x.sum(axis=2) * y).sum(), rel=1e-4)
