"""What other programs wrap around names of tensors is taken off; adapters are not."""

import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lsrjax.convert.read.huggingface import Allowed, load_checkpoint
from lsrjax.errors import InputError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bert"
LAYER = "bert.encoder.layer.0.attention.self.query"
PEFT = "base_model.model."


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "model"))


def rewrite(folder, change):
    """Rewrites the tensors; `change` is given and gives them by name."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def named(change):
    return lambda state: {change(name): value for name, value in state.items()}


def adapted(*, a=1.0, b=0.0, embedding=False, more=()):
    """As PEFT saves a model with an adapter of one layer."""

    def change(state):
        found = {}
        for name, value in state.items():
            name = PEFT + name
            found[name.replace(f"{LAYER}.", f"{LAYER}.base_layer.")] = value
        size = len(state[f"{LAYER}.weight"])
        a_name, b_name = "lora_A.default.weight", "lora_B.default.weight"
        if embedding:
            a_name, b_name = "lora_embedding_A.default", "lora_embedding_B.default"
        found[f"{PEFT}{LAYER}.{a_name}"] = np.full((2, size), a, np.float32)
        found[f"{PEFT}{LAYER}.{b_name}"] = np.full((size, 2), b, np.float32)
        one = np.ones(size, np.float32)
        return found | {f"{PEFT}{LAYER}.{name}": one for name in more}

    return change


def inner(name):
    """As of a layer that was compiled, one that was divided, one computed again."""
    return (
        name.replace("layer.0.", "layer.0._orig_mod.")
        .replace("layer.1.", "layer.1._fsdp_wrapped_module._checkpoint_wrapped_module.")
        .replace("cls.", "cls.module.")
    )


WRAPPED = {
    "compiled": named("_orig_mod.{}".format),
    "data parallel": named("module.{}".format),
    "both": named("module._orig_mod.{}".format),
    "trainer": named("model.{}".format),
    "trainer of data parallel": named("model.module.model.{}".format),
    "layers": named(inner),
    "PEFT, merged": named((PEFT + "{}").format),
    "PEFT, zero": adapted(),
    "PEFT, the other factor zero": adapted(a=0, b=1, embedding=True),
    "PEFT of data parallel": lambda state: named("module.{}".format)(adapted()(state)),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_are_taken_off_and_said(how, folder, caplog):
    rewrite(folder, WRAPPED[how])
    with caplog.at_level(logging.WARNING):
        found = load_checkpoint(str(folder))
    wanted = load_checkpoint(str(GOLDEN))
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    assert f"{folder}: taken off the names of tensors: " in caplog.text


def test_nothing_is_said_where_nothing_is_wrapped(caplog):
    load_checkpoint(str(GOLDEN))
    assert "taken off" not in caplog.text


def test_so_are_those_of_pickles(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    torch.save({"state_dict": state}, folder / "pytorch_model.bin")
    found = load_checkpoint(str(folder), Allowed(pickle=True))
    wanted = load_checkpoint(str(GOLDEN))
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


@pytest.mark.parametrize(
    "change",
    [
        adapted(b=0.5),
        adapted(b=0.5, embedding=True),
        adapted(more=("lora_magnitude_vector.default.weight",)),
        adapted(more=("modules_to_save.default.weight",)),
    ],
    ids=["LoRA", "of an embedding", "DoRA", "a copy"],
)
def test_an_adapter_that_is_not_merged_is_refused(change, folder):
    rewrite(folder, change)
    with pytest.raises(InputError, match=rf"(?s)adapter of PEFT.*{LAYER}.*merge_and_"):
        load_checkpoint(str(folder))


def test_an_adapter_alone_is_refused(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(InputError, match="holds an adapter of PEFT alone. Merge it"):
        load_checkpoint(str(folder))


def test_two_tensors_of_one_name_are_refused(folder):
    rewrite(folder, lambda state: state | named("module.{}".format)(state))
    with pytest.raises(InputError, match="are both .* without what was wrapped"):
        load_checkpoint(str(folder))
