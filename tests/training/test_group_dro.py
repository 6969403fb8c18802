"""Weights of languages in the train state: trained, logged, kept over a restart."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from lsrjax.checkpoint import saved_model
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.training import run


def config_of():
    c = get_default()
    c.tokenizer = "embedded:multilingual"
    c.model.head, c.model.family = "splade", "bert"
    c.model.num_layers = 1
    c.model.hidden_size = c.model.intermediate_size = 16
    c.model.num_heads, c.model.max_length = 2, 16
    c.data.source = entry("debian", split="dev")
    c.data.query_length, c.data.document_length = 9, 13
    c.loss = {"infonce": {}}
    c.dro.groups, c.dro.rate = "languages", 0.5
    c.batch_size, c.steps, c.optim.lr = 8, 4, 1e-3
    c.log.every, c.checkpoint.every = 1, 2
    return c


def metrics(workdir):
    lines = (workdir / "train/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"loss"' in line]


@pytest.mark.slow
def test_weights_of_languages_move_and_survive_a_restart(tmp_path):
    workdir, console = tmp_path / "run", Console(file=io.StringIO(), width=200)
    run.run(config_of(), workdir, console)
    whole, params = metrics(workdir), saved_model.load_model(workdir).params
    weights = [one["largest_group_weight"] for one in whole]
    assert len(set(weights)) == 4 and all(1 / 14 < one < 1 for one in weights)
    shown = {key for key in whole[-1] if key.startswith(("loss/", "group_weight/"))}
    assert len(shown) >= 4 and len(shown) % 2 == 0
    worst = max(v for k, v in whole[-1].items() if k.startswith("loss/"))
    assert 0 < worst <= whole[-1]["worst_group_loss"] * (1 + 1e-5)

    shutil.rmtree(workdir / "train/checkpoints/4")
    (workdir / "train/digests/4.json").unlink()
    (workdir / "train/done.json").unlink()
    run.run(config_of(), workdir, console)
    again = metrics(workdir)
    assert again[-1]["step"] == 4
    assert again[-1]["largest_group_weight"] == whole[-1]["largest_group_weight"]
    after = saved_model.load_model(workdir).params
    for a, b in zip(leaves(params), leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def leaves(tree):
    for _, value in sorted(tree.items()):
        yield from leaves(value) if isinstance(value, dict) else [value]
