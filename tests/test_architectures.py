"""Every architecture trains, evaluates, is saved and comes back, all by its config."""

import contextlib
import dataclasses
import functools
import io
import json
import operator
import pathlib
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from lsrjax.checkpoint import saved_model, train_states
from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models.retriever import towers_of
from lsrjax.retrieval.rank import Searcher
from lsrjax.training import run

# What each config changes, and the types of what it encodes.
CASES = {
    "splade max": {"model.head": "splade"},
    "splade sum": {"model.head": "splade", "model.head.pooling": "sum"},
    "splade-doc": {"model.head": "splade", "model.head.queries": "words"},
    "inference-free": {
        "model.head": "splade",
        "model.head.queries": "static",
        "init.idf_queries": {},
    },
    "token weights": {"model.head": "token_weights"},
    "deep impact": {"model.head": "token_weights", "model.head.queries": "words"},
    "dense": {"model.head": "dense", "model.head.pooling": "mean"},
    "dense cls": {
        "model.head": "dense",
        "model.head.pooling": "cls",
        "model.head.embedding_size": 8,
        "model.query_prompt": "query: ",
        "model.document_prompt": "passage: ",
    },
    "csr": {
        "model.head": "csr",
        "model.head.pooling": "mean",
        "model.head.latents": 40,
        "model.head.active_latents": 5,
        "model.head.dead_after": 1,
        "loss": {"reconstruction": {}, "infonce": {"weight": 0.1}},
        "regularizer.document": 0.01,
    },
    "towers": {"model.head": "splade", "model.towers": "separate"},
    "dense towers": {
        "model.head": "dense",
        "model.head.pooling": "cls",
        "model.towers": "separate",
        "optim.freeze": "^(encoder|head)/.*(kernel|embedding)",
    },
    "csr towers": {
        "model.head": "csr",
        "model.head.pooling": "mean",
        "model.towers": "separate",
        "model.head.latents": 40,
        "model.head.active_latents": 5,
        "model.head.dead_after": 1,
        "loss": {"reconstruction": {}, "infonce": {"weight": 0.1}},
    },
    "aggretriever": {
        "model.head": "aggretriever",
        "model.head.semantic_size": 4,
        "model.head.lexical_size": 8,
    },
    "hybrid": {
        "model.head": "hybrid",
        "model.head.embedding_size": 8,
        "model.head.view_weights": (1.0, 0.5),
        "regularizer.document": 0.01,
    },
    "m3": {"model.head": "m3", "loss": {"m3": {}}},
    "colbert": {
        "model.head": "colbert",
        "model.head.embedding_size": 8,
        "model.head.expand_queries": True,
        "model.head.skip_punctuation": True,
        "model.query_marker": "library",
        "model.document_marker": "file",
    },
}


def config_of(changes):
    c = get_default()
    c.tokenizer = "embedded:english"
    c.model.family = "bert"
    c.model.num_layers = 1
    c.model.hidden_size = 16
    c.model.num_heads = 2
    c.model.intermediate_size = 24
    c.model.max_length = 32
    c.data.source = c.dev.source = "debian"
    c.data.source.split = "dev"
    c.data.query_languages = c.data.document_languages = {"en": 1, "*": 0}
    c.data.query_length = 10
    c.data.document_length = 16
    c.dev.queries = 20
    c.loss = {"infonce": {}}
    c.batch_size = 8
    c.steps = 3
    c.optim.lr = 1e-3
    c.log.every = 1
    for field, value in changes.items():
        *groups, last = field.split(".")
        functools.reduce(operator.getitem, groups, c)[last] = value
    return c


# The rest only where time does not matter: each compiles a step and an encoder.
QUICK = ("inference-free", "csr", "m3", "colbert")
ALL = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in CASES
]


@pytest.mark.parametrize("name", ALL)
def test_it_trains_and_what_is_saved_gives_the_same_numbers(name, tmp_path):
    config = config_of(CASES[name])
    out = io.StringIO()
    run.run(config, tmp_path, Console(file=out, width=200))
    assert "dev_nDCG@10" in out.getvalue()
    model = saved_model.load_model(tmp_path / "train")
    texts = ["a library for files", "the kernel, and its drivers", "fonts!"]
    with sharding.on_mesh(config.mesh.data, config.mesh.model):
        searcher = Searcher.of(model, config)
        queries, documents = searcher.queries(texts), searcher.documents(texts)
    assert list(queries) == list(model.spec.views)
    view = next(iter(queries))
    assert queries[view].shape == documents[view].shape == (3, model.spec.views[view])
    if "towers" in name:
        # Both have learned, each from its own texts, and each encodes its own.
        document, query = towers_of(model.params)
        apart = max(
            np.abs(a - b).max()
            for a, b in zip(*map(jax.tree.leaves, (document, query)), strict=True)
        )
        assert apart > 1e-4
        alone = dataclasses.replace(
            model, params=query, spec=dataclasses.replace(model.spec, towers="shared")
        )
        with sharding.on_mesh(config.mesh.data, config.mesh.model):
            same = Searcher.of(alone, config).queries(texts)[view]
        np.testing.assert_allclose(queries[view].toarray(), same.toarray(), atol=1e-6)
        if "csr" in name:
            idle = [one["head"]["autoencoder"]["idle"] for one in (document, query)]
            assert not np.array_equal(*idle) and max(map(np.max, idle)) == 3
    if CASES[name].get("model.head.queries") == "words":
        assert set(queries[view].data) == {1.0}
    if name == "colbert":
        # Filled up; in documents, the marker, the words and two special tokens.
        assert np.diff(queries[view].starts).tolist() == [10, 10, 10]
        assert np.diff(documents[view].starts)[2] == 4
    if name == "inference-free":
        # The query has the weights of its words, whatever stands beside them.
        alone = searcher.queries(["library"])[view]
        shared = alone.indices
        assert len(shared) == 1
        assert queries[view][0, shared[0]] == alone[0, shared[0]] > 0
    for matrix in (queries[view], documents[view]):
        values = matrix.tokens_TD if name == "colbert" else matrix.data
        assert np.isfinite(values).all() and np.any(values)


EXTENDING = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"


def test_a_head_a_loss_and_a_mixer_from_outside_the_package_train(
    tmp_path, monkeypatch
):
    # As the docs have them.
    text = EXTENDING.read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(# mine.py\n.*?)```", text, re.S)
    (tmp_path / "mine.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    config = config_of(
        {
            "model.head": "mine.LastToken",
            "loss": {"mine.hinge": {"weight": 0.5}, "infonce": {}},
            "data.mixer": "mine.smallest_first",
            "data.source": "files",
        }
    )
    with config.unlocked():
        config.data.sets = {
            split: data_set(source=entry("debian", split=split))
            for split in ("dev", "test")
        }
    run.run(config, tmp_path / "run", Console(quiet=True))
    model = saved_model.load_model(tmp_path / "run" / "train")
    assert model.spec.head == "mine.LastToken"
    assert model.params["head"]["turn"].shape == (16, 3)
    lines = (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()
    assert all({"hinge", "infonce"} <= json.loads(line).keys() for line in lines[:3])
    with sharding.on_mesh(config.mesh.data, config.mesh.model):
        found = Searcher.of(model, config).queries(["a kernel", "some files"])
    assert found["last"].shape == (2, 3)


@pytest.mark.slow
def test_towers_that_go_on_are_those_that_were_left_alone(tmp_path, monkeypatch):
    changes = CASES["towers"] | {"checkpoint.every": 1, "model.dropout": 0.1}
    run.run(config_of(changes), tmp_path / "alone", Console(quiet=True))

    original, saved = train_states.Checkpoints.save, []

    def save(self, state, dev, **options):
        original(self, state, dev, **options)
        saved.append(state)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_states.Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        run.run(config_of(changes), tmp_path / "stopped", Console(quiet=True))
    monkeypatch.setattr(train_states.Checkpoints, "save", original)
    run.run(config_of(changes), tmp_path / "stopped", Console(quiet=True))
    alone, stopped = (
        saved_model.load_model(tmp_path / name / "train").params
        for name in ("alone", "stopped")
    )
    assert "query_tower" in alone
    jax.tree.map(np.testing.assert_array_equal, stopped, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.head": "splad"}, "model.head is 'splad'; known: 'splade', 'milco'"),
        ({"model.head": "nowhere.Head"}, "nowhere.Head', which could not be imported"),
        ({"model.head": "math.sqrt"}, "is no head: it has no"),
        ({"loss": {"math.sqrt": {}}}, "which is no lsrjax.losses.loss.Loss but"),
        ({"data.mixer": "evenly"}, "data.mixer is 'evenly'; known: 'round_robin'"),
    ],
)
def test_what_is_no_head_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run.run(config_of(changes), tmp_path, Console(quiet=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.head": "dense", "model.head.pooling": "max"},
            "model.head.pooling is 'max'; known: 'cls', 'mean'",
        ),
        (
            {"model.head": "colbert", "regularizer.document": 0.1},
            "regularizer.document = 0.1 would have no effect",
        ),
        (
            {"model.head": "colbert", "model.query_marker": "[nothing]"},
            "model.query_marker is '\\[nothing\\]', which is not in the vocabulary",
        ),
        (
            {"model.head": "token_weights", "loss": {"alignment": {}}},
            "weights of terms before their activation",
        ),
        (
            {"model.head": "splade", "init.idf_queries": {}},
            "init.idf_queries would have no effect: queries of the head splade",
        ),
        (
            {"model.head": "milco", "model.head.queries": "words"},
            "model.head.queries is no option of 'milco'; 'splade' and 'token_weights'"
            " have it",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message, tmp_path):
    config = config_of(changes)
    if "alignment" in config.loss:
        config.data.query_languages = config.data.document_languages = {"*": 1}
        config.teacher.model = "somewhere"
    with contextlib.suppress(KeyError):
        config.init.head = "somewhere" if config.model.head == "milco" else ""
    with pytest.raises(InputError, match=message):
        run.run(config, tmp_path, Console(quiet=True))
