"""Numbers that are not finite do not get in, and do not get out."""

import dataclasses
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lsrjax import finite
from lsrjax.checkpoint import saved_model
from lsrjax.cli import encode, encode_job
from lsrjax.convert.open_model import open_model, open_portable
from lsrjax.convert.read.huggingface import Allowed, load_checkpoint
from lsrjax.convert.write.folder import write_weights
from lsrjax.errors import InputError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "bert"
NAMES = (
    "bert.encoder.layer.1.output.dense.weight",
    "bert.embeddings.word_embeddings.weight",
    "cls.predictions.bias",
)


def changed(folder, name, value, dtype=np.float32):
    """A copy of a masked LM with one number of one tensor changed."""
    folder = pathlib.Path(shutil.copytree(GOLDEN, folder))
    state = load_file(folder / "model.safetensors")
    state = {key: tensor.astype(dtype) for key, tensor in state.items()}
    state[name] = state[name].copy()
    state[name].reshape(-1)[3] = value
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.nan, np.float32),
        (np.inf, np.float16),
        (-np.inf, ml_dtypes.bfloat16),
        (1e300, np.float64),  # finite, but not in float32
    ],
)
def test_a_weight_that_is_not_finite_is_named(tmp_path, name, value, dtype):
    folder = changed(tmp_path / "model", name, value, dtype)
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{name} \["):
        open_model(str(folder), tmp_path)


def test_nor_is_one_of_a_pickle(tmp_path):
    folder = changed(tmp_path / "model", NAMES[0], np.nan)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"pytorch_model\.bin: .*{NAMES[0]}"):
        load_checkpoint(str(folder), Allowed(pickle=True))


def test_nothing_that_is_not_finite_is_exported(tmp_path):
    state = {"good": np.zeros(3, np.float32), "bad": np.full((2, 3), np.inf)}
    with pytest.raises(InputError, match=r"bad \[2, 3\], 6 numbers.*at \[0, 0\]"):
        write_weights(tmp_path, state)
    assert not any(tmp_path.iterdir())


def with_bias(model, value):
    """The model with another bias of its masked-LM head."""

    def leaf(path, old):
        return np.full_like(old, value) if path[-1].key == "bias" else old

    params = jax.tree_util.tree_map_with_path(leaf, model.params)
    return dataclasses.replace(model, params=params)


def test_a_checkpoint_of_ours_is_looked_at_going_out_and_coming_in(
    tmp_path, monkeypatch
):
    model = with_bias(open_model(str(GOLDEN), tmp_path), np.nan)
    folder = tmp_path / "stage"
    folder.mkdir()
    with pytest.raises(InputError, match=r"encoder/embeddings/norm/bias"):
        saved_model.save_model(folder, model)
    # As a run whose numbers nobody looked at might have left it.
    with monkeypatch.context() as patch:
        patch.setattr(finite, "check_tree", lambda *args: None)
        saved_model.save_model(folder, model)
    with pytest.raises(InputError, match=r"checkpoint of step 0: .*norm/bias"):
        open_model(str(folder), tmp_path)


def test_a_vector_that_overflows_ends_encoding_and_names_the_text(
    tmp_path, monkeypatch, capsys
):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"id": "d7", "text": "a file"}\n')
    model = open_portable(str(GOLDEN))
    for suffix in (".npz", ".jsonl"):
        with monkeypatch.context() as patch:
            patch.setattr(encode_job, "open_portable", lambda _: with_bias(model, 3e38))
            out = tmp_path / f"out{suffix}"
            args = ("--texts", str(texts), "--out", str(out), "--model", "any")
            with pytest.raises(SystemExit) as stop:
                encode.main(args)
        assert stop.value.code == 2
        assert "of the document 'd7' has numbers" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]
