"""Plain texts as a source of groups."""

import json

import numpy as np
import pytest

from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default, set_field
from lsrjax.config.nodes import entry
from lsrjax.data import sources
from lsrjax.data.batching.drawing import GroupBatches
from lsrjax.data.debian_texts import embedded
from lsrjax.data.sources import WithNegatives
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError
from lsrjax.training import stage_data

ROWS = {
    "en": [
        {"_id": "1", "title": "Kernels", "text": "A kernel talks to many devices."},
        {"_id": "2", "text": "Its drivers are modules. Some are loaded at boot."},
    ],
    "ja": [{"_id": "1", "title": "カーネル", "text": "カーネルは装置と話す。"}],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    return {lang: write(tmp_path / f"{lang}.jsonl", ROWS[lang]) for lang in ROWS}


def opened(files, kind="group", **options):
    data = get_default().data
    data.source = entry("texts", files=files, **options)
    return sources.open_source(data, kind)


def test_each_text_is_a_group_in_its_own_language(files):
    source = opened(files, pairs="title", longest=0)
    assert len(source) == 3
    assert source[0].query == {"en": "Kernels"}
    assert source[0].positives == [{"en": ROWS["en"][0]["text"]}]
    assert source[2].query == {"ja": "カーネル"}
    assert source[2].positives == [{"ja": ROWS["ja"][0]["text"]}]
    assert source.place(2)["id"] == "1" and source.place(2)["language"] == "ja"
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(InputError, match="the text '2' in en has no title"):
        source[1]


def test_one_file_is_of_no_stated_language_and_its_title_stays_out_of_the_text(files):
    source = opened(files["en"], pairs="span")
    assert source[0].positives == [{"*": ROWS["en"][0]["text"]}]


def test_the_embedded_texts_come_by_split_and_language():
    source = opened("embedded", pairs="title", split="dev")
    data = embedded.load("dev")
    assert len(source) == sum(map(len, data.texts.values()))
    found = {language for i in range(len(source)) for language in source[i].query}
    assert found == set(embedded.LANGUAGES)
    dev = get_default().dev
    dev.source = entry("texts", files="embedded", pairs="title")
    assert len(sources.open_source(dev, "group", where="config.dev")) == len(source)


def drawn(source, seeds):
    field = TextField(TextTokenizer(embedded.MULTILINGUAL_TOKENIZER), 40)
    weights = {"*": 1.0}
    build = GroupBatches(field, field, 1, "passages", weights, weights, False, True)
    rngs = [np.random.default_rng(seed) for seed in seeds]
    return build.draw([source[7]] * len(seeds), rngs)


def test_a_draw_is_a_function_of_seed_epoch_and_example():
    source = opened("embedded")
    one, again, other = drawn(source, [(0, 1, 7), (0, 1, 7), (0, 2, 7)])
    assert one.texts == again.texts and one.texts != other.texts
    assert one.keys == again.keys and one.keys != other.keys
    for name in ("query_key", "document_key"):
        assert np.array_equal(one.targets[name], again.targets[name])
    # What is only read is always the same.
    assert source[7].query == opened("embedded")[7].query


def test_what_was_made_for_a_pair_stays_with_it():
    source = opened("embedded")
    corpus = [{"en": "another"}]
    prepared = WithNegatives(source, corpus, np.zeros((len(source), 1), int), None)
    group = prepared[3].drawn(np.random.default_rng(5))
    assert group.query == source[3].query and group.negatives == corpus


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ("nowhere.jsonl", {}, "no file matches 'nowhere.jsonl'"),
        ("embedded", {"split": "all"}, "split is 'all'; known"),
        ("x", {"split": "dev"}, "split = 'dev' would have no effect: only embedded"),
        (3, {}, "files is 3"),
        ({"en": 3}, {}, "give a path"),
    ],
)
def test_bad_places_are_refused(files, options, message):
    with pytest.raises(InputError, match=message):
        opened(files, **options)


def test_flags_set_the_options_of_the_pairs(files):
    c = get_default()
    c.data.source = entry("texts", files=files, pairs=entry("crops"))
    set_field(c, "data.source.pairs.words", "6", "--config")
    assert sources.chosen(c.data.source).options.pairs.options.words == 6
    set_field(c, "data.source.pairs", "cloze", "--config")
    set_field(c, "data.source.pairs.keep", "0.3", "--config")
    chosen = sources.chosen(c.data.source).options.pairs
    assert (chosen.name, chosen.options.keep) == ("cloze", 0.3)


def test_pairs_of_translations_are_no_plain_texts(files):
    with pytest.raises(InputError, match="are in one language each"):
        opened(files, "pair")


def config_of(files, **fields):
    c = get_default()
    c.model.head, c.model.family, c.tokenizer = "splade", "bert", "embedded:english"
    c.data.source = entry("texts", files=files)
    c.loss = {"infonce": {}}
    c.steps, c.batch_size, c.model.num_layers = 2, 2, 1
    c.model.hidden_size, c.model.num_heads, c.model.intermediate_size = 8, 2, 8
    with c.unlocked():
        c.update_from_flattened_dict(fields)
    return c


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.format": "beir"}, "the source has its own format"),
        ({"data.corpus": "x"}, "the source has its own format"),
        ({"data.query_languages": {"en": 1}}, "query_languages = .* no effect"),
        ({"data.group_size": 2}, "data.group_size is 2, but .* no negatives"),
        ({"data.source.files": ""}, "source.files is '', but the source texts needs"),
    ],
)
def test_settings_without_effect_are_refused(files, fields, message):
    with pytest.raises(InputError, match=message):
        validate(config_of(files["en"], **fields))


def test_bad_texts_are_counted_and_replaced(tmp_path):
    rows = [{"_id": str(i), "text": f"a text of number {i}"} for i in range(20)]
    rows[3]["text"] = " "
    files = write(tmp_path / "texts.jsonl", rows)
    with open(files, "a") as file:
        file.write("{broken\n")
    with (
        pytest.raises(InputError, match="1 bad record .*broken JSON"),
        stage_data.tried(config_of(files), "group", 9.0),
    ):
        pass
    config = config_of(files, **{"data.bad_records": 0.1})
    with stage_data.tried(config, "group", 9.0) as ((source,), seen, bad):
        assert seen == len(source) == 20
        assert len({source[i].id for i in range(20)}) == 19
        assert bad.summary().startswith(
            "1 bad record was replaced (1 empty text) and 1"
        )
