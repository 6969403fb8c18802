"""A stage on texts alone, in front of another."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console

from lsrjax.checkpoint import saved_model, train_states
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.errors import InputError
from lsrjax.training import run


def stage(**fields):
    c = get_default()
    c.model.head = "splade"
    c.data.query_length, c.data.document_length = 10, 16
    c.data.length_parts = 2
    c.batch_size, c.steps, c.optim.lr = 8, 2, 1e-3
    c.checkpoint.every, c.log.every = 1, 1
    with c.unlocked():
        c.update(fields)
    return c


def pretraining(loss):
    c = stage(loss=loss)
    c.tokenizer, c.model.family = "embedded:english", "bert"
    c.model.num_layers, c.model.hidden_size, c.model.num_heads = 1, 16, 2
    c.model.intermediate_size, c.model.max_length = 24, 32
    c.data.source = entry("texts", files="embedded", split="dev")
    return c


LOSS = {"mlm": {"rate": 0.3}, "bag_of_words": {"weight": 0.1}, "infonce": {}}


@pytest.mark.slow
def test_what_is_pretrained_on_texts_starts_the_next_stage(tmp_path, monkeypatch):
    first, second = pretraining(LOSS), stage(loss={"infonce": {}})
    second.init.encoder = "stage:pretrain"
    second.data.source = entry("debian", split="dev")
    c = get_default()
    c.stages = {"pretrain": first, "train": second}
    original, saved = train_states.Checkpoints.save, []

    def save(self, state, dev, **options):
        saved.append(jax.device_get(state["params"]))
        original(self, state, dev, **options)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_states.Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        run.run(c, tmp_path / "run", Console(quiet=True))
    run.run(c, tmp_path / "run", Console(quiet=True))
    lines = (tmp_path / "run" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    assert {"mlm", "bag_of_words", "infonce"} <= losses[-1].keys()
    trained = saved_model.load_model(tmp_path / "run" / "pretrain")
    after = saved_model.load_model(tmp_path / "run" / "train")
    words = ("encoder", "embeddings", "word", "embedding")
    for name in words:
        trained = trained.params[name] if name == "encoder" else trained[name]
        after = after.params[name] if name == "encoder" else after[name]
    # Two steps of Adam away from where the first stage ended, not from noise.
    assert 0 < np.abs(np.asarray(after) - np.asarray(trained)).max() <= 2.1e-3
    # A run that was stopped is one left alone.
    run.run(c, tmp_path / "alone", Console(quiet=True))
    both = [
        saved_model.load_model(tmp_path / name / "pretrain").params
        for name in ("run", "alone")
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(
    ("head", "loss", "message"),
    [
        ("dense", {"mlm": {}}, "needs a masked-LM head over .* Use splade"),
        ("token_weights", {"bag_of_words": {}}, "needs a masked-LM head over"),
        ("splade", {"mlm": {"hidden": 0.8, "random": 0.3}}, "hidden is 0.8 and random"),
        ("splade", {"mlm": {"rate": 1.0}}, "rate is 1.0; it must be < 1"),
    ],
)
def test_what_cannot_be_predicted_is_refused(head, loss, message, tmp_path):
    config = pretraining(loss)
    config.model.head = head
    with pytest.raises(InputError, match=message):
        run.run(config, tmp_path, Console(quiet=True))
