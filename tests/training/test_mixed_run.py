"""Stages over every way to make up batches, from the config to the last step."""

import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from rich.console import Console

from lsrjax.data import sources
from lsrjax.data.debian_texts.embedded import examples as debian
from lsrjax.data.examples import Group, InMemory
from lsrjax.training import run

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "mixed.py"
LANGUAGES = ("en", "de", "ja")


@pytest.fixture(autouse=True)
def translated(monkeypatch):
    """Every text of the embedded data in every language asked for."""

    def text(given):
        return {language: given.get(language, given["en"]) for language in LANGUAGES}

    def opened(data, kind, **named):
        chosen = sources.chosen(data.source).options
        source = debian(kind, chosen.split, chosen.fields)
        if kind == "pair":
            return source
        groups = (source[i] for i in range(80))
        return InMemory(
            [Group(g.id, text(g.query), [text(g.positives[0])], []) for g in groups]
        )

    monkeypatch.setattr(sources, "open_source", opened)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_a_run_over_every_way_to_make_up_batches(tmp_path):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    run.run(config, tmp_path, Console(quiet=True))
    for name in config.stages:
        assert len(losses(tmp_path / name)) == 6
        assert np.isfinite(losses(tmp_path / name)).all()
    topics = np.load(tmp_path / "topics" / "topics.npz")["topics"]
    assert topics.shape == (80,) and 1 < topics.max() + 1 <= 5
    assert np.bincount(topics).min() >= config.stages.topics.batch_size
    # A stage that begins again takes the same batches, topics and all.
    before = losses(tmp_path / "topics")
    for path in ("done.json", "metrics.jsonl", "checkpoints", "topics.npz"):
        path = tmp_path / "topics" / path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.run(config, tmp_path, Console(quiet=True))
    assert losses(tmp_path / "topics") == before
