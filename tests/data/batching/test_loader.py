import collections
import dataclasses
import functools
import itertools
import operator
import threading

import jax
import numpy as np
import pytest

from lsrjax.data.batching.drawing import (
    Drawn,
    Encoded,
    GroupBatches,
    PairBatches,
    Reader,
    draw_language,
    rows_of,
    text_key,
)
from lsrjax.data.batching.loader import Batches, deal, set_apart, stream
from lsrjax.data.batching.mixing import MixedOrder
from lsrjax.data.batching.negatives import Choice, sampler
from lsrjax.data.batching.orders import EXAMPLE, Order
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY, Group, InMemory, Pair
from lsrjax.data.sources import WithNegatives
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError

WORDS = ["library", "kernel", "system", "file", "network", "driver", "font", "image"]
LANGUAGES = ("en", "de", "fr", "ja")
# Of texts, as a model's are named.
NAMES = ("query", "document", "translation", "english", "teacher")


@pytest.fixture(scope="module")
def english():
    return TextTokenizer(embedded.ENGLISH_TOKENIZER)


@pytest.fixture(scope="module")
def field(english):
    return TextField(english, 16)


def text(*words):
    """A text whose wordings say their language."""
    return {language: f"{language} {' '.join(words)}" for language in LANGUAGES}


def groups(count, negatives=4, positives=2):
    rng = np.random.default_rng(1)
    made = []
    for i in range(count):
        words = rng.choice(WORDS, rng.integers(1, 8)).tolist()
        made.append(
            Group(
                id=f"group {i}",
                query=text("query", str(i)),
                positives=[text("good", str(i), *words) for _ in range(positives)],
                negatives=[text("bad", str(j), *words) for j in range(negatives)],
                scores=np.arange(positives + negatives, dtype=np.float32) + 100 * i,
            )
        )
    return made


def group_batches(field, **changes):
    options = {
        "group_size": 3,
        "mixing": "passages",
        "query_languages": {ANY: 1.0},
        "document_languages": {ANY: 1.0},
        "with_scores": True,
    }
    return GroupBatches(query=field, document=field, **(options | changes))


def batches_of(examples, build, batch_size=4, seed=0, order=None, **options):
    source = InMemory(examples)
    order = order or Order(len(source), batch_size, seed)
    return Batches(source, order, build, **({"multiple": 4} | options))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rows_by_device(texts, devices=1):
    """Token ids of the texts of each device, by name and in their order."""
    found = []
    for device in range(devices):
        laid = []
        for part in texts["parts"]:
            shape = (devices, -1, part["ids"].shape[1])
            ids, mask = (part[name].reshape(shape)[device] for name in ("ids", "mask"))
            laid += [
                row[here > 0].tolist() for row, here in zip(ids, mask, strict=True)
            ]
        places = [texts["place"][name] for name in NAMES if name in texts["place"]]
        own = [place.reshape(devices, -1)[device].tolist() for place in places]
        found.append([laid[i] for i in sum(own, [])])
    return found


def shape_of(texts, devices=1):
    """(texts, tokens) of each part of a device."""
    sizes = [part["ids"].shape for part in texts["parts"]]
    return tuple((count // devices, tokens) for count, tokens in sizes)


def padding(batches, count=20):
    """The share of padding in the first batches."""
    parts = [part for i in range(count) for part in batches[i]["student"]["parts"]]
    slots = sum(part["mask"].size for part in parts)
    return 1 - sum(int(part["mask"].sum()) for part in parts) / slots


def words(tokenizer, ids):
    """The words of a text's ids, special tokens left out."""
    return " ".join(map(tokenizer.token, ids[1:-1])).replace(" ##", "").split()


def chosen(seed, build, group):
    """The words of the query and of the documents drawn, and all that was drawn."""
    (drawn,) = build.draw([group], [np.random.default_rng(seed)])
    query, *documents = [
        words(build.query.tokenizer, ids)
        for ids in (*drawn.texts["query"], *drawn.texts["document"])
    ]
    return query, documents, drawn


def test_random_access_equals_sequential(field):
    examples, build = groups(13), group_batches(field)
    expected = [batches_of(examples, build)[i] for i in range(12)]
    shuffled = batches_of(examples, build)
    for i in np.random.default_rng(0).permutation(12).tolist():
        assert_same(shuffled[i], expected[i])
    shared, found = batches_of(examples, build), {}

    def work(offset):
        for i in range(12):
            found[offset, i] = shared[(i * 5 + offset) % 12]

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 48
    for (offset, i), batch in found.items():
        assert_same(batch, expected[(i * 5 + offset) % 12])


def test_stream_goes_on_where_another_would_be(field):
    batches = batches_of(groups(13), group_batches(field))

    def take(start, count):
        made = stream(batches, start, 11, threads=3, prefetch=4)
        try:
            return list(itertools.islice(made, count))
        finally:
            made.close()

    whole = take(0, 99)
    assert len(whole) == 11  # and no batch that is not asked for
    for start in (1, 3, 7):
        assert_same(take(start, 11 - start), whole[start:])
    assert_same(whole[5], batches[5])


@pytest.mark.parametrize(("examples", "batch_size"), [(13, 4), (12, 4), (3, 8), (1, 2)])
def test_each_example_once_an_epoch(examples, batch_size):
    order = Order(examples, batch_size, seed=5)
    count = 4 * -(-examples // batch_size)
    members = [member for i in range(count) for member in order[i]]
    assert len(members) == count * batch_size
    whole = len(members) // examples * examples
    for start in range(0, whole, examples):
        epoch = members[start : start + examples]
        assert {e for e, _ in epoch} == {start // examples}
        assert sorted(place for _, place in epoch) == list(range(examples))


def numbers_of(tokenizer, rows):
    """The numbers that `groups` ends its queries with, and puts into documents."""
    return [int(words(tokenizer, row)[2]) for row in rows]


@pytest.mark.parametrize(
    ("examples", "batch_size"), [(13, 4), (3, 8), (5000, 8), (5000, 64), (9000, 3000)]
)
def test_windows_of_batches_follow_each_other_within_an_epoch(examples, batch_size):
    order = Order(examples, batch_size, seed=5)
    batch, sizes = 0, collections.Counter()
    while batch * batch_size < 3 * examples:
        window = order.window(batch)
        assert window.start == batch and 1 <= len(window) <= 32
        assert len(window) * batch_size <= max(2048, batch_size)
        assert all(order.window(i) == window for i in window)
        epochs = {i * batch_size // examples for i in window}
        assert len(epochs) == 1
        sizes[epochs.pop()] += len(window)
        batch = window.stop
    # No window is much shorter than the others of its epoch.
    windows = [order.window(i) for i in range(sizes[0])]
    assert max(map(len, windows)) - min(map(len, windows)) <= 1


def test_batches_are_dealt_examples_of_like_sizes():
    rng = np.random.default_rng(0)
    sizes = rng.geometric(0.05, 32 * 8)
    dealt = deal(sizes, 32, turn=0)
    assert sorted(dealt.ravel()) == list(range(len(sizes)))
    totals, drawn = sizes[dealt].sum(axis=1), sizes.reshape(32, 8).sum(axis=1)
    assert totals.std() < 0.35 * drawn.std()
    # Nor do lengths within a batch: the longest of each is one of the 32 longest.
    assert sizes[dealt].max(axis=1).min() >= np.sort(sizes)[-32]
    np.testing.assert_array_equal(deal(sizes, 32, turn=5), np.roll(dealt, 5, axis=0))


def test_each_batch_keeps_its_number_of_each_part():
    rng = np.random.default_rng(0)
    sizes, parts = rng.geometric(0.05, 32 * 40), rng.integers(3, size=32 * 40)
    sizes += 50 * parts
    for turn in (0, 7):
        dealt = deal(sizes, 32, turn, parts)
        assert sorted(dealt.ravel()) == list(range(len(sizes)))
        np.testing.assert_array_equal(parts[dealt], parts.reshape(32, 40))
        # As even as their numbers of each part allow.
        spread = (sizes - 50 * parts)[dealt].sum(axis=1).std()
        assert spread < 0.5 * (sizes - 50 * parts).reshape(32, 40).sum(axis=1).std()
    np.testing.assert_array_equal(
        deal(sizes, 32, 7, np.ones(len(sizes))), deal(sizes, 32, 7)
    )


def repeated(keys):
    """How many share a key with one before them."""
    return sum(any(k & other for other in keys[:i]) for i, k in enumerate(keys))


@pytest.mark.parametrize("seed", range(5))
def test_what_shares_a_key_is_set_apart(seed):
    rng = np.random.default_rng(seed)
    # Each of 256 examples has a query and a document; many have them twice.
    keys = [
        frozenset({("query", int(rng.integers(90))), ("document", int(d))})
        for d in rng.integers(90, size=256)
    ]
    parts = rng.integers(2, size=256)
    dealt = np.arange(256).reshape(16, 16)
    assert sum(repeated([keys[i] for i in row]) for row in dealt) > 30
    apart, left = set_apart(dealt, keys, parts)
    assert left == 0
    assert all(repeated([keys[i] for i in row]) == 0 for row in apart)
    assert sorted(apart.ravel()) == list(range(256))
    np.testing.assert_array_equal(parts[apart], parts[dealt])
    # Nothing moves without need, and what moves goes not far.
    free = [frozenset({("query", i)}) for i in range(256)]
    same, left = set_apart(dealt, free, parts)
    np.testing.assert_array_equal(same, dealt)
    assert left == 0


def test_what_cannot_be_set_apart_is_counted():
    same, other = frozenset({1}), frozenset({2})
    dealt = np.arange(4).reshape(2, 2)
    apart, left = set_apart(dealt, [same, same, other, other], [0] * 4)
    assert left == 0 and {frozenset(row) for row in apart.tolist()} != {
        frozenset({0, 1}),
        frozenset({2, 3}),
    }
    for keys, parts, count in (
        ([same, same, same, other], [0] * 4, 1),
        ([same] * 4, [0] * 4, 2),
        ([same, same, other, other], [0, 0, 1, 1], 2),
    ):
        apart, left = set_apart(dealt, keys, parts)
        assert left == count and sorted(apart.ravel()) == [0, 1, 2, 3]
    assert set_apart(dealt[:1], [same, same], [0, 0])[1] == 1


def of_window(order, batch):
    """The examples that are dealt to the batches of a window."""
    return [member for i in order.window(batch) for member in order[i]]


@pytest.mark.parametrize("apart", [False, True])
def test_examples_of_a_batch_are_in_no_order_of_size(field, apart):
    # Devices that share a lane would get the short texts of every batch, or the long.
    examples = groups(256)
    size = [len(group.positives[0]["en"].split()) for group in examples]
    batches = batches_of(examples, group_batches(field), batch_size=32, apart=apart)
    width = 32 if apart else 4
    sizes = [size[example] for i in range(24) for example in batches.examples(i)]
    by_place = np.reshape(sizes, (-1, width)).mean(axis=0)
    halves = by_place.reshape(2, -1).mean(axis=1)
    assert abs(halves[1] - halves[0]) < 0.5 * np.std(size)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_batches_hold_the_examples_of_the_order(field, devices):
    """Divided over devices, and on each of them by name, then by example."""
    build = group_batches(
        field, query_languages={"en": 1.0}, document_languages={"en": 1.0}
    )
    batches = batches_of(groups(13), build, 8, devices=devices)
    order = Order(13, 8, seed=0)
    seen = collections.Counter()
    for i in range(6):
        batch, queries, positives, sizes = batches[i], [], [], set()
        for rows in rows_by_device(batch["student"], devices):
            share = len(rows) // 4
            queries += numbers_of(field.tokenizer, rows[:share])
            documents = rows[share:]
            kinds = [words(field.tokenizer, row)[1] for row in documents]
            assert kinds == ["good", "bad", "bad"] * share
            positives += numbers_of(field.tokenizer, documents[::3])
            sizes.add(share)
        assert queries == positives and sizes == {8 // devices}
        # Scores of example i are 100 i and a bit.
        assert (batch["targets"]["scores"] // 100).astype(int).tolist() == [
            [example] * 3 for example in queries
        ]
        seen.update(queries)
        if i + 1 == order.window(i).stop:
            expected = [m for k in range(i + 1) for m in order[k]]
            assert seen == collections.Counter(example for _, example in expected)


def test_keys_are_of_the_texts_whatever_the_language(field):
    examples = groups(13)
    # The second half asks the first one's queries in other languages, too.
    for i, group in enumerate(examples[7:]):
        query = {"de": f"anders {i}", "en": examples[i].query["en"]}
        examples[7 + i] = dataclasses.replace(group, query=query)
    # A hard negative that is the positive in other words.
    twin = {"en": examples[0].positives[0]["en"], "fr": "autrement"}
    examples[0] = dataclasses.replace(
        examples[0], positives=examples[0].positives[:1], negatives=[twin, twin]
    )
    build = group_batches(field, with_keys=True)
    batches = batches_of(examples, build, 13, devices=1)
    other = batches_of(examples, dataclasses.replace(build, mixing="entries"), 13)
    batch = batches[0]["targets"]
    queries, documents = batch["query_key"], batch["document_key"]
    assert queries.shape == (13, 2) and documents.shape == (13, 3, 2)
    assert queries.dtype == documents.dtype == np.int32
    assert len({tuple(key) for key in queries}) == 7
    twins = [i for i, group in enumerate(documents) if (group == group[0]).all()]
    assert len(twins) == 1
    # Languages are drawn anew, which may change the order; keys stay.
    found = other[0]["targets"]["query_key"]
    assert sorted(found.tolist()) == sorted(queries.tolist())


def test_a_key_is_64_bits_of_one_wording():
    same = [
        text_key({"en": "a", "de": "b"}),
        text_key({"de": "c", "en": "a"}),
        text_key({ANY: "a"}),
        text_key({"ja": "a"}),
    ]
    assert len({tuple(key) for key in same}) == 1
    assert tuple(same[0]) != tuple(text_key({"de": "b"}))
    # Without English, of the language that comes first by its name.
    german = text_key({"de": "b"})
    assert text_key({"fr": "x", "de": "b"}).tolist() == german.tolist()
    # The same in every process and on every machine.
    assert text_key({"en": "kernel"}).tolist() == [1041339223, 658500240]
    many = {text_key({"en": str(i)}).tobytes() for i in range(5000)}
    assert len(many) == 5000
    assert text_key({"en": "\ud800"}).shape == (2,)


def test_fewer_examples_than_a_batch(field):
    batch = batches_of(groups(3), group_batches(field), batch_size=8)[0]
    assert sum(len(part["ids"]) for part in batch["student"]["parts"]) == 8 + 24
    assert batch["targets"]["scores"].shape == (8, 3)


def test_epochs_and_seeds_differ_in_order_and_draws(field):
    # An epoch is one batch.
    orders = [
        tuple(m for _, m in Order(12, 12, seed)[i]) for seed in (0, 1) for i in (0, 1)
    ]
    assert len(set(orders)) == 4
    # One example fills all batches, so that only the draws can differ.
    batches = batches_of(groups(1, negatives=9), group_batches(field), 1)
    scores = [tuple(batches[i]["targets"]["scores"][0]) for i in range(10)]
    assert len(set(scores)) > 5


def test_what_is_drawn_does_not_depend_on_how_a_batch_is_cut(field):
    examples, build = groups(13), group_batches(field)
    plain = batches_of(examples, build, parts=1)
    for options in ({"parts": 3}, {"multiple": 1}, {"devices": 2}):
        other = batches_of(examples, build, **options)
        for i in range(3):
            devices = options.get("devices", 1)
            (rows,) = rows_by_device(plain[i]["student"])
            found = rows_by_device(other[i]["student"], devices)
            assert sorted(sum(found, [])) == sorted(rows)
            if devices == 1:
                assert found == [rows]
            assert_same(other[i]["targets"], plain[i]["targets"])


def test_roles_apart_have_parts_of_their_own(field):
    examples = groups(13)
    short = dataclasses.replace(field, max_length=6)
    options = {"with_keys": True, "query": short}
    together, apart = (
        batches_of(
            examples,
            dataclasses.replace(group_batches(field), roles_apart=apart, **options),
            devices=2,
            parts=2,
            multiple=1,
        )
        for apart in (False, True)
    )
    for i in range(3):
        batch, plain = apart[i], together[i]
        assert set(batch) == {"queries", "student", "targets"}
        assert_same(batch["targets"], plain["targets"])
        queries, documents, rows = (
            rows_by_device(texts, 2)
            for texts in (batch["queries"], batch["student"], plain["student"])
        )
        assert [len(own) for own in queries] == [2, 2]
        assert [a + b for a, b in zip(queries, documents, strict=True)] == rows
        assert all(tokens <= 6 for _, tokens in shape_of(batch["queries"]))
    # The last shape holds whatever may come, in each role.
    last = apart.shapes[-1]
    assert last["queries"].parts == ((2, 6),)
    assert last["student"].parts == ((6, 16),)


def skewed(count):
    """Groups most of whose documents are short, and a few of which are long."""
    made = groups(count)
    for i, group in enumerate(made):
        length = 60 if i % 8 == 0 else 3 + i % 5
        group.positives[:] = [text("good", str(i), *[WORDS[0]] * length)]
    return made


def test_parts_by_length_leave_little_padding(english):
    field = TextField(english, 64)
    build = group_batches(field, group_size=2, with_scores=False)
    examples = skewed(96)
    shares = [
        padding(batches_of(examples, build, 16, parts=parts)) for parts in (1, 2, 4)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6 and shares[2] < 0.3


@pytest.mark.parametrize("devices", [1, 2])
def test_all_batches_are_of_a_few_shapes_known_before(english, devices):
    field = TextField(english, 32)
    build, examples = group_batches(field, group_size=2), groups(300)
    # More long texts than the first batches have, which the shapes are fitted to.
    for _, example in of_window(Order(300, 4, 0), 40):
        examples[example].positives[:] = [text("good", *WORDS * 5)] * 2
    batches, again = (batches_of(examples, build, devices=devices) for _ in range(2))
    assert again.shapes == batches.shapes
    table = [shape["student"] for shape in batches.shapes]
    assert 1 <= len(table) <= 3
    assert [shape.slots for shape in table] == sorted(shape.slots for shape in table)
    assert table[-1].parts == ((12 // devices, 32),)
    found = set()
    for i in range(75):
        texts = batches[i]["student"]
        chosen = shape_of(texts, devices)
        found.add(chosen)
        lengths = [np.sort([*map(len, r)]) for r in rows_by_device(texts, devices)]
        # The first of the table that holds the texts of every device.
        assert chosen == next(
            shape.parts for shape in table if all(shape.holds(n) for n in lengths)
        )
    assert found <= {shape.parts for shape in table}
    assert len(found) == len(table)


def test_shapes_are_the_same_in_every_process(field):
    examples, build = groups(40), group_batches(field)
    whole = batches_of(examples, build, 8, devices=4)
    for rows in ([0], [1, 3], [2]):
        part = batches_of(examples, build, 8, devices=4, rows=rows)
        assert part.shapes == whole.shapes


def test_processes_together_read_the_whole_batch(english):
    """Each its rows of every batch, in the shape of the one that needs the largest."""
    examples, build = groups(600), group_batches(TextField(english, 32))
    # More long texts than the first batches have, which the shapes are fitted to.
    for _, example in of_window(Order(600, 8, 0), 40)[::16]:
        examples[example].positives[:] = [text("good", *WORDS * 5)] * 2
    whole, needs = {}, {}

    def record(where):
        return lambda batch, shape: where.setdefault(batch, shape)

    everything = batches_of(examples, build, 8, devices=4, agree=record(whole))
    expected = {i: everything[i] for i in range(30, 50)}
    processes = ([0, 2], [3], [1])
    for rows in processes:
        own = {}
        batches = batches_of(
            examples, build, 8, devices=4, rows=rows, agree=record(own)
        )
        for i in range(30, 50):
            batches[i]
        for i, shape in own.items():
            needs[i] = max(needs.get(i, 0), shape)
    assert needs == whole and len(set(whole.values())) > 1
    for rows in processes:
        batches = batches_of(
            examples, build, 8, devices=4, rows=rows, agree=lambda i, _: whole[i]
        )
        for i in range(30, 50):
            assert_same(batches[i], of_devices(expected[i], 4, rows))


def with_twins(count):
    """Groups of which four at a time have the same query or the same positive."""
    made = groups(count)
    for i, group in enumerate(made):
        twin = made[i // 4 * 4]
        if i % 8 < 4:
            made[i] = Group(
                group.id, twin.query, group.positives, group.negatives, group.scores
            )
        else:
            group.positives[1:] = twin.positives[:1]
    return made


@pytest.mark.parametrize("devices", [1, 2])
def test_no_text_twice_in_a_batch(field, devices):
    examples = with_twins(96)
    build = group_batches(field, with_scores=True)
    plain = batches_of(examples, build, 8, devices=devices)
    apart = batches_of(examples, build, 8, devices=devices, apart=True)

    def members(batch):
        # The scores of example i are 100 i and a bit.
        return (batch["targets"]["scores"][:, 0] // 100).astype(int).tolist()

    def twins(batches):
        fours = [[i // 4 for i in members(batches[k])] for k in range(24)]
        return sum(len(four) - len(set(four)) for four in fours)

    assert twins(plain) > 10 and twins(apart) == 0
    assert plain.left_together == apart.left_together == 0
    for epoch in range(2):
        seen = [
            m for k in range(12 * epoch, 12 * epoch + 12) for m in members(apart[k])
        ]
        assert sorted(seen) == list(range(96))
    again = batches_of(examples, build, 8, devices=devices, apart=True)
    for i in (17, 3, 23):
        assert_same(again[i], apart[i])
    parts = [
        batches_of(examples, build, 8, devices=2, rows=rows, apart=True)
        for rows in ([0], [1])
    ]
    for row, part in enumerate(parts):
        expected = np.split(apart[5]["targets"]["scores"], 2)[row]
        np.testing.assert_array_equal(part[5]["targets"]["scores"], expected)


def test_texts_that_stay_together_are_counted(field):
    batches = batches_of(groups(3), group_batches(field), 8, apart=True)
    windows = {Order(3, 8, 0).window(i) for i in range(9)}
    for i in range(9):
        batches[i]
    found = batches.left_together
    assert found >= 9 * 5
    batches[0]  # which is not counted again
    assert batches.left_together == found and len(windows) <= 9


@pytest.mark.parametrize("one", [True, False])
def test_batches_of_several_sets(field, one):
    examples, sizes = groups(60), (40, 5, 15)
    build = group_batches(field)

    def made(**options):
        order = MixedOrder(sizes, 6, 0, weights=[1, 1, 1], one=one)
        return batches_of(examples, build, order=order, **options)

    batches, order = made(), MixedOrder(sizes, 6, 0, weights=[1, 1, 1], one=one)
    for i in range(40):
        scores = batches[i]["targets"]["scores"][:, 0]
        sets = np.searchsorted([40, 45], scores // 100, side="right").tolist()
        expected = np.searchsorted([40, 45], [e for _, e in order[i]], side="right")
        # Of each set as many as the order says, whatever was dealt.
        assert sorted(sets) == sorted(expected.tolist())
        assert len(set(sets)) == (1 if one else 3)
    shuffled = made()
    for i in np.random.default_rng(0).permutation(40).tolist():
        assert_same(shuffled[i], batches[i])
    # Batches of one set share out their examples, too.
    assert one != (len(order.window(0)) == 32)


@pytest.mark.parametrize("one", [False, True])
def test_a_batch_says_which_set_each_example_is_of(field, one):
    sizes = [40, 5, 17]
    numbers = np.random.default_rng(3).permutation(62) if one else None
    order = MixedOrder(sizes, 4, 1, weights=[3.0, 1.0, 1.0], one=one, numbers=numbers)
    batches = batches_of(
        groups(62), group_batches(field), order=order, sets=True, devices=2
    )
    place = np.arange(62) if numbers is None else np.argsort(numbers)
    seen = set()
    for i in range(12):
        found = batches[i]["targets"]["set"]
        examples = batches.examples(i)
        expected = np.searchsorted([40, 45], place[examples], side="right")
        assert found.dtype == np.int32 and found.tolist() == expected.tolist()
        seen |= set(found.tolist())
    assert seen == {0, 1, 2}


def of_devices(batch, devices, rows):
    """Some devices' rows of all arrays of a batch."""

    def take(x):
        return np.concatenate([np.split(x, devices)[row] for row in rows])

    return jax.tree.map(take, batch)


def test_the_shape_that_is_agreed_on_is_taken(field):
    examples, build = groups(40), group_batches(field)
    plain, asked = batches_of(examples, build), []

    def largest(batch, shape):
        asked.append((batch, shape))
        return len(plain.shapes) - 1

    agreed = batches_of(examples, build, agree=largest)
    assert not asked  # nothing to agree on before there is a batch
    for i in (5, 2):
        texts = agreed[i]["student"]
        assert shape_of(texts) == ((16, 16),)
        assert rows_by_device(texts) == rows_by_device(plain[i]["student"])
    wanted = [
        [shape["student"].parts for shape in plain.shapes].index(
            shape_of(plain[i]["student"])
        )
        for i in (5, 2)
    ]
    assert asked == [(5, wanted[0]), (2, wanted[1])]


def test_pairs_give_the_texts_of_student_and_teacher(field, english):
    teacher = TextField(english, 12)
    pairs = [Pair("0", "kernel", " ".join(WORDS * 3), "de")]
    build = PairBatches(field, teacher)
    # So many that the parts have enough tokens to be worth their parameters.
    batch = batches_of(pairs, build, batch_size=24, parts=2)[0]
    assert set(batch) == {"student", "teacher", "targets"} and not batch["targets"]
    (rows,) = rows_by_device(batch["student"])
    translation, english_ids = rows[0], rows[24]
    assert rows == [translation] * 24 + [english_ids] * 24
    assert len(translation) == 16
    assert words(english, translation)[:9] == (WORDS * 2)[:9]
    assert words(english, english_ids) == ["kernel"]
    # The student's short texts do not pay for its long ones.
    assert shape_of(batch["student"]) == ((24, 4), (24, 16))
    # The teacher encodes the English text, in a shape of its own.
    assert rows_by_device(batch["teacher"]) == [[english_ids] * 24]
    assert shape_of(batch["teacher"]) == ((24, 4),)
    # Few tokens are not worth a part of their own.
    assert shape_of(batches_of(pairs, build, 2)[0]["student"]) == ((4, 16),)
    long = [Pair("0", " ".join(WORDS * 3), "kernel", "de")]
    batch = batches_of(long, build, batch_size=2)[0]
    assert shape_of(batch["teacher"]) == ((2, 12),)


@pytest.mark.parametrize("apart", [False, True])
def test_a_teacher_of_groups_reads_them_in_english(field, english, apart):
    teacher = Reader(TextField(english, 5), TextField(english, 12), apart)
    shown = {"query_languages": {"fr": 1}, "document_languages": {"de": 1, "ja": 1}}
    round_robin = shown | {"mixing": "round_robin", "teacher": teacher}
    build = group_batches(field, **round_robin)
    examples = groups(40)
    batches = batches_of(examples, build, devices=2)
    for i in range(3):
        batch = batches[i]
        assert ("teacher_queries" in batch) == apart
        drawn = batches.examples(i)
        student = rows_by_device(batch["student"], 2)
        queries = rows_by_device(batch.get("teacher_queries", batch["teacher"]), 2)
        documents = rows_by_device(batch["teacher"], 2)
        for device in range(2):
            share = len(drawn) // 2
            own = drawn[device * share : device * share + share]
            for place, example in enumerate(own):
                (query,) = teacher.query.ids([examples[example].query["en"]])
                assert queries[device][place] == list(query)
            first = 0 if apart else share
            read = documents[device][first:]
            seen = student[device][share:]
            assert len(read) == len(seen) == 3 * share
            for ours, theirs in zip(seen, read, strict=True):
                ours, theirs = words(english, ours), words(english, theirs)
                assert theirs[0] == "en" and ours[0] in ("de", "ja")
                assert theirs[1:] == ours[1:][: len(theirs) - 1]


@pytest.mark.parametrize("apart", [False, True])
def test_each_text_may_have_the_number_of_its_language(field, english, apart):
    """However it is cut, and over devices; a teacher's texts have none."""
    teacher = Reader(field, field)
    build = group_batches(field, roles_apart=apart, teacher=teacher)
    stated = dataclasses.replace(build, language_number=LANGUAGES.index)
    options = {"devices": 2, "parts": 3, "multiple": 1}
    batches = batches_of(groups(40), stated, 8, **options)
    plain = batches_of(groups(40), build, 8, **options)
    seen = collections.Counter()
    for i in range(3):
        batch = batches[i]
        for model in ("student", "queries") if apart else ("student",):
            for part in batch[model]["parts"]:
                for ids, number in zip(part["ids"], part.pop("language"), strict=True):
                    assert words(english, ids)[0] == LANGUAGES[number]
                    seen[number] += 1
        assert_same(batch, plain[i])
    assert len(seen) == len(LANGUAGES)


def test_the_two_texts_of_a_pair_have_their_languages(field):
    pairs = [Pair("0", "kernel", " ".join(WORDS), "de"), Pair("1", "font", "a", ANY)]
    build = PairBatches(field, field, LANGUAGES.index)
    batch = batches_of(pairs[:1], build, batch_size=2)[0]
    (part,) = batch["student"]["parts"]
    spoken = part["language"][np.concatenate([*batch["student"]["place"].values()])]
    assert spoken.tolist() == [1, 1, 0, 0]
    assert all("language" not in part for part in batch["teacher"]["parts"])
    with pytest.raises(InputError, match="language of a translation is not stated"):
        batches_of(pairs[1:], build, batch_size=2)[0]


def test_shapes_of_two_models_are_chosen_together(field, english):
    """Where the teacher has fewer shapes than the student, its last one stands in."""
    teacher = TextField(english, 4)
    pairs = [
        Pair(f"{i}", "kernel", " ".join(WORDS[: i % 8 + 1]), "de") for i in range(300)
    ]
    batches = batches_of(pairs, PairBatches(field, teacher))
    assert len({shape["student"] for shape in batches.shapes}) == len(batches.shapes)
    assert {shape["teacher"].parts for shape in batches.shapes} == {((4, 4),)}
    pairs_of_shapes = {
        tuple(shape_of(batches[i][model]) for model in ("student", "teacher"))
        for i in range(75)
    }
    assert len(pairs_of_shapes) <= len(batches.shapes)


def test_rows_of_are_by_name_in_the_order_of_the_examples():
    drawn = [
        Drawn({"query": [[1]], "document": [[2], [3, 3]]}),
        Drawn({"query": [[4]], "document": [[5], [6]]}),
    ]
    rows = rows_of(drawn, Encoded(("query", "document"), 9, 0))
    assert rows == {"query": [[1], [4]], "document": [[2], [3, 3], [5], [6]]}
    assert list(rows) == ["query", "document"]
    rows = rows_of(drawn, Encoded(("document",), 9, 0))
    assert rows == {"document": [[2], [3, 3], [5], [6]]}


@pytest.mark.parametrize("roles_apart", [False, True])
def test_texts_have_a_role_and_a_number_of_the_whole_batch(field, roles_apart):
    """However many devices there are, and whichever process reads for them."""
    examples = groups(40)
    build = group_batches(field, roles_apart=roles_apart)

    def numbered(rows=None, **options):
        batches = batches_of(
            *(examples, build, 8), rows=rows, parts=2, multiple=1, **options
        )
        texts, count = {}, 0
        for model in build.encoded:
            for part in batches[1][model]["parts"]:
                assert part["query"].dtype == bool and part["number"].dtype == np.int32
                for ids, mask, query, number in zip(
                    *(part[name] for name in ("ids", "mask", "query", "number")),
                    strict=True,
                ):
                    texts[int(number)] = ids[mask > 0].tolist(), bool(query)
                    count += 1
        assert len(texts) == count  # no number twice
        return texts

    whole = numbered()
    assert sorted(whole) == list(range(8 + 24))
    assert [whole[i][1] for i in range(32)] == [True] * 8 + [False] * 24
    (rows,) = rows_by_device(batches_of(examples, build, 8)[1]["student"])
    wanted = [whole[i][0] for i in range(8 if roles_apart else 0, 32)]
    assert wanted == rows
    assert numbered(devices=4) == whole
    found = [numbered(rows, devices=4) for rows in ([0, 3], [2], [1])]
    assert sum(map(len, found)) == 32
    assert functools.reduce(operator.or_, found) == whole


def test_parts_divide_into_chunks(english):
    """As far as a device's texts do."""
    field = TextField(english, 64)
    build = group_batches(field, group_size=2, with_scores=False)
    examples = skewed(96)
    for devices, chunk, pieces in ((1, 12, 4), (2, 6, 4), (1, 10, 5), (1, 0, 1)):
        batches = batches_of(
            *(examples, build, 16), devices=devices, parts=4, chunk=chunk
        )
        count = 48 // devices
        assert max(len(shape["student"].parts) for shape in batches.shapes) > 1
        for shape in batches.shapes:
            parts = shape["student"].parts
            left = [texts % pieces for texts, _ in parts]
            assert sum(left) == count % pieces
        # What is drawn does not hang on it.
        found = rows_by_device(batches[2]["student"], devices)
        plain = rows_by_device(batches_of(examples, build, 16)[2]["student"])
        assert sorted(sum(found, [])) == sorted(sum(plain, []))


def test_groups_hold_a_positive_then_distinct_negatives(field):
    (group,) = groups(1, negatives=5)
    seen = collections.Counter()
    for seed in range(60):
        _, documents, drawn = chosen(seed, group_batches(field, group_size=4), group)
        assert [words[1] for words in documents] == ["good", "bad", "bad", "bad"]
        numbers = [words[2] for words in documents[1:]]
        assert len(set(numbers)) == 3
        seen.update(numbers)
        # Scores belong to the documents that were drawn: positives come first.
        assert drawn.targets["scores"][0] in (0, 1)
        scores = drawn.targets["scores"][1:]
        assert [2 + int(n) for n in numbers] == scores.tolist()
    assert set(seen) == set("01234") and min(seen.values()) > 20


WEIGHTS = {"en": 4.0, "de": 0.0, ANY: 1.0}
SHARES = {"en": 4 / 6, "fr": 1 / 6, "ja": 1 / 6}


def chi_square(counts, total):
    assert set(counts) <= set(SHARES)
    return sum((counts[k] - total * p) ** 2 / (total * p) for k, p in SHARES.items())


def test_shares_of_languages_over_many_draws_are_those_asked_for():
    """To 1 %: a generator for each query, a slot for each text, as batches have."""
    counts, slots = collections.Counter(), 10
    for example in range(10_000):
        numbers = np.random.default_rng((7, 1, 0, example)).random(slots)
        counts.update(draw_language(LANGUAGES, WEIGHTS, number) for number in numbers)
    assert sum(counts.values()) == 100_000 and set(counts) == set(SHARES)
    for language, share in SHARES.items():
        assert abs(counts[language] / 100_000 - share) < 0.01


class Words:
    """Stands for a tokenizer: a text is its first word, which says its language."""

    max_length, tokenizer = 1, None

    def ids(self, texts):
        return [[LANGUAGES.index(text.split()[0])] for text in texts]


@pytest.mark.parametrize("mixing", ["passages", "entries"])
def test_shares_of_languages_over_epochs_are_those_asked_for(mixing):
    """To 1 % over 100,000 draws, each by the (seed, epoch, query) of its batch."""
    (group,), G, epochs = groups(1, negatives=8), 9, 11_200
    build = GroupBatches(Words(), Words(), G, mixing, WEIGHTS, WEIGHTS, False)
    queries, documents = collections.Counter(), collections.Counter()
    rngs = [np.random.default_rng((3, EXAMPLE, e, 0)) for e in range(epochs)]
    for drawn in build.draw([group] * epochs, rngs):
        queries[LANGUAGES[drawn.texts["query"][0][0]]] += 1
        documents.update(LANGUAGES[ids[0]] for ids in drawn.texts["document"])
    assert sum(documents.values()) == G * epochs > 100_000
    assert set(documents) == set(queries) == set(SHARES)
    for language, share in SHARES.items():
        # Where all nine are of one language, they are one draw.
        off = 0.01 if mixing == "passages" else 0.015
        assert abs(documents[language] / (G * epochs) - share) < off
        assert abs(queries[language] / epochs - share) < 0.015


def drawn_by_place(examples, build, batch_size, processes, batches=24):
    """(query, its documents, scores) of each (epoch, example) that is met."""
    found, order = {}, Order(len(examples), batch_size, seed=5)
    options = {"devices": len(sum(processes, [])), "parts": 1}
    for rows in processes:
        mine = batches_of(
            examples, build, batch_size, order=order, rows=rows, **options
        )
        for i in range(batches):
            devices = len(rows)
            scores = mine[i]["targets"]["scores"].reshape(devices, -1, 3)
            for said, own in zip(
                rows_by_device(mine[i]["student"], devices), scores, strict=True
            ):
                for k, query in enumerate(said[: len(own)]):
                    documents = said[len(own) + 3 * k : len(own) + 3 * k + 3]
                    place = (tuple(query), *map(tuple, documents), *own[k].tolist())
                    found.setdefault(int(own[k][0]) // 100, []).append(place)
    return {example: collections.Counter(places) for example, places in found.items()}


@pytest.mark.parametrize("mixing", ["passages", "entries"])
def test_draws_do_not_depend_on_batches_or_processes(field, mixing):
    """The texts, languages and scores that a query gets in its first four epochs."""
    examples = groups(16)
    build = group_batches(field, mixing=mixing, document_languages=WEIGHTS)
    one = drawn_by_place(examples, build, 4, [[0]], batches=16)
    assert sum(map(len, one.values())) > 50  # not the same in each epoch
    for batch_size, processes in ((4, [[0], [1]]), (8, [[0, 2], [3], [1]])):
        cut = drawn_by_place(
            examples, build, batch_size, processes, batches=64 // batch_size
        )
        assert cut == one


@pytest.mark.parametrize("mixing", ["passages", "entries"])
def test_languages_follow_the_weights(field, mixing):
    (group,) = groups(1, negatives=2)
    build = group_batches(
        field, mixing=mixing, query_languages=WEIGHTS, document_languages=WEIGHTS
    )
    queries, documents, mixed, same = [collections.Counter() for _ in range(4)]
    for seed in range(400):
        query, texts, _ = chosen(seed, build, group)
        queries[query[0]] += 1
        documents.update(words[0] for words in texts[:1])
        mixed[len({words[0] for words in texts}) > 1] += 1
        same[query[0] == texts[0][0]] += 1
    # 13.8 is the 99.9 % point of chi-square with two degrees of freedom.
    assert chi_square(queries, 400) < 13.8
    assert chi_square(documents, 400) < 13.8
    # Passages: all three alike with probability (4^3 + 1 + 1) / 6^3; entries: always.
    alike = 1.0 if mixing == "entries" else 66 / 216
    assert abs(mixed[False] / 400 - alike) < 0.08
    # The query's language is drawn on its own: (16 + 1 + 1) / 36.
    assert abs(same[True] / 400 - 0.5) < 0.08


def test_entries_draw_from_the_languages_of_all_documents(field):
    (group,) = groups(1, negatives=2, positives=1)
    fewer = [{k: t[k] for k in ("fr", "en")} for t in group.negatives]
    group = Group(group.id, group.query, group.positives, fewer, group.scores)
    build = group_batches(field, mixing="entries")
    found = [chosen(seed, build, group)[1] for seed in range(50)]
    languages = {tuple(words[0] for words in documents) for documents in found}
    assert languages == {("en",) * 3, ("fr",) * 3}
    apart = [{"ja": "ja bad"}, {"fr": "fr bad"}]
    group = Group("the group", group.query, group.positives, apart, group.scores)
    with pytest.raises(InputError, match="the group: its documents have no language"):
        chosen(0, build, group)


@pytest.mark.parametrize("mixing", ["passages", "entries"])
def test_a_language_depends_on_the_place_alone(field, mixing):
    """Not on how many documents there are, nor on which of them."""
    (few,), (many,) = groups(1, negatives=2), groups(1, negatives=40, positives=3)
    small = group_batches(field, mixing=mixing)
    large = group_batches(
        field, mixing=mixing, group_size=9, choice=Choice(sampler("top"), 2)
    )
    languages = set()
    for seed in range(30):
        query, documents, _ = chosen(seed, small, few)
        other_query, more, _ = chosen(seed, large, many)
        assert query[0] == other_query[0]
        assert [d[0] for d in documents] == [d[0] for d in more[:3]]
        languages.add(tuple(d[0] for d in documents))
    assert len(languages) == 4 or mixing == "passages"


def round_robin(field, languages=("de", "en", "ja"), **changes):
    weights = dict.fromkeys(languages, 1.0)
    return group_batches(
        field, mixing="round_robin", document_languages=weights, **changes
    )


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_round_robin_shows_each_group_in_every_language(field, devices):
    """Language after language, with the same query, documents and scores."""
    build, entries = round_robin(field), 4
    batches = batches_of(groups(13), build, entries, devices=devices)
    order, seen = Order(13, entries, seed=0), collections.Counter()
    for i in range(6):
        batch, queries, documents = batches[i], [], []
        for rows in rows_by_device(batch["student"], devices):
            share = len(rows) // 4
            assert share == 3 * entries // devices
            said = [words(field.tokenizer, row) for row in rows]
            queries += said[:share]
            documents += [said[k : k + 3] for k in range(share, len(rows), 3)]
        for place in range(entries):
            same = range(place, 3 * entries, entries)
            assert len({tuple(queries[k]) for k in same}) == 1
            for language, k in zip(("de", "en", "ja"), same, strict=True):
                assert [d[0] for d in documents[k]] == [language] * 3
                rest = [d[1:] for d in documents[k]]
                assert rest == [d[1:] for d in documents[place]]
            scores = batch["targets"]["scores"][list(same)]
            assert (scores == scores[0]).all()
            assert int(scores[0, 0]) // 100 == int(queries[place][2])
        seen.update(int(query[2]) for query in queries[:entries])
        if i + 1 == order.window(i).stop:
            expected = [m for k in range(i + 1) for m in order[k]]
            assert seen == collections.Counter(example for _, example in expected)


@pytest.mark.parametrize("mixing", ["passages", "entries", "round_robin"])
def test_languages_that_texts_are_shown_in_go_with_the_batch(field, mixing):
    names = ("ja", "de", "en")  # and others: fr
    weights = dict.fromkeys(("de", "en", "fr"), 1.0)
    options = {"mixing": mixing, "document_languages": weights, "languages": names}
    batches = batches_of(groups(13), group_batches(field, **options), devices=2)
    plain = batches_of(
        groups(13), group_batches(field, **options | {"languages": ()}), devices=2
    )
    seen = set()
    for i in range(3):
        batch, same = batches[i], plain[i]
        assert_same(batch["student"], same["student"])
        assert batch["targets"].keys() - same["targets"].keys() == {
            "query_language",
            "document_language",
        }
        queries, documents = [], []
        for rows in rows_by_device(batch["student"], 2):
            said = [words(field.tokenizer, row)[0] for row in rows]
            queries += said[: len(rows) // 4]
            documents += said[len(rows) // 4 :]
        for name, shown in (("query", queries), ("document", documents)):
            found = batch["targets"][f"{name}_language"]
            assert found.dtype == np.int32
            expected = [names.index(s) if s in names else 3 for s in shown]
            assert found.reshape(-1).tolist() == expected
            seen |= set(expected)
    assert seen >= {1, 2, 3}


def test_round_robin_needs_every_language(field):
    (group,) = groups(1)
    build = round_robin(field, ("de", "ko", "en"))
    with pytest.raises(InputError, match="group 0: not all .* exist in ko, .*round_"):
        chosen(0, build, group)


def test_several_positives_come_first(field):
    (group,) = groups(1, positives=3)
    build = group_batches(
        field, group_size=4, choice=Choice(sampler("top"), positives=2)
    )
    for seed in range(10):
        _, documents, drawn = chosen(seed, build, group)
        assert [d[1] for d in documents] == ["good", "good", "bad", "bad"]
        assert (drawn.targets["scores"][:2] < 3).all()
        assert drawn.targets["scores"][2:].tolist() == [3, 4]


def test_languages_without_weight_are_drawn_where_there_are_no_others(field):
    (group,) = groups(1)
    build = group_batches(field, query_languages={"ko": 1.0})
    queries = {chosen(seed, build, group)[0][0] for seed in range(60)}
    assert queries == set(LANGUAGES)


def test_too_few_negatives_and_missing_scores_name_the_example(field):
    (group,) = groups(1, negatives=2)
    with pytest.raises(InputError, match="group 0: 2 negatives.*needs 3.*group_size"):
        chosen(0, group_batches(field, group_size=4), group)
    bare = Group(group.id, group.query, group.positives, group.negatives, None)
    with pytest.raises(InputError, match="group 0: no teacher scores"):
        chosen(0, group_batches(field), bare)
    _, documents, drawn = chosen(0, group_batches(field, with_scores=False), bare)
    assert len(documents) == 3 and not drawn.targets


def test_ragged_negatives(field):
    corpus = [text("bad", str(i)) for i in range(4)]
    negatives = np.array([[0, 1, 2], [3, -1, 1], [2, -1, -1]])
    scores = np.float32([[9, 0, 1, 2], [9, 3, np.nan, 1], [9, 2, np.nan, np.nan]])
    source = WithNegatives(InMemory(groups(3)), corpus, negatives, scores)
    build = group_batches(field, document_languages={"en": 1.0})
    for index in (0, 1):
        for seed in range(10):
            _, documents, drawn = chosen(seed, build, source[index])
            numbers = [float(words[2]) for words in documents[1:]]
            assert numbers == drawn.targets["scores"][1:].tolist()
    with pytest.raises(InputError, match="group 2: 1 negatives"):
        chosen(0, build, source[2])


class Failing:
    """Groups of which one is broken."""

    def __init__(self, broken):
        self._broken = broken
        self._groups = groups(200)

    def __len__(self):
        return 200

    def __getitem__(self, index):
        if index == self._broken:
            raise InputError("data.jsonl, row 5: no positive document.")
        return self._groups[index]


def test_errors_of_worker_threads_reach_the_consumer(field):
    order = Order(200, 2, 0)
    (_, broken), _ = order[80]
    batches = Batches(Failing(broken), order, group_batches(field))
    made = stream(batches, order.window(80).start - 1, 90, threads=2, prefetch=4)
    with pytest.raises(InputError) as error:
        for _ in range(8):
            next(made)
    assert str(error.value) == "data.jsonl, row 5: no positive document."
    made.close()


def test_errors_in_the_first_batches_come_at_once(field):
    order = Order(200, 2, 0)
    (_, broken), _ = order[3]
    with pytest.raises(InputError, match="row 5: no positive document"):
        Batches(Failing(broken), order, group_batches(field))
