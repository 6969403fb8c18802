"""The page about the config, and configs of earlier releases."""

import json
import pathlib

import pytest

from lsrjax.config import docs, fields
from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.errors import InputError
from lsrjax.losses import objective

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_what_the_package_says():
    written = PAGE.read_text(encoding="utf-8")
    assert written == docs.text(), "python -m lsrjax.config.docs > docs/config.md"
    for said in ("| lr | `2e-05` | > 0 | peak", "| lexecho | `False`", "### `infonce`"):
        assert said in written


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("model.lexecho", "True", "c.model.head.lexecho = True"),
        ("stages.one.model.latents", "3", "c.model.head.latents = 3"),
        (
            "loss.infonce_temperature",
            "0.1",
            'c.loss = {"infonce": {"temperature": 0.1}}',
        ),
        ("regularizer.warmup_steps", "9", 'entry("quadratic", steps=9)'),
        ("data.files", "a.jsonl", "c.data.source = entry(\"files\", files='a.jsonl')"),
        ("dev.files", "a, b/*.tsv", "entry(\"files\", files=['a', 'b/*.tsv'])"),
        (
            "data.dataset",
            "a/b, c/d:en-de+en-fr",
            "entry(\"datasets\", dataset={'a/b': '', 'c/d': ['en-de', 'en-fr']})",
        ),
        ("data.queries", "en:q.tsv", "entry(\"colbert\", queries={'en': 'q.tsv'})"),
        (
            "data.columns.pos_scores",
            "a_pos,b_pos",
            "c.data.format = entry(\"milco\", pos_scores=['a_pos', 'b_pos'])",
        ),
        ("data.columns.english", "en", "entry(\"alignment\", english='en')"),
        ("data.score_weights", "2,1", 'entry("milco", score_weights=(2, 1))'),
        ("data.min_label", "0.7", 'entry("labelled", min_label=0.7)'),
        ("data.mix_temperature", "3", 'entry("temperature", temperature=3)'),
        ("data.margin_bins", "5", 'entry("margin_bins", bins=5)'),
        ("data.sets.one.files", "a", "c.data.source = entry(\"files\", files='a')"),
        ("data.sets.one.weight", "2", 'weights={"NAME OF THE SET": 2}'),
        (
            "init.from_pivot",
            "shared",
            'c.init.head = {"encoder": \'shared\', "model": "…"}',
        ),
        ("stages.one.init.echo", "idf", "c.init.idf_echo = {}"),
        ("init.echo_scale", "0.6", 'c.init.idf_echo = {"scale": 0.6}'),
    ],
)
def test_a_field_that_moved_names_its_place(field, value, place):
    """The value is written out as it is there."""
    config = get_default()
    config.stages = {"one": get_default()}
    with pytest.raises(InputError) as error:
        fields.set_field(config, field, value, "--config")
    assert f"--config.{field} has moved: " in str(error.value)
    assert place in str(error.value)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("c.model.lexecho = True", "config.model.lexecho has moved: it is an option"),
        ("c.loss.name = 'kl:1,infonce:2'", "loss.name is 'kl:1,infonce:2'; it is one"),
        ("c.loss.temperature = 2.0", "config.loss.temperature has moved: it is an"),
        ("c.init.static = 'idf'", "config.init.static has moved: static queries that"),
        ("c.data.files = 'a,b'", "entry(\"files\", files=['a', 'b'])"),
        ("c.data.columns.pos = 'p'", "entry(\"milco\", pos='p')"),
        ("c.dev.split = name", 'c.dev.source = entry("datasets", split=…)'),
    ],
)
def test_a_config_of_an_earlier_release_is_told_where_fields_are(tmp_path, line, place):
    path = tmp_path / "old.py"
    path.write_text(
        "from lsrjax.config import get_default\n\ndef get_config():\n"
        f"    c = get_default()\n    {line}\n    return c\n"
    )
    with pytest.raises(InputError) as error:
        fields.load(path)
    assert place in str(error.value) and "line 5, in get_config" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "new"),
    [
        ("data.query_languages", "en:5,*:1", "{'en': 5, '*': 1}"),
        ("data.document_languages", "en:0.2", "{'en': 0.2}"),
        ("data.corpus", "a.tsv,b.tsv", "['a.tsv', 'b.tsv']"),
        ("data.corpus", "en:a.tsv, de:b.tsv", "{'en': 'a.tsv', 'de': 'b.tsv'}"),
        ("data.corpus", "datasets:me/docs", "{'dataset': 'me/docs'}"),
        (
            "data.corpus",
            "en:datasets:me/docs::train,en:/x.tsv",
            "{'en': [{'dataset': 'me/docs', 'split': 'train'}, '/x.tsv']}",
        ),
        ("data.source.files", "a,b", "['a', 'b']"),
        ("dev.source.dataset", "a/b:c", "{'a/b': 'c'}"),
        ("data.format.queries", "en:q.tsv", "{'en': 'q.tsv'}"),
    ],
)
def test_a_text_of_an_earlier_release_is_refused_with_its_spelling(field, value, new):
    said = f"{field} is {value!r}, as in earlier releases; write {new}."
    config = get_default()
    with pytest.raises(InputError) as error:
        fields.set_field(config, field, value, "--config")
    assert str(error.value) == f"--config.{said}"
    *groups, last = field.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[last] = value
    with pytest.raises(InputError) as error:
        validate(config)
    assert str(error.value) == f"config.{said}"
    fields.set_field(config, field, new, "--config")
    assert repr(node[last]) in (new, new.replace("5", "5.0").replace(" 1", " 1.0"))


def test_the_name_of_a_file_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en:a,b.tsv").touch()
    config = get_default()
    for field in ("data.corpus", "data.source.files"):
        fields.set_field(config, field, "en:a,b.tsv", "--config")
    assert config.data.corpus == config.data.source.files == "en:a,b.tsv"
    fields.set_field(config, "data.corpus", "file:///x.tsv", "--config")
    fields.set_field(config, "data.source.files", "*.jsonl", "--config")


def test_a_loss_alone_goes_by_its_name():
    config = get_default()
    config.loss.name = "infonce"
    assert config.loss == {"infonce": {}}
    fields.set_field(config, "loss.name", "kl", "--config")
    fields.set_field(config, "loss.kl.temperature", "3", "--config")
    assert config.loss == {"kl": {"temperature": 3}}
    assert json.loads(config.to_json())["loss"] == config.loss
    config.loss = "margin_mse"
    assert config.loss == {"margin_mse": {}}
    config.loss = entry("kl", weight=0.5)
    assert config.loss == {"kl": {"weight": 0.5}}
    config.update(loss="infonce", seed=3)
    config.model.update(head=entry("splade", pooling="sum"), hidden_size=16)
    assert (config.loss, config.seed) == ({"infonce": {}}, 3)
    assert (config.model.head.pooling, config.model.hidden_size) == ("sum", 16)
    config.model.update(head={"tied": False})
    assert (config.model.head.pooling, config.model.head.tied) == ("sum", False)
    config.loss = {"infonce": {}, "kl": {}}
    assert list(objective.of(config.loss).weights) == ["infonce", "kl"]
    with pytest.raises(InputError, match="it is one entry. Several"):
        fields.set_field(config, "loss.name", "kl:1,margin_mse:0.05", "--config")


def test_what_names_no_entry_is_refused():
    config = get_default()
    config.regularizer.schedule = 3.0
    with pytest.raises(InputError, match="regularizer.schedule is 3.0; give a name"):
        validate(config)


def test_what_an_entry_takes_but_has_moved_is_refused_at_the_start():
    config = get_default()
    config.regularizer.warmup_steps = 10
    with pytest.raises(InputError, match="regularizer.warmup_steps has moved: "):
        validate(config)


@pytest.mark.parametrize("field", ["mixing", "query_languages", "short_rows"])
def test_a_list_where_none_belongs_is_refused(field):
    config = get_default()
    config.data[field] = ["x"]
    with pytest.raises(
        InputError, match=rf"config.data.{field} is \['x'\]; it must be"
    ):
        validate(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss.kl", "{1: 2}", "config.loss.kl.1 is no option of 'kl'"),
        ("init.encoder", "{None: 1}", "config.init.encoder.None is no option"),
        ("model.head", "{1: 2}", "--config.model.head: keywords must be strings"),
        ("model.head", "{'a.b': 1}", "--config.model.head: ConfigDict does not accept"),
        ("model.head", "..", "config.model.head is '..'; known: "),
        ("loss", "{'name': 3}", "--config.loss: loss.name is 3; it is one entry"),
        ("data.corpus", "{'dataset': 3}", "config.data.corpus is {'dataset': 3}; give"),
    ],
)
def test_keys_and_names_that_are_none_are_refused(field, value, message):
    config = get_default()
    with pytest.raises(InputError) as error:
        fields.set_field(config, field, value, "--config")
        validate(config)
    assert str(error.value).startswith(message)
