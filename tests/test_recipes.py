"""The published recipes, as they stand and with what their docstrings change."""

import pathlib
import runpy
import shlex

import pytest
from rich.console import Console

from lsrjax import run
from lsrjax.config import validate

RECIPES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
EMBEDDED = [
    path
    for path in RECIPES
    if "On the embedded data" in " ".join(path.read_text().split())
]


def config_of(path):
    return runpy.run_path(str(path))["get_config"]()


def on_embedded_data(path):
    """The config with the flags that follow in its docstring."""
    text = runpy.run_path(str(path))["__doc__"]
    flags = text[text.index("embedded") :]
    config = config_of(path)
    for flag in shlex.split(flags[flags.index("--config.") :]):
        name, _, value = flag.removeprefix("--config.").partition("=")
        *groups, field = name.split(".")
        part = config
        for group in groups:
            part = part[group]
        kind = type(part[field])
        part[field] = value == "True" if kind is bool else kind(value)
    return config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_short(path):
    validate(config_of(path))
    assert "python -m lsrjax.main --config configs/" in path.read_text()
    if path.stem != "demo":
        assert len(path.read_text().splitlines()) < 60


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
def test_the_flags_of_its_docstring_make_it_run_on_the_embedded_data(path):
    config = on_embedded_data(path)
    validate(config)
    assert config.data.source == "debian" and config.steps <= 300


@pytest.mark.slow
def test_recipes_take_a_step_on_the_embedded_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # First the one that others take as their teacher.
    order = sorted(EMBEDDED, key=lambda path: path.stem != "splade")
    for path in order:
        if path.stem == "mtd_sparse":
            continue  # it goes on from the demo
        config = on_embedded_data(path)
        config.steps, config.data.split, config.dev.queries = 1, "dev", 10
        config.checkpoint.every = 1
        config.model.hidden_size, config.model.num_layers = 32, 1
        run.run(config, tmp_path / "runs" / path.stem, Console(quiet=True))
        assert (tmp_path / "runs" / path.stem / "train" / "done.json").is_file()
