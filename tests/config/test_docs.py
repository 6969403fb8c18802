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
        ("model.lexecho", "True", "c.model.head.lexecho = …"),
        ("stages.one.model.latents", "3", "c.model.head.latents = …"),
        ("loss.infonce_temperature", "0.1", 'c.loss = {"infonce": {"temperature": …}}'),
        ("regularizer.warmup_steps", "9", 'entry("quadratic", steps=…)'),
        ("init.from_pivot", "shared", 'c.init.head = {"model": …, "encoder": '),
        ("stages.one.init.echo", "idf", 'c.init.idf_echo = {"scale": …}'),
    ],
)
def test_a_field_that_moved_names_its_place(field, value, place):
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


@pytest.mark.parametrize("field", ["files", "query_languages", "corpus"])
def test_a_list_where_text_belongs_is_refused(field):
    config = get_default()
    config.data[field] = ["x"]
    with pytest.raises(
        InputError, match=rf"config.data.{field} is \['x'\]; it must be"
    ):
        validate(config)
