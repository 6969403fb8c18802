"""Each text passes through the adapters of the language that the data state."""

import io

import jax
import numpy as np
import pytest
from programs import tiny
from programs.layouts import jsonl
from rich.console import Console

from lsrjax.checkpoint import saved_model
from lsrjax.config import get_default
from lsrjax.convert.open_model import tokenizer_folder
from lsrjax.data.batching.orders import Order
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.tasks.task import Task
from lsrjax.training import dev_data, memory_plan, run, stage_batches, stage_data
from lsrjax.training.batch_contents import Contents

# English, German and Swahili, and no default; Debian's texts are in 13 languages.
KNOWN = {"en": 1, "de": 1, "*": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SPLADE over X-MOD."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = tokenizer_folder("embedded:multilingual")
    sizes = TextTokenizer(tokenizer)
    encoder = tiny.encoder(
        "xmod",
        vocab_size=sizes.vocab_size,
        pad_token_id=sizes.pad_id,
        default_language="",
    )
    spec = RetrieverSpec("splade", encoder)
    params = retriever.init_params(spec, 3)
    model = saved_model.SavedModel(spec, params, tokenizer, None, "start")
    saved_model.save_model(path, model)
    return path


def config_of(folder, **changes):
    c = get_default()
    c.init.model = str(folder)
    c.model.head, c.model.language = "splade", "stated"
    c.data.source = "debian"
    c.data.query_languages = c.data.document_languages = KNOWN
    c.data.query_length, c.data.document_length = 8, 12
    c.loss = {"infonce": {}}
    c.batch_size, c.steps = 8, 2
    c.optim.lr, c.optim.weight_decay = 1e-2, 0.0
    c.update_from_flattened_dict(changes)
    return c


def student_of(config, folder):
    return build_student.student(config, lambda _: saved_model.load_model(folder))


def test_a_training_moves_the_adapters_of_its_texts_alone(folder, tmp_path):
    config = config_of(folder)
    config.dev.source, config.dev.queries, config.dev.every = "debian", 8, 2
    run.run(config, tmp_path / "run", Console(file=io.StringIO()))
    before, after = (
        saved_model.load_model(one).params["encoder"]["layers"]["adapters"]
        for one in (folder, tmp_path / "run" / "train")
    )
    moved = {
        language: max(
            np.abs(old - new).max()
            for old, new in zip(
                jax.tree.leaves(before[language]),
                jax.tree.leaves(after[language]),
                strict=True,
            )
        )
        for language in before
    }
    assert moved["sw_KE"] == 0
    assert min(moved["en_XX"], moved["de_DE"]) > 1e-3


def test_a_batch_is_as_planned_with_the_numbers_of_its_languages(folder):
    config = config_of(folder)
    contents, student = Contents.of(config), student_of(config, folder)
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    source = embedded.examples("group", "dev")
    order = Order(len(source), config.batch_size, 0)
    batches = stage_batches.batches(
        "train", contents, source, order, student, None, mesh
    )
    batch = batches[0]
    plan = memory_plan.StagePlan(config, student.spec, None, mesh, batches.shapes[0])
    planned = jax.tree.map(lambda one: (one.shape, one.dtype), plan._batch()["student"])
    found = jax.tree.map(lambda one: (one.shape, one.dtype), batch["student"])
    assert found == planned
    spoken = np.concatenate([part["language"] for part in batch["student"]["parts"]])
    assert set(spoken.tolist()) == {0, 1}


def test_languages_that_have_no_adapters_are_named_before_the_training(folder):
    rest = {"data.document_languages": {"da": 1, "sw": 1, "*": 0}}
    config = config_of(folder, **rest)
    student = student_of(config, folder)
    with pytest.raises(InputError, match="config.data has texts in da, .*en_XX, de_DE"):
        stage_batches.check_languages(Contents.of(config), (), student.spec.encoder)
    task = Task(["a", "b"], ["de", "fr"], ["c"], [0, 0], document_language="en")
    evaluation = dev_data.evaluation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dev_data, "_tasks", lambda config, kind: [task])
        with pytest.raises(InputError, match="'fr' has no adapters"):
            evaluation(config, "group", student, lambda: None)


def test_rows_that_do_not_state_a_language_are_bad_records(folder, tmp_path):
    rows = [
        {"query": f"red {i}", "pos": ["blue"], "language": "de" if i else ""}
        for i in range(4)
    ]
    jsonl(tmp_path / "rows.jsonl", rows)
    config = config_of(folder)
    config.data.source = "files"
    config.data.source.files = str(tmp_path / "rows.jsonl")
    message = r"1 missing language.*4 records[^$]*rows.jsonl, row 0[^$]*of a query is"
    with (
        pytest.raises(InputError, match=message),
        stage_data.tried(config, "group", 9),
    ):
        pass
