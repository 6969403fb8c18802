"""Ctrl-C in `lsrjax.train`: what it leaves, what it says, and where it goes on."""

import io
import json
import signal

import pytest
from programs.layouts import jsonl
from rich.console import Console

import lsrjax
from lsrjax.config import entry, get_default
from lsrjax.distributed.activity import Progress
from lsrjax.training import resume

TEXTS = ["puzzle game", "boot loader", "image viewer", "mail server", "text editor"]


def config_of(folder):
    rows = [{"query": text, "pos": [f"a {text} for all"]} for text in TEXTS]
    jsonl(folder / "train.jsonl", rows)
    c = get_default()
    c.model.head, c.model.family = "splade", "bert"
    c.model.hidden_size = c.model.intermediate_size = 32
    c.model.num_layers = c.model.num_heads = 1
    c.tokenizer, c.init.lexical = "embedded:english", True
    c.data.source = entry("files", files=str(folder / "train.jsonl"))
    c.data.query_length = c.data.document_length = 16
    c.loss = {"infonce": {}}
    c.batch_size, c.steps, c.data.length_parts = 4, 9, 1
    c.checkpoint.every = c.log.every = 2
    return c


@pytest.fixture
def ctrl_c(monkeypatch):
    """Sends this process SIGINT when the loop begins a step; to be set by tests."""
    at = {"step": None}
    forward = Progress.forward

    def counted(self, step=None):
        forward(self, step)
        if step is not None and step == at["step"]:
            at["step"] = None
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "forward", counted)
    # A shell starts what is in its background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield at
    signal.signal(signal.SIGINT, before)


def test_the_same_call_goes_on_where_the_line_says(tmp_path, ctrl_c):
    config, said = config_of(tmp_path), io.StringIO()
    console = Console(file=said, width=200)
    workdir = tmp_path / "run"
    for step, stands in (
        (1, "stage train has saved nothing yet, and begins anew"),
        (6, "stage train goes on at step 4"),
    ):
        ctrl_c["step"] = step
        with pytest.raises(KeyboardInterrupt):
            lsrjax.train(config, workdir, console=console)
        last = said.getvalue().splitlines()[-1]
        assert last == f"Interrupted: with the same call, {stands}."
    lsrjax.train(config, workdir, console=console)
    assert "goes on at step 4 of 9" in said.getvalue()
    lines = (workdir / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 9]
    assert resume.standing(workdir, ["train"]) == "all stages are trained"
