import collections
import itertools
import threading

import jax
import numpy as np
import pytest

from lsrjax.data import embedded
from lsrjax.data.loader import (
    Batches,
    GroupBatches,
    Order,
    PairBatches,
    TextField,
    stream,
)
from lsrjax.data.sources import ANY, Group, InMemory, Pair, WithNegatives
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError

WORDS = ["library", "kernel", "system", "file", "network", "driver", "font", "image"]
LANGUAGES = ("en", "de", "fr", "ja")


@pytest.fixture(scope="module")
def english():
    return TextTokenizer(embedded.ENGLISH_TOKENIZER)


@pytest.fixture(scope="module")
def field(english):
    return TextField(english, 16, (4, 8))


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


def batches_of(examples, build, batch_size=4, seed=0, window=3):
    source = InMemory(examples)
    return Batches(source, Order(len(source), batch_size, seed, window), build)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def words(tokenizer, ids):
    """The words of a text's ids, special tokens left out."""
    return " ".join(map(tokenizer.token, ids[1:-1])).replace(" ##", "").split()


def chosen(seed, build, group):
    """The words of the query and of the documents drawn, and all that was drawn."""
    (drawn,) = build.draw([group], [np.random.default_rng(seed)])
    query, *documents = [
        words(build.query.tokenizer, ids)
        for ids in (*drawn["query"], *drawn["document"])
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
        made = stream(batches, start, threads=3, prefetch=4)
        try:
            return list(itertools.islice(made, count))
        finally:
            made.close()

    whole = take(0, 11)
    for start in (1, 3, 7):
        assert_same(take(start, 11 - start), whole[start:])
    assert_same(whole[5], batches[5])


@pytest.mark.parametrize(
    ("examples", "batch_size", "window"), [(13, 4, 3), (12, 4, 3), (3, 8, 2), (1, 2, 1)]
)
def test_each_example_once_an_epoch(examples, batch_size, window):
    order = Order(examples, batch_size, seed=5, window=window)
    windows = 4 * -(-examples // (batch_size * window))
    members = [member for i in range(windows) for member in order[i]]
    assert len(members) == windows * window * batch_size
    whole = len(members) // examples * examples
    for start in range(0, whole, examples):
        epoch = members[start : start + examples]
        assert {e for e, _ in epoch} == {start // examples}
        assert sorted(place for _, place in epoch) == list(range(examples))


def test_batches_hold_the_examples_of_their_window(field):
    batches = batches_of(groups(13), group_batches(field, query_languages={"en": 1.0}))
    order = Order(13, 4, 0, 3)
    for window in range(3):
        made = [batches[3 * window + i]["texts"]["query"] for i in range(3)]
        ids = [
            row[mask > 0]
            for text in made
            for row, mask in zip(text["ids"], text["mask"], strict=True)
        ]
        found = sorted(int(words(field.tokenizer, row)[-1]) for row in ids)
        assert found == sorted(example for _, example in order[window])


def test_fewer_examples_than_a_batch(field):
    batch = batches_of(groups(3), group_batches(field), batch_size=8)[0]
    assert batch["texts"]["query"]["ids"].shape[0] == 8
    assert batch["texts"]["document"]["ids"].shape[0] == 24
    assert batch["targets"]["scores"].shape == (8, 3)


def test_epochs_and_seeds_differ_in_order_and_draws(field):
    orders = [
        [m for _, m in Order(12, 4, seed, 3)[w]] for seed in (0, 1) for w in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    # One example fills all batches, so that only the draws can differ.
    batches = batches_of(groups(1, negatives=9), group_batches(field), 1, window=1)
    scores = [tuple(batches[i]["targets"]["scores"][0]) for i in range(10)]
    assert len(set(scores)) > 5


def test_batches_of_a_window_are_of_about_one_length(field):
    rows = [Pair(f"{i}", " ".join(WORDS[: i % 10 + 1]), "x", "de") for i in range(64)]
    build = PairBatches(field, field)
    lengths = []
    for window in (1, 16):
        batches = batches_of(rows, build, window=window)
        made = [batches[i]["texts"]["english"]["mask"] for i in range(16)]
        lengths.append(np.mean([mask.mean() for mask in made]))
    assert lengths[1] > lengths[0]


def test_pairs_share_one_length(field, english):
    teacher = TextField(english, 12, (4, 8))
    rows = [Pair("0", "kernel", " ".join(WORDS * 3), "de")]
    batch = batches_of(rows, PairBatches(field, teacher), batch_size=2)[0]
    assert set(batch) == {"texts", "teacher_text"}
    assert batch["texts"]["translation"]["ids"].shape == (2, 16)
    assert batch["texts"]["english"]["ids"].shape == (2, 16)
    # The teacher has a smaller limit of its own.
    assert batch["teacher_text"]["ids"].shape == (2, 12)


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
        assert drawn["scores"][0] in (0, 1)
        assert [2 + int(n) for n in numbers] == drawn["scores"][1:].tolist()
    assert set(seen) == set("01234") and min(seen.values()) > 20


WEIGHTS = {"en": 4.0, "de": 0.0, ANY: 1.0}
SHARES = {"en": 4 / 6, "fr": 1 / 6, "ja": 1 / 6}


def chi_square(counts, total):
    assert set(counts) <= set(SHARES)
    return sum((counts[k] - total * p) ** 2 / (total * p) for k, p in SHARES.items())


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
    assert len(documents) == 3 and "scores" not in drawn


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
            assert numbers == drawn["scores"][1:].tolist()
    with pytest.raises(InputError, match="group 2: 1 negatives"):
        chosen(0, build, source[2])


class Failing:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            raise InputError("data.jsonl, row 5: no positive document.")
        return groups(8)[index]


def test_errors_of_worker_threads_reach_the_consumer(field):
    batches = Batches(Failing(), Order(8, 2, 0, 1), group_batches(field))
    made = stream(batches, 0, threads=2, prefetch=4)
    with pytest.raises(InputError) as error:
        for _ in range(8):
            next(made)
    assert str(error.value) == "data.jsonl, row 5: no positive document."
    made.close()
