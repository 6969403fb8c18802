"""What a run ends with: a table, examples, and commands that go on from it."""

import io
import json
import shlex

import pytest
from rich.console import Console

from lsrjax.cli import entry_flags, evaluate, index, search, serve, task_flags
from lsrjax.config.fields import get_default
from lsrjax.training import last_words


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path):
    """A run of two stages, of which the second is evaluated by language."""
    folder = tmp_path / "my runs" / "own"
    write(folder / "first/metrics.jsonl", [{"step": 10, "loss": 1.0}])
    dev = [
        {"step": 10, "dev_R@5": 0.25, "dev_R@5/da": 0.125, "dev_R@5/ja": 0.375},
        {"step": 20, "dev_R@5": 0.5, "dev_R@5/da": 0.625, "dev_R@5/ja": 0.375},
        {"step": 30, "dev_R@5": 0.4, "dev_R@5/da": 0.5, "dev_R@5/ja": 0.3},
    ]
    write(folder / "second/metrics.jsonl", [{"step": 5, "loss": 1.0}, *dev])
    text = {"role": "query", "language": "da", "text": "et\nbibliotek " + "x" * 90}
    terms = [("pivot", "library 1.25, file 0.50"), ("source", "")]
    texts = [
        {
            "step": step,
            **text,
            "view": view,
            "terms": f"{found}" if step > 20 else "old",
        }
        for step in (20, 30)
        for view, found in terms
    ]
    write(folder / "second/texts.jsonl", texts)
    return folder


def config(**data):
    c = get_default()
    stages = {}
    for name in ("first", "second"):
        stages[name] = get_default()
        stages[name].dev.metric = "R@5"
        stages[name].data.update(data)
    c.stages = stages
    return c


def shown(c, workdir, width=80):
    console = Console(file=io.StringIO(), width=width)
    last_words.show(c, workdir, console)
    return console.file.getvalue()


def test_a_run_on_own_data_ends_with_its_table_and_examples(workdir):
    lines = shown(config(), workdir).splitlines()
    place = lines.index("R@5 on the dev data")
    assert lines[place + 1].split() == ["da", "ja", "all"]
    assert lines[place + 2].split() == ["second,", "step", "20", ".625", ".375", ".500"]
    place = lines.index("Texts of the dev data with their strongest terms:")
    assert lines[place + 1] == f"  query (da): et bibliotek {'x' * 90}"
    assert lines[place + 2] == "    pivot: library 1.25, file 0.50"
    assert lines[place + 3] == "    source: (none)"
    assert not any("old" in line for line in lines)


def test_in_a_terminal_an_example_takes_its_line(workdir):
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    last_words.show(config(), workdir, console)
    lines = console.file.getvalue().splitlines()
    (text,) = [line for line in lines if "et bibliotek" in line]
    assert len(text) == 60 and text.endswith("…")


def test_a_run_without_dev_data_ends_with_what_to_do(workdir):
    for name in ("metrics.jsonl", "texts.jsonl"):
        (workdir / "second" / name).unlink()
    lines = shown(config(), workdir).splitlines()
    assert lines[:2] == ["", "What to do next:"]


def options_of_engine(words):
    return entry_flags.take(words, "engine")


@pytest.mark.parametrize("corpus", ["", "my docs.jsonl"])
def test_the_commands_are_those_of_the_program(workdir, corpus):
    last = shown(config(corpus=corpus), workdir, width=40).splitlines()[-4:]
    commands = [shlex.split(line) for line in last]
    assert [words[:2] for words in commands] == [
        ["lsrjax", name] for name in ("evaluate", "index", "search", "serve")
    ]
    for take, module, words in zip(
        (task_flags.take, *[options_of_engine] * 3),
        (evaluate, index, search, serve),
        commands,
        strict=True,
    ):
        _, rest = take(words[2:])
        assert module._parser().parse_args(rest).model == str(workdir)
    texts = commands[1][commands[1].index("--texts") + 1]
    assert texts == (corpus or "documents.jsonl")


def test_a_run_with_its_own_tables_ends_with_the_commands(workdir):
    c = config()
    c.evaluate.test = "debian"
    lines = shown(c, workdir).splitlines()
    assert lines[1] == "What to do next:" and len(lines) == 5
