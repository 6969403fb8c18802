import collections
import json
import math

import numpy as np
import pytest

from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry
from lsrjax.data.batching.mixing import (
    MIXERS,
    Concatenated,
    MixedOrder,
    Schedule,
    open_sets,
    order_of,
    order_of_topics,
)
from lsrjax.data.batching.orders import Order
from lsrjax.data.examples import InMemory, Pair
from lsrjax.errors import InputError

SIZES = (13, 5, 101, 29)
SHARES = {
    "round_robin": [1 / 4] * 4,
    "proportional": [n / 148 for n in SIZES],
    "temperature": [math.sqrt(n) / sum(map(math.sqrt, SIZES)) for n in SIZES],
    "weights": [0.1, 0.2, 0.3, 0.4],
}


def weights(mixer):
    given = {"weights": {"weights": {"b": 2.0, "c": 3.0, "d": 4.0}}}
    options = given.get(mixer, vars(MIXERS[mixer].Options()))
    return MIXERS[mixer].fn(dict(zip("abcd", SIZES, strict=True)), **options)


def mixed(mixer="proportional", batch_size=8, seed=3, one=False):
    return MixedOrder(SIZES, batch_size, seed, weights=weights(mixer), one=one)


def set_of(example, sizes=SIZES):
    return int(np.searchsorted(np.cumsum(sizes), example, side="right"))


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_set_gets_its_share_all_along(mixer):
    schedule = Schedule(weights(mixer), seed=1)
    sets, turns = schedule(np.arange(4000))
    seen = np.cumsum(sets[:, None] == np.arange(4), axis=0)
    off = seen - np.arange(1, 4001)[:, None] * np.array(SHARES[mixer])
    assert np.abs(off).max() < 3
    # A draw knows how many came before it.
    np.testing.assert_array_equal(turns, seen[np.arange(4000), sets] - 1)
    # Alone, in any order, and far on.
    places = np.random.default_rng(0).permutation(4000)
    found = schedule(places)
    np.testing.assert_array_equal(found, (sets[places], turns[places]))
    far = 10**12 + np.arange(100)
    sets, turns = schedule(far)
    assert np.abs(turns - far * np.array(SHARES[mixer])[sets]).max() < 4


@pytest.mark.parametrize("count", [1, 2, 3, 7, 300])
def test_many_sets_stay_near_their_shares(count):
    schedule = Schedule([1] * count, seed=2)
    sets, _ = schedule(np.arange(5 * count))
    for start in range(4 * count):
        assert len(set(sets[start : start + count].tolist())) == count
    sizes = np.random.default_rng(count).integers(1, 1000, count).tolist()
    sets, _ = Schedule(sizes, seed=2)(np.arange(sum(sizes)))
    # After as many draws as there are examples, every set has had an epoch.
    assert np.bincount(sets).tolist() == sizes


def test_seeds_differ_in_what_comes_first():
    starts = {tuple(Schedule([1] * 5, s)(np.arange(5))[0]) for s in range(9)}
    assert len(starts) > 3


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("one", [True, False])
def test_every_set_goes_epoch_after_epoch(mixer, one):
    order = mixed(mixer, one=one)
    by_set = collections.defaultdict(list)
    for i in range(200):
        batch = order[i]
        assert len(batch) == 8
        sets = [set_of(example) for _, example in batch]
        assert (len(set(sets)) == 1) or not one
        seen = [order.part_of(example) for _, example in batch]
        assert seen == ([0] * 8 if one else sets)
        for k in set(sets):
            mine = [m for m, own in zip(batch, sets, strict=True) if own == k]
            by_set[k].append(mine)
    starts = np.cumsum([0, *SIZES])
    for k, size in enumerate(SIZES):
        members = [member for batch in by_set[k] for member in batch]
        assert max(collections.Counter(members).values()) == 1
        whole = max(e for e, _ in members)
        for epoch in range(whole):
            of_epoch = sorted(example for e, example in members if e == epoch)
            assert of_epoch == list(range(starts[k], starts[k] + size))


def test_a_mixed_batch_has_each_set_by_its_share():
    order = mixed("round_robin", batch_size=12)
    for i in range(50):
        sets = collections.Counter(set_of(example) for _, example in order[i])
        assert sets == dict.fromkeys(range(4), 3)
    # Not always in the same places, which are those of a device.
    first = {set_of(order[i][0][1]) for i in range(50)}
    assert first == set(range(4))


@pytest.mark.parametrize("one", [True, False])
def test_windows_are_of_one_set_and_epoch_where_batches_are(one):
    order = mixed(one=one)
    seen = []
    for i in range(96):
        window = order.window(i)
        assert i in window and 1 <= len(window) <= 32
        assert all(order.window(j) == window for j in window)
        if window[0] == i:
            seen += window
        if not one:
            continue
        assert len({set_of(example) for j in window for _, example in order[j]}) == 1
        assert len({order[j][0][0] for j in window}) == 1
    assert sorted(seen) == list(range(96))


def test_batches_do_not_depend_on_what_was_asked_before():
    for one in (True, False):
        expected = [mixed(one=one)[i] for i in range(40)]
        order = mixed(one=one)
        for i in np.random.default_rng(0).permutation(40).tolist():
            assert order[i] == expected[i]
        assert mixed(one=one, seed=4)[0] != expected[0]


def test_a_set_of_its_own_is_as_without_mixing():
    plain = Order(13, 4, 7)
    order = MixedOrder([13], 4, 7, weights=[13], one=True)
    assert [order[i] for i in range(20)] == [plain[i] for i in range(20)]


def pairs(count, name):
    return InMemory([Pair(f"{name}{i}", "a", "b", "de") for i in range(count)])


def test_sets_of_one_size_have_orders_of_their_own():
    order = MixedOrder([50, 50], 10, 3, weights=[1.0, 1.0], one=True)
    drawn = [example for batch in range(10) for _, example in order[batch]]
    first = [example for example in drawn if example < 50]
    second = [example - 50 for example in drawn if example >= 50]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_concatenated():
    source = Concatenated([pairs(3, "a"), pairs(1, "b"), pairs(2, "c")])
    ids = [source[i].id for i in range(len(source))]
    assert ids == ["a0", "a1", "a2", "b0", "c0", "c1"]
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"example {index} of 6"):
            source[index]


def test_topics_are_sets():
    topics = np.random.default_rng(0).integers(7, size=500)
    order = order_of_topics(topics, 8, seed=1)
    seen = collections.Counter()
    for i in range(62):
        members = [example for _, example in order[i]]
        assert len({topics[example] for example in members}) == 1
        seen.update(members)
    # By their sizes: about once each in as many draws as there are queries.
    assert len(seen) > 450 and max(seen.values()) <= 2


@pytest.fixture
def files(tmp_path):
    for name, size in (("a", 3), ("b", 5)):
        rows = [{"query": f"{name}{i}", "pos": ["p"]} for i in range(size)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "empty.jsonl").write_text("")
    return tmp_path


def test_sets_of_a_config(files):
    data = get_default().data
    with data.unlocked():
        for name in "ab":
            own = entry("files", files=f"{files}/{name}.jsonl")
            data.sets[name] = data_set(source=own)
    opened = open_sets(data, "group")
    assert [len(source) for source in opened] == [3, 5]
    assert opened[1][4].query == {"*": "b4"}
    order = order_of(data, [3, 5], 4, 0)
    sets = [set_of(e, (3, 5)) for i in range(2) for _, e in order[i]]
    assert collections.Counter(sets) == {0: 3, 1: 5}
    data.mixer, data.batches_from = entry("weights", weights={"a": 1}), "one"
    order = order_of(data, [3, 5], 4, 0)
    sets = [{set_of(e, (3, 5)) for _, e in order[i]} for i in range(4)]
    assert sorted(map(tuple, sets)) == [(0,), (0,), (1,), (1,)]
    data.sets.b.source.files = f"{files}/empty.jsonl"
    with pytest.raises(InputError, match="no rows"):
        open_sets(data, "group")


def test_one_set_is_the_config_itself(files):
    data = get_default().data
    data.source.files = f"{files}/b.jsonl"
    (source,) = open_sets(data, "group")
    assert order_of(data, [len(source)], 2, 9) == Order(5, 2, 9)
