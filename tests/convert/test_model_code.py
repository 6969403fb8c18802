"""The model code in exports of NorBERT, beside recorded values of its authors' code."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
import transformers

from lsrjax.convert.write.code import write_code
from lsrjax.json_files import write_json
from lsrjax.models.backbones.table import backbone

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def loaded(family, folder, kind, **more):
    """The golden model, as transformers loads it with our code."""
    folder.mkdir()
    config = json.loads((GOLDEN / family / "config.json").read_text())
    config |= write_code(folder, backbone(family)) | more
    write_json(folder / "config.json", config)
    shutil.copyfile(GOLDEN / family / "model.safetensors", folder / "model.safetensors")
    model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True)
    return model.eval()


def close(found, wanted, mask, bound=2e-5):
    found, wanted = found.detach().numpy()[mask], wanted[mask]
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize("family", ["norbert3", "norbert4"])
def test_states_are_those_of_the_authors(family, tmp_path):
    golden = np.load(GOLDEN / family / "golden.npz")
    model = loaded(family, tmp_path / "model", "AutoModel")
    ids, mask = golden["input_ids"], golden["attention_mask"]
    found = model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    close(found, golden["last_hidden_state"], mask.astype(bool))
    loss = (found * torch.tensor(golden["grad_weight"])).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        if f"grad/{name}" in golden:
            gradient = golden[f"grad/{name}"]
            error = np.abs(parameter.grad.numpy() - gradient).max()
            assert error <= 1e-4 * np.abs(gradient).max(), name


def test_logits_of_norbert3_are_those_of_the_authors(tmp_path):
    golden = np.load(GOLDEN / "norbert3" / "golden.npz")
    model = loaded("norbert3", tmp_path / "model", "AutoModelForMaskedLM")
    mask = torch.tensor(golden["attention_mask"])
    found = model(torch.tensor(golden["input_ids"]), mask).logits
    weights = torch.log1p(torch.relu(found)) * mask[..., None]
    close(weights.amax(dim=1), golden["splade"], slice(None))
    assert (found[..., :107] < -1e8).all() and (found[..., 107:] > -1e8).all()
    np.testing.assert_array_equal(
        model.buckets(len(golden["position_indices"])), golden["position_indices"]
    )


@pytest.mark.parametrize(
    ("logits", "vectors"),
    [
        ("plain", "splade_unshifted"),
        ("shifted", "splade_without_sigmoid"),
        ("capped", "splade"),
    ],
)
def test_logits_of_norbert4_are_those_of_the_authors(logits, vectors, tmp_path):
    golden = np.load(GOLDEN / "norbert4" / "golden.npz")
    model = loaded("norbert4", tmp_path / "m", "AutoModelForMaskedLM", logits=logits)
    mask = torch.tensor(golden["attention_mask"])
    found = model(torch.tensor(golden["input_ids"]), mask).logits
    weights = torch.log1p(torch.relu(found)) * mask[..., None]
    close(weights.amax(dim=1), golden[vectors], slice(None))
