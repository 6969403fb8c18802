"""Misspelled commands, flags and choices, in one line with the nearest."""

import sys

import pytest

from lsrjax import __main__
from lsrjax.cli import checkpoint, convert, encode, evaluate, index, search
from lsrjax.cli.parsing import Parser
from lsrjax.errors import InputError


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (search.main, ["--dpeth", "3"], "--dpeth is no flag .*Did you mean --depth?"),
        (search.main, ["--dep", "3"], "--dep is no flag"),  # no abbreviations
        (index.main, ["--engin=exact"], "Did you mean --engine?"),
        (convert.main, ["--from=x", "--to=splad", "--out=y"], "Did you mean splade?"),
        (encode.main, ["--modle=x"], "Did you mean --model?"),
        (evaluate.main, ["--metric=AP"], "Did you mean --metrics?"),
        (checkpoint.main, ["verfy", "x"], "Did you mean verify?"),
    ],
)
def test_what_is_misspelled_is_named_with_the_nearest(main, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    first, _, last = message.partition(" .*")
    assert first in said and last in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", "Did you mean train?"),
        ("xyz", "Known: "),
        ("", "A command is missing"),
    ],
)
def test_a_misspelled_command_ends_with_2(name, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lsrjax", *filter(None, [name])])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_misspelled_flag_is_not_also_said_to_be_missing():
    parser = Parser(prog="lsrjax test")
    parser.add_argument("--model", required=True)
    with pytest.raises(InputError) as error:
        parser.parse_args(["--modle", "x"])
    assert error.value.args == (
        "--modle is no flag of lsrjax test. Did you mean --model?",
    )


def test_several_unknown_flags_are_named_at_once():
    parser = Parser(prog="lsrjax test")
    parser.add_argument("--depth", type=int)
    with pytest.raises(InputError) as error:
        parser.parse_args(["--dpth=3", "--zzz", "stray"])
    assert error.value.args == (
        "--dpth is no flag of lsrjax test. Did you mean --depth?",
        "--zzz is no flag of lsrjax test. --help lists all.",
    )
