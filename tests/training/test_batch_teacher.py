"""A teacher that encodes the batch's English texts beside the student."""

import dataclasses
import io
import json
import pathlib

import jax
import numpy as np
import pytest
from rich.console import Console

import lsrjax
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data.batching.drawing import wording
from lsrjax.data.batching.requirements import Documents
from lsrjax.data.examples import ANY, Group
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.distributed import sharding
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.models.batch import apply_batch
from lsrjax.training import run, stage_parts
from lsrjax.training.trackers import Tracker

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
B = 4


def config_of(teacher, **loss):
    c = get_default()
    c.tokenizer = "embedded:multilingual"
    c.model.head = "splade"
    c.model.family = "bert"
    c.model.num_layers = 1
    c.model.hidden_size = c.model.intermediate_size = 16
    c.model.num_heads, c.model.max_length = 2, 16
    c.data.source = entry("debian", split="dev")
    c.data.query_length, c.data.document_length = 9, 13
    c.data.query_languages = c.data.document_languages = {"ja": 1, "ru": 1}
    c.teacher.model = str(teacher)
    c.loss = loss
    c.batch_size, c.steps, c.optim.lr = B, 2, 1e-3
    c.log.every = 1
    return c


def quietly():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def static_teacher(tmp_path_factory):
    """An inference-free model, which encodes documents alone."""
    c = config_of("", infonce={})
    c.teacher.model = ""
    c.tokenizer = "embedded:english"
    c.model.head.queries = "static"
    c.steps = 1
    c.data.query_languages = c.data.document_languages = {"en": 1}
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    run.run(c, workdir, quietly())
    return workdir


@pytest.mark.parametrize(
    "kind", ["splade", pytest.param("static", marks=pytest.mark.slow)]
)
def test_every_score_is_that_of_the_teacher_alone_in_english(kind, tmp_path, request):
    """Its own tokenizer, wording and roles; the student reads Japanese and Russian."""
    teacher = GOLDEN / "bert"
    if kind == "static":
        teacher = request.getfixturevalue("static_teacher")
    config = config_of(teacher, batch_kl={})
    (tmp_path / "train").mkdir()
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        tracker = Tracker(quietly())
        found = stage_parts.assemble(
            "train", config, mesh, stage_parts.Run(tmp_path, tracker, Progress())
        )
        batch = found.batches[0]
        views = apply_batch(
            found.step.teacher,
            found.teacher_params,
            batch["teacher"],
            queries=batch.get("teacher_queries"),
        )
        scores = found.contents.objective.of_teacher(views)["all_scores"]
    assert ("teacher_queries" in batch) == (kind == "static")
    alone = lsrjax.load(str(teacher), query_length=9, document_length=13)
    source = [found.source[i] for i in found.batches.examples(0)]
    queries = alone.encode_queries([wording(one.query) for one in source])
    documents = alone.encode_documents([wording(one.positives[0]) for one in source])
    expected = (queries @ documents.T).toarray()
    assert expected.std() > 0.01
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_both_halves_of_dual_supervision_train(tmp_path):
    """Scores of each group made beforehand, and those of the whole batch."""
    config = config_of(GOLDEN / "bert", kl={}, batch_kl={"weight": 0.5})
    config.data.group_size = 3
    config.prepare.negatives, config.prepare.scores = "bm25", "teacher"
    config.prepare.count = 2
    run.run(config, tmp_path / "run", quietly())
    lines = (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()
    for line in lines[:2]:
        found = json.loads(line)
        assert found["kl"] > 0 and found["batch_kl"] > 0
        assert found["loss"] == pytest.approx(found["kl"] + found["batch_kl"], rel=1e-5)


def test_vectors_of_another_size_are_refused_before_the_run(tmp_path):
    config = config_of(GOLDEN / "bert", embedding={})
    with pytest.raises(InputError) as error:
        run.run(config, tmp_path / "run", quietly())
    assert "has vectors of 307 numbers, the student (splade) of 16,000" in str(
        error.value
    )
    assert not (tmp_path / "run/train/metrics.jsonl").exists()


def test_rows_that_the_teacher_cannot_read_are_bad(tmp_path):
    group = Group("q7", {"de": "a"}, [{"en": "b"}], [])
    needs = Documents(None, 1, "passages", {ANY: 1.0}, english=True)
    with pytest.raises(
        BadRecord, match="q7: its query or a document is not in English"
    ):
        needs(group)
    needs(dataclasses.replace(group, query={ANY: "a"}))
