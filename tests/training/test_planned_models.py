"""A plan opens models as training does, without their weights."""

import pathlib
import shutil
import textwrap

import jax
import pytest

from lsrjax.config.fields import load
from lsrjax.convert import open_model
from lsrjax.convert.read import huggingface
from lsrjax.convert.read.huggingface import SHAPES
from lsrjax.errors import InputError
from lsrjax.training import memory_plan

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bert"
ALIGN = """
    from ml_collections import ConfigDict

    from lsrjax.config import get_default


    def get_config():
        c = get_default()
        c.model.head = "milco"
        c.model.hidden_size, c.model.intermediate_size = HIDDEN, 8
        c.model.num_layers, c.model.num_heads, c.model.max_length = 1, 2, 40
        c.tokenizer = "embedded:multilingual"
        c.init.head = GOLDEN
        c.teacher.model = GOLDEN
        c.loss = {"alignment": {}}
        c.data.document_length = c.data.query_length = 32
        c.batch_size = 8
        return c
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Configs of a run and of those that go on from it; none has been started."""
    monkeypatch.chdir(tmp_path)
    configs = tmp_path / "configs"
    configs.mkdir()
    first = textwrap.dedent(ALIGN).replace("GOLDEN", repr(str(GOLDEN)))
    first = first.replace("HIDDEN", "12")
    (configs / "align.py").write_text(first)
    more = """
        c.teacher.model, c.init.head, c.tokenizer = "", "", ""
        c.init.model = "runs/align"
        c.loss = {"infonce": {}}
        c.model.head.lexecho = True
        return c"""
    then = first.replace("\n    return c", more.replace("\n    ", "\n"))
    (configs / "distill.py").write_text(then)
    (configs / "again.py").write_text(then.replace("runs/align", "runs/distill/train"))
    return configs


@pytest.mark.parametrize("name", ["distill", "again"])
def test_a_run_that_is_still_to_be_made_is_planned_from_its_config(
    name, folder, monkeypatch
):
    # What is no folder is looked up on the hub first.
    def missing(path_or_id, **_):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface.huggingface_hub, "snapshot_download", missing)
    config = load(folder / f"{name}.py")
    made = memory_plan.plan_stages(config, folder)["train"]
    first = memory_plan.plan_stages(load(folder / "align.py"), folder)["train"]
    assert made.spec.encoder.hidden_size == first.spec.encoder.hidden_size == 12
    assert made.spec.options.pivot_vocab_size == first.spec.options.pivot_vocab_size
    assert "source" in made.spec.views and "source" not in first.spec.views
    assert "runs/align is not there yet: planned as" in made.said[0]
    assert len(made.said) == 1 + (name == "again") and first.said == ()
    with pytest.raises(InputError, match="is planned from its config, named as the"):
        memory_plan.plan_stages(config)
    (folder / "align.py").unlink()
    with pytest.raises(InputError, match="no folder 'runs/align' in "):
        memory_plan.plan_stages(config, folder)


def test_a_stage_that_the_config_does_not_have_is_named(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = load(folder / "distill.py")
    config.init.model = "runs/align/distill"
    with pytest.raises(InputError, match="runs/align/distill is not there yet.*train"):
        memory_plan.plan_stages(config, folder)


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


@pytest.mark.parametrize("there", [True, False], ids=["weights", "no weights"])
def test_a_hugging_face_model_has_the_same_shapes_without_its_weights(there, tmp_path):
    folder = pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "model"))
    wanted = open_model.open_model(str(folder), tmp_path)
    if not there:
        (folder / "model.safetensors").unlink()
    found = open_model.open_model(str(folder), tmp_path, allowed=SHAPES)
    assert found.spec == wanted.spec
    assert shapes(found.params) == shapes(wanted.params)
    # They stand for numbers that take no memory.
    assert all(not any(leaf.strides) for leaf in jax.tree.leaves(found.params))
