"""Batches of one language, and shares of languages by weight and temperature."""

import collections
import json
import math

import numpy as np
import pytest

from lsrjax.cli import doctor_checks
from lsrjax.config import check_data
from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry
from lsrjax.data.batching import languages, mixing
from lsrjax.data.batching.drawing import GroupBatches
from lsrjax.data.batching.loader import Batches
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY, Group, InMemory, Pair
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError
from lsrjax.training import stage_data
from lsrjax.training.batch_contents import Contents

SIZES = {"da": 64, "ja": 16, "sw": 9}


@pytest.fixture(scope="module")
def field():
    return TextField(TextTokenizer(embedded.ENGLISH_TOKENIZER), 16)


def group(number, *named):
    """A query and a document in some languages."""
    query = {language: f"{language} query {number}" for language in named}
    document = {language: f"{language} text {number}" for language in named}
    return Group(f"group {number}", query, [document], [])


def rows(sizes=SIZES):
    """A group in one language each, in random order."""
    named = [language for language, count in sizes.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(named)).tolist()
    return InMemory([group(i, named[k]) for i, k in enumerate(order)])


def data(**fields):
    own = get_default().data
    for name, value in fields.items():
        own[name] = value
    return own


def order_of(source, batch_size=8, seed=3, sizes=None, **fields):
    own = data(**fields)
    parts = languages.parts_of(source, sizes or [len(source)])
    return languages.order_of(own, parts, batch_size, seed)


def spoken(order, source, batches):
    """The languages of each batch's queries."""
    shown = order.of(source)
    return [
        [language for _, n in order[i] for language in shown[n].query]
        for i in range(batches)
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1 / 0.3, math.inf])
def test_batches_are_of_one_language_by_its_share(temperature):
    source = rows()
    order = order_of(source, batches_from="language", language_temperature=temperature)
    found = spoken(order, source, 400)
    assert all(len(batch) == 8 and len(set(batch)) == 1 for batch in found)
    seen = collections.Counter(batch[0] for batch in found)
    # XLM-R's q = p^alpha / sum p^alpha, with alpha = 1 / T.
    p = np.array(list(SIZES.values())) / 89
    q = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    for language, share in zip(SIZES, q, strict=True):
        assert abs(seen[language] - 400 * share) < 3


def test_weights_are_of_the_languages_that_rows_name():
    source, weights = rows(), {"ja": 3.0, "da": 0.5, ANY: 0}
    order = order_of(source, query_languages=weights)
    found = spoken(order, source, 300)
    # Mixed batches, but no Swahili; in all, weight x examples.
    assert all(set(batch) == {"da", "ja"} for batch in found)
    seen = collections.Counter(sum(found, []))
    assert abs(seen["ja"] / 2400 - 3 * 16 / (3 * 16 + 0.5 * 64)) < 0.01


@pytest.mark.parametrize("kind", ["language", "mixed"])
def test_every_language_goes_epoch_after_epoch(kind):
    source = rows()
    order = order_of(source, batches_from=kind, language_temperature=2.0)
    shown, seen = order.of(source), collections.defaultdict(list)
    for i in range(60):
        window = order.window(i)
        assert i in window
        for epoch, number in order[i]:
            example = shown[number]
            (language,) = example.query
            seen[language].append((epoch, example.id))
    for language, size in SIZES.items():
        assert max(collections.Counter(seen[language]).values()) == 1
        last = max(epoch for epoch, _ in seen[language])
        for epoch in range(last):
            assert sum(e == epoch for e, _ in seen[language]) == size


def test_a_query_in_several_languages_has_a_number_in_each():
    source = InMemory([group(i, "de", "en") for i in range(5)] + [group(5, "en")])
    parts = languages.parts_of(source, [6])
    assert [(p.language, p.numbers.tolist()) for p in parts[0]] == [
        ("de", [0, 1, 2, 3, 4]),
        ("en", [0, 1, 2, 3, 4, 5]),
    ]
    order = order_of(source, batch_size=4, batches_from="language")
    shown = order.of(source)
    assert len(shown) == 11 and list(shown[4].query) == ["de"]
    # Documents keep all of their languages.
    assert list(shown[4].positives[0]) == ["de", "en"]
    assert (
        shown.place(5) == {"file": "in memory", "row": 0}
        if hasattr(source, "place")
        else list(shown[5].query) == ["en"]
    )
    with pytest.raises(IndexError):
        shown[11]


def test_pairs_are_in_the_language_of_the_translation():
    named = ["da"] * 9 + ["sv"] * 5
    source = InMemory([Pair(str(i), "a", "b", name) for i, name in enumerate(named)])
    order = order_of(source, batch_size=4, batches_from="language")
    shown = order.of(source)
    found = [{shown[n].language for _, n in order[i]} for i in range(20)]
    assert {tuple(one) for one in found} == {("da",), ("sv",)}


def test_a_batch_is_of_one_set_and_language_by_the_mixers_weight():
    sets = [rows({"da": 20, "ja": 20}), rows({"da": 40})]
    source = mixing.Concatenated(sets)
    own = get_default().data
    own.sets = {name: data_set(source=entry("files", files=name)) for name in "ab"}
    own.mixer, own.batches_from = "round_robin", "language"
    parts = languages.parts_of(source, [40, 40])
    order = languages.order_of(own, parts, 4, 0)
    kinds = []
    for i in range(200):
        numbers = [order.parts[order_part(order, n)] for _, n in order[i]]
        assert len({id(part) for part in numbers}) == 1
        kinds.append((numbers[0].language, int(numbers[0].numbers[0] >= 40)))
    seen = collections.Counter(kinds)
    assert abs(seen["da", 1] - 100) < 3
    assert abs(seen["da", 0] - 50) < 3 and abs(seen["ja", 0] - 50) < 3


def order_part(order, number):
    """The part of a number, by adding up sizes."""
    for k, part in enumerate(order.parts):
        if number < len(part.numbers):
            return k
        number -= len(part.numbers)
    raise AssertionError


def test_a_replaced_example_is_replaced_in_its_language():
    source = rows({"da": 6, "ja": 6})
    order = order_of(source, batch_size=3, batches_from="language")
    # As where a bad record was replaced by one in the other language.
    examples = [source[i] for i in range(len(source))]
    own = next(i for i, one in enumerate(examples) if "da" in one.query)
    examples[own] = next(one for one in examples if "ja" in one.query)
    found = spoken(order, InMemory(examples), 24)
    assert all(len(set(batch)) == 1 for batch in found)
    none = InMemory([group(i, "ja") for i in range(12)])
    with pytest.raises(InputError, match="No example is left in the language 'da'"):
        spoken(order, none, 24)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batches_from": "language", "batch_size": 10},
            r"fewer are in sw \(9\).*query_languages = \{'sw': 0, '\*': 1\}",
        ),
        ({"query_languages": {"de": 1, ANY: 1}}, "names de, but the texts are in da"),
        ({"query_languages": {"da": 0, ANY: 0}}, "no language that counts"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        order_of(rows(), **fields)


def test_languages_that_nobody_states_have_no_batches():
    source = InMemory([group(i, ANY) for i in range(20)])
    with pytest.raises(InputError, match="no example states its language"):
        order_of(source, batches_from="language")


def test_documents_in_the_language_of_their_query(field):
    """`mixing = "query"`; where a document lacks it, one is drawn."""
    both = [group(i, "en", "de") for i in range(30)]
    source = InMemory([*both, Group("x", {"de": "de query"}, [{"en": "en text"}], [])])
    build = GroupBatches(
        query=field,
        document=field,
        group_size=1,
        mixing="query",
        query_languages={ANY: 1.0},
        document_languages={"en": 1.0},
        with_scores=False,
        languages=("de", "en"),
    )
    rngs = [np.random.default_rng(i) for i in range(31)]
    drawn = build.draw([source[i] for i in range(31)], rngs)
    asked = [int(one.targets["query_language"]) for one in drawn]
    shown = [one.targets["document_language"].tolist() for one in drawn]
    assert set(asked[:-1]) == {0, 1}
    assert shown[:-1] == [[language] for language in asked[:-1]]
    assert (asked[-1], shown[-1]) == (0, [1])


def test_texts_of_batches_are_of_one_language_on_any_number_of_devices(field):
    source = rows()
    order = order_of(source, batches_from="language", language_temperature=math.inf)
    build = GroupBatches(
        query=field,
        document=field,
        group_size=1,
        mixing="query",
        query_languages={ANY: 1.0},
        document_languages={ANY: 1.0},
        with_scores=False,
        languages=tuple(SIZES),
    )
    one = Batches(source, order, build)
    two = Batches(source, order, build, devices=2)
    seen = set()
    for i in (0, 3, 1, 77):
        targets = one[i]["targets"]
        own = set(targets["query_language"].tolist())
        assert len(own) == 1
        assert set(targets["document_language"].ravel().tolist()) == own
        assert one.examples(i) == two.examples(i)
        seen |= own
    assert len(seen) > 1
    # What the first batches hold, for the log.
    texts = {k: n for k, (n, _) in one.by_language["query"].items()}
    assert set(texts) == set(SIZES) and sum(texts.values()) == 32 * 8
    assert all(tokens > n for n, tokens in one.by_language["document"].values())
    assert two.by_language == one.by_language


def config_of(path, **fields):
    c = get_default()
    c.data.source = entry("files", files=str(path))
    c.loss = {"infonce": {}}
    for name, value in fields.items():
        c.data[name] = value
    return c


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_weights_without_a_column_are_refused_when_rows_are_opened(tmp_path):
    plain = write(tmp_path / "a.jsonl", {"query": "q", "pos": ["p"]})
    config = config_of(plain, query_languages={"da": 1})
    message = "query_languages = .* would have no effect: the data names no"
    with (
        pytest.raises(InputError, match=message),
        stage_data.tried(config, "group", 9),
    ):
        pass
    named = {"query": "q", "pos": ["p"], "lang": "da"}
    config = config_of(write(tmp_path / "b.jsonl", named), query_languages={"da": 1})
    (found,) = doctor_checks.data(config)
    assert found.level == doctor_checks.OK and "1 examples (da 1)" in found.text
    config.data.batches_from = "language"
    (found,) = doctor_checks.data(config)
    assert found.level == doctor_checks.ERROR and "fewer are in da (1)" in found.text
    config.data.batches_from = "mixed"
    with stage_data.tried(config, "group", 9) as (sets, _, _):
        assert languages.scheduled(config.data, sets)
        config.log.health = True
        assert Contents.of(config).of_sets(sets).languages == ("da",)


def refused(config, message):
    with (
        pytest.raises(InputError, match=message),
        stage_data.tried(config, "group", 9),
    ):
        pass


def test_shares_of_languages_leave_no_place_for_topics_and_data_sets(tmp_path):
    """They would have no effect on the draws, or groups other numbers."""
    named = {"query": "q", "pos": ["p"], "lang": "da"}
    path = write(tmp_path / "a.jsonl", named, named | {"lang": "fo"})
    config = config_of(path, query_languages={"da": 1}, topics=2)
    refused(config, r"config\.data\.topics: here languages have shares")
    config.data.topics = 0
    source = entry("files", files=str(path))
    config.data.source = "files"
    config.data.sets = {name: data_set(source=source) for name in ("a", "b")}
    config.data.batches_from, config.dro.groups = "one", "sets"
    refused(config, "batches_from = 'one', dro.groups = 'sets': here languages")
    config.data.query_languages = {ANY: 1}
    with stage_data.tried(config, "group", 9) as (_, seen, _):
        assert seen == 4


def test_groups_are_of_the_languages_that_rows_name(tmp_path):
    one = {"query": "q", "pos": ["p"], "language": "da"}
    config = config_of(write(tmp_path / "a.jsonl", one))
    config.dro.groups = "languages"
    refused(config, "dro.groups is 'languages', but the texts are in da: there are no")
    path = write(tmp_path / "b.jsonl", one, one | {"language": "fo"})
    config.data.source.files = str(path)
    with stage_data.tried(config, "group", 9) as (sets, _, _):
        contents = Contents.of(config).of_sets(sets)
    assert contents.languages == ("da", "fo") and contents.groups.count == 3


def test_plain_texts_have_the_languages_that_they_are_given_by(tmp_path):
    for name, texts in (("a", 3), ("b", 2)):
        rows = [{"id": f"{name}{i}", "text": "one two three"} for i in range(texts)]
        write(tmp_path / f"{name}.jsonl", *rows)
    places = {"da": str(tmp_path / "a.jsonl"), "fo": str(tmp_path / "b.jsonl")}
    config = config_of("", query_languages={"fo": 1})
    config.data.source = entry("texts", files=places)
    config.dro.groups = "languages"
    assert check_data.may_name_languages(config)
    with stage_data.tried(config, "group", 9) as (sets, _, _):
        assert languages.scheduled(config.data, sets)
        contents = Contents.of(config).of_sets(sets)
        parts = languages.parts_of(mixing.Concatenated(sets), [5])
    assert contents.languages == ("da", "fo") and contents.groups.count == 3
    assert [(p.language, [*p.numbers]) for p in parts[0]] == [
        ("da", [0, 1, 2]),
        ("fo", [3, 4]),
    ]
    config.data.source.files = [*places.values()]
    assert not check_data.may_name_languages(config)
    refused(config, "query_languages = .* no effect: the data names no language")


def test_pairs_have_shares_by_the_language_of_their_row(tmp_path):
    rows = [
        {"english": "a", "non_english": "b", "language": language}
        for language in ("da", "da", "fo")
    ]
    config = config_of(write(tmp_path / "a.jsonl", *rows), query_languages={"fo": 1})
    config.data.format, config.loss = "alignment", {"alignment": {}}
    with stage_data.tried(config, "pair", 9) as (sets, _, _):
        assert languages.scheduled(config.data, sets)
        parts = languages.parts_of(mixing.Concatenated(sets), [3])
    order = languages.order_of(config.data, parts, 1, 0)
    assert [part.language for part in order.parts] == ["fo"]
