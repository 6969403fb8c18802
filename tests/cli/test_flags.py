"""What the command line says, and what of it is refused."""

import math
import operator
import re

import pytest

from lsrjax.cli import doctor, flags
from lsrjax.cli.doctor_checks import ERROR, WARNING
from lsrjax.config import fields
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "unknown", "said"),
    [
        (["--confg", "x.py"], ["--confg"], "Did you mean --config?"),
        (["-confg=x.py"], ["-confg"], "Did you mean --config?"),
        (["--config", "x.py", "--wrkdir", "w"], ["--wrkdir"], "--workdir?"),
        (["--cfg", "x.py"], ["--cfg"], "--cfg is no flag"),
        (["--steps=3"], ["--steps"], "set --config.steps."),
        (["--lr", "1e-4"], ["--lr"], "set --config.optim.lr."),
        (["--learning-rate=1e-4"], ["--learning-rate"], "set --config.optim.lr."),
        (["--config=x.py", "--tpu_pod"], [], ""),
        (["--config", "x.py", "--config.data.negative_margin", "-inf"], [], ""),
        (["--workdir", "--strange", "--config=x.py:a"], [], ""),
        (["--noconfig.model.head.tied", "--config.seed=-1"], [], ""),
    ],
)
def test_flags_that_there_are_not_are_named(arguments, unknown, said):
    given = flags.parse(flags.parser("train", None), arguments)
    assert [one.partition(" ")[0] for one in given.unknown] == unknown
    assert said in "".join(given.unknown)


def test_all_errors_of_a_command_line_are_named(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from lsrjax.config import get_default as get_config\n", encoding="utf-8"
    )
    wrong = ["--config.learning_rate=1", "--config.seed=x", "--fo"]
    given = flags.parse(flags.parser("train", None), [f"--config={path}", *wrong])
    lr, seed = given.wrong
    assert "--config.optim.lr" in lr and "--config.seed is 'x'" in seed
    assert len(given.unknown) == 1 and given.config is None


def test_a_config_that_comes_with_lsrjax_goes_by_its_name():
    given = flags.parse(flags.parser("train", None), ["--config", "demo"])
    assert list(given.config.stages) == ["teacher", "align", "contrast"]
    assert given.workdir() == "runs/demo"
    arguments = ["--config=nothing"]
    (wrong,) = flags.parse(flags.parser("train", None), arguments).wrong
    assert "No config file nothing" in wrong and "align, csr, demo" in wrong


def test_fields_are_set_as_their_types_say():
    config = get_default()
    for field, text, value in (
        ("optim.lr", "1e-3", 1e-3),
        ("data.negative_margin", "-inf", -math.inf),
        ("seed", "7", 7),
        ("model.head.tied", None, True),
        ("model.head.tied", "False", False),
        ("evaluate.examples", "('ja', 'de')", ("ja", "de")),
        ("model.head.view_weights", "1, 0, 2", (1, 0, 2)),
        ("evaluate.examples", "ja", ("ja",)),
        ("data.source.files", "a.jsonl", "a.jsonl"),
        ("optim.freeze", "(a)|b", "(a)|b"),
        ("loss", "{'m3': {}}", {"m3": {}}),
        ("regularizer", "flops", entry("flops")),
        ("regularizer.query", "1e-3", 1e-3),
        ("regularizer.schedule", "constant", "constant"),
    ):
        fields.set_field(config, field, text, "--config")
        assert operator.attrgetter(field)(config) == value
    # Options of a loss, and of an entry within an entry.
    fields.set_field(config, "loss.m3.temperature", "0.05", "--config")
    fields.set_field(config, "regularizer.schedule.name", "linear", "--config")
    fields.set_field(config, "regularizer.schedule.steps", "5", "--config")
    assert config.loss == {"m3": {"temperature": 0.05}}
    assert config.regularizer.schedule == {"name": "linear", "steps": 5}
    for field, text, said in (
        ("seed", "x", "--config.seed is 'x'; it must be a whole number"),
        ("seed", "1.5", "a whole number"),
        ("optim.lr", "", "must be a number"),
        ("log.health", "maybe", "True or False"),
        ("optim", "3", "is a group of fields"),
        ("optim.rl", "3", "the nearest is --config.optim.lr"),
        ("seed.x", "3", "is not a field"),
        ("loss", "kl", "--config.loss is 'kl'; it must be a dict"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            fields.set_field(config, field, text, "--config")


def test_the_doctor_says_what_it_was_not_asked():
    def levels(*arguments):
        given, findings = doctor._parse(arguments)
        return given.config_path, {(one.level, one.topic) for one in findings}

    missing = (WARNING, "config")
    assert levels() == (None, {missing})
    assert levels("--cfg", "x.py") == (None, {missing, (ERROR, "arguments")})
    found = (ERROR, "config"), (ERROR, "arguments")
    assert levels("--config=none.py", "--cfg=1") == (None, set(found))
    assert levels("--num_processes=two") == (None, {(ERROR, "config")})
