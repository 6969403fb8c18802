"""Tables of shapes against all ways to cut, and texts that come out as they went in."""

import itertools

import numpy as np
import pytest

from lsrjax.data.batching.length_shapes import Shape, cut, fit

# Of 5 texts, two of them alike.
LENGTHS = [3, 11, 1, 12, 3]


def skewed(rng, samples, n, longest):
    """Lengths as texts have them: most are short."""
    return np.minimum(rng.geometric(0.15, (samples, n)), longest)


def allowances(shape):
    """The tokens that each text may have, ascending."""
    return np.repeat([tokens for _, tokens in shape.parts], [n for n, _ in shape.parts])


def all_cuts(tokens_n, parts, chunks=1):
    """The slots of every way to cut ascending texts into at most so many parts.

    All parts but the first divide by `chunks`.
    """
    n = len(tokens_n)
    for count in range(parts):
        for inner in itertools.combinations(range(1, n), count):
            ends = (*inner, n)
            starts = (0, *inner)
            sizes = [end - start for start, end in zip(starts, ends, strict=True)]
            if any(size % chunks for size in sizes[1:]):
                continue
            yield sum(
                size * tokens_n[end - 1] for size, end in zip(sizes, ends, strict=True)
            )


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_cut_is_the_best_of_all(parts, multiple):
    rng = np.random.default_rng(parts)
    for n in (1, 2, 5, 7):
        for longest in (6, 30):
            # Samples that are alike, so that most of them are all of them.
            (lengths,) = skewed(rng, 1, n, longest)
            table = fit(np.tile(lengths, (3, 1)), 41, parts=parts, multiple=multiple)
            padded = -(-np.sort(lengths) // multiple) * multiple
            assert table[0].slots == min(all_cuts(padded, parts))
            assert len(table[0].parts) <= parts
            assert table[0].holds(np.sort(lengths))


@pytest.mark.parametrize("chunks", [2, 3, 5])
@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_parts_divide_as_far_as_the_texts_do(parts, chunks):
    """The first part takes what is left over; the cut is the best of all those."""
    rng = np.random.default_rng(chunks)
    several = 0
    for n in (1, 2, 4, 6, 7, 9, 11):
        for _ in range(4):
            (lengths,) = skewed(rng, 1, n, 30)
            options = {"parts": parts, "multiple": 1, "chunks": chunks}
            table = fit(np.tile(lengths, (3, 1)), 41, **options)
            for shape in table:
                sizes = [texts for texts, _ in shape.parts]
                assert sum(sizes) == n and len(sizes) <= parts
                assert not any(size % chunks for size in sizes[1:])
                assert sizes[0] % chunks == n % chunks
                assert shape.holds(np.sort(lengths))
                several += len(sizes) > 1
            best = min(all_cuts(np.sort(lengths), parts, chunks))
            assert table[0].slots == best
            for smaller, larger in itertools.pairwise(table):
                assert (allowances(smaller) <= allowances(larger)).all()
    assert several or parts == 1


def test_shapes_hold_what_they_are_fitted_to():
    rng = np.random.default_rng(0)
    lengths = np.sort(skewed(rng, 40, 23, 50), axis=1)
    tight, ample, anything = fit(lengths, 61, parts=4, multiple=8)
    assert tight.slots < ample.slots < anything.slots
    assert anything == Shape(((23, 61),))
    assert all(tight.holds(row) for row in lengths)
    # With one more text as long as the longest of all: 5 % of 23 are 2.
    longest = int(lengths.max())
    longer = np.sort(np.concatenate([lengths[:, 1:], np.full((40, 1), longest)], 1))
    assert not all(tight.holds(row) for row in longer)
    assert all(ample.holds(row) for row in longer)
    assert anything.holds(np.full(23, 61))
    for shape in (tight, ample):
        assert sum(count for count, _ in shape.parts) == 23
        assert all(tokens % 8 == 0 for _, tokens in shape.parts)
        assert list(allowances(shape)) == sorted(allowances(shape))


def test_a_later_shape_holds_whatever_an_earlier_one_holds():
    """So that the largest shape that any process needs is one for all of them."""
    rng = np.random.default_rng(3)
    for parts, n in itertools.product((2, 3, 4), (4, 6, 17)):
        for _ in range(20):
            table = fit(skewed(rng, 12, n, 40), 53, parts=parts, multiple=1)
            for smaller, larger in itertools.pairwise(table):
                assert (allowances(smaller) <= allowances(larger)).all()


def test_a_text_of_the_longest_length_fits_where_the_multiple_does_not():
    (shape,) = fit(np.array([[13, 13]]), 13, parts=4, multiple=8)
    assert shape == Shape(((2, 13),))
    table = fit(np.array([[9, 2]]), 13, parts=2, multiple=8)
    assert table == (Shape(((1, 8), (1, 13))), Shape(((2, 13),)))


def test_the_table_is_a_function_of_the_lengths_whatever_their_order():
    rng = np.random.default_rng(1)
    lengths = skewed(rng, 20, 17, 50)
    table = fit(lengths, 64, parts=3, multiple=8)
    assert fit(rng.permuted(lengths, axis=1), 64, parts=3, multiple=8) == table
    assert fit(rng.permutation(lengths), 64, parts=3, multiple=8) == table


def test_more_parts_pad_less():
    lengths = skewed(np.random.default_rng(2), 30, 64, 100)
    slots = [fit(lengths, 128, parts=p, multiple=8)[0].slots for p in (1, 2, 4, 64)]
    assert slots == sorted(slots, reverse=True)
    assert slots[2] < 0.6 * slots[0]


@pytest.mark.parametrize(
    ("lengths", "held"),
    [
        ([1, 4, 4, 4, 9], True),
        ([4, 4, 5, 9, 9], True),
        ([1, 1, 1, 1, 10], False),
        ([1, 5, 5, 5, 9], False),  # the second text is in the first part
    ],
)
def test_a_shape_holds_texts_whose_parts_do(lengths, held):
    shape = Shape(((2, 4), (3, 9)))
    assert shape.holds(np.array(lengths)) == held
    assert shape.slots == 35 and str(shape) == "2x4 3x9"


@pytest.mark.parametrize(
    "shape",
    [Shape(((5, 12),)), Shape(((3, 4), (2, 12))), Shape(((1, 2), (2, 3), (2, 13)))],
    ids=str,
)
def test_texts_come_out_as_they_went_in(shape):
    rng = np.random.default_rng(0)
    rows = [rng.integers(10, 99, length).tolist() for length in LENGTHS]
    texts = {"query": rows[:2], "document": rows[2:]}
    found = cut(texts, shape, pad_id=7)
    assert set(found) == {"parts", "place"}
    assert list(found["place"]) == ["query", "document"]
    assert [len(place) for place in found["place"].values()] == [2, 3]
    assert all(place.dtype == np.int32 for place in found["place"].values())
    sizes = [part["ids"].shape for part in found["parts"]]
    assert sizes == list(shape.parts)
    laid, text, query = [], [], []
    for part in found["parts"]:
        assert set(part) == {"ids", "mask", "query", "number"}
        assert part["number"].dtype == np.int32 and part["query"].dtype == bool
        assert part["number"].shape == part["query"].shape == part["ids"].shape[:1]
        text += part["number"].tolist()
        query += part["query"].tolist()
        assert part["ids"].dtype == part["mask"].dtype == np.int32
        assert part["mask"].shape == part["ids"].shape
        assert (part["ids"][part["mask"] == 0] == 7).all()
        # Tokens stand on the left, and padding behind them.
        lengths = part["mask"].sum(axis=1)
        tokens = part["ids"].shape[1]
        np.testing.assert_array_equal(
            part["mask"], np.arange(tokens) < lengths[:, None]
        )
        laid += [
            ids[:length].tolist()
            for ids, length in zip(part["ids"], lengths, strict=True)
        ]
    for name, place in found["place"].items():
        assert [laid[i] for i in place] == texts[name]
    assert laid == [rows[i] for i in text]
    assert query == [i < 2 for i in text]
    # Shortest first; of equals, in their order.
    assert text == [2, 0, 4, 1, 3]
    place = np.concatenate([*found["place"].values()])
    np.testing.assert_array_equal(np.array(text)[place], np.arange(5))


def test_texts_have_numbers_of_the_whole_batch():
    rows = {"a": [[1, 1], [2]], "b": [[3], [4, 4, 4], [5]]}
    shape = Shape(((3, 1), (2, 3)))

    def numbers(**options):
        return [
            part["number"].tolist() for part in cut(rows, shape, 0, **options)["parts"]
        ]

    assert numbers() == [[1, 2, 4], [0, 3]]
    assert numbers(first={"a": 6, "b": 20}) == [[7, 20, 22], [6, 21]]


@pytest.mark.parametrize("query", ["a", "b", "c"])
def test_queries_are_the_texts_of_a_name(query):
    rows = {"a": [[1, 1], [2]], "b": [[3]]}
    (part,) = cut(rows, Shape(((3, 2),)), 0, query=query)["parts"]
    assert part["ids"].tolist() == [[2, 0], [3, 0], [1, 1]]
    assert part["query"].tolist() == [name == query for name in "aba"]
    (part,) = cut(rows, Shape(((3, 2),)), 0)["parts"]
    assert not part["query"].any()


def test_texts_that_a_shape_does_not_hold_are_no_batch():
    with pytest.raises(ValueError):
        cut({"query": [[1, 2, 3], [4]]}, Shape(((2, 2),)), 0)
