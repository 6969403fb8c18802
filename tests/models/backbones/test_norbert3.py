"""NorBERT3 gives the numbers of its authors' code.

What the numbers are, and how they were recorded: `tests/golden/norbert3/README.md`.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from lsrjax.convert.names import export_state, import_state
from lsrjax.models import retriever
from lsrjax.models.backbones import norbert3
from lsrjax.models.backbones.table import read_config
from lsrjax.models.retriever import RetrieverSpec

FOLDER = pathlib.Path(__file__).parents[2] / "golden" / "norbert3"
RAW = json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def state():
    return load_file(FOLDER / "model.safetensors")


@pytest.fixture(scope="module")
def encoder(state):
    made = norbert3.Norbert3Encoder(read_config(RAW), rngs=nnx.Rngs(0))
    params = import_state(state, "norbert3")["encoder"]
    nnx.update(made, jax.tree.map(jnp.asarray, params))
    return made


def assert_close(found, wanted, bound=2e-5):
    tolerance = bound * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


def test_buckets_are_theirs(golden):
    found = norbert3.buckets(40, read_config(RAW))
    np.testing.assert_array_equal(found, golden["position_indices"])


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_states_and_gradients_are_theirs(encoder, golden, remat):
    ids, mask = golden["input_ids"], golden["attention_mask"].astype(bool)
    graphdef, params = nnx.split(encoder)

    def weighted_sum(params):
        states = nnx.merge(graphdef, params)(ids, mask, remat=remat)
        return (states * golden["grad_weight"]).sum(), states

    (_, states), gradient = jax.jit(jax.value_and_grad(weighted_sum, has_aux=True))(
        params
    )
    assert_close(states[mask], golden["last_hidden_state"][mask])
    gradient = {"encoder": nnx.to_pure_dict(gradient)}
    found = export_state(jax.device_get(gradient), "norbert3")
    wanted = {
        name.removeprefix("grad/"): value
        for name, value in golden.items()
        if name.startswith("grad/")
    }
    assert len(wanted) == 12
    for name, value in wanted.items():
        assert_close(found[name], value)


def test_splade_over_its_masked_lm_is_theirs(state, golden):
    params = import_state(state, "norbert3")
    config = read_config(RAW)
    spec = RetrieverSpec.of("splade", config, tied=False)
    graphdef, _ = retriever.split(spec)
    text = {"ids": golden["input_ids"], "mask": golden["attention_mask"].astype(bool)}
    found = jax.jit(lambda params: retriever.apply(graphdef, params, text))(params)
    assert_close(found["terms"].weights_BV, golden["splade"])
    # Special tokens are never active.
    assert (np.asarray(found["terms"].weights_BV)[:, :107] == 0).all()


def test_a_checkpoint_goes_out_as_it_came(state):
    buffers = {name for name in state if name.endswith("position_indices")}
    again = export_state(import_state(state, "norbert3"), "norbert3")
    assert again.keys() == state.keys() - buffers and len(buffers) == 3
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_padding_does_not_change_tokens(encoder):
    rng = np.random.default_rng(0)
    ids = rng.integers(110, 211, (3, 9))
    mask = np.arange(9)[None] < np.array([9, 5, 3])[:, None]
    encode = nnx.jit(lambda encoder, *text: encoder(*text))
    plain = np.asarray(encode(encoder, ids, mask))
    other = np.asarray(encode(encoder, np.where(mask, ids, 97), mask))
    np.testing.assert_array_equal(other[mask], plain[mask])
    wider = (np.pad(x, ((0, 0), (0, 6))) for x in (ids, mask))
    wider = np.asarray(encode(encoder, *wider))[:, :9]
    tolerance = 1e-6 * np.abs(plain).max()
    np.testing.assert_allclose(wider[mask], plain[mask], atol=tolerance, rtol=0)


def test_its_config_is_told_by_its_classes_and_comes_back():
    config = read_config(RAW)
    assert (config.family, config.position_buckets) == ("norbert3", 8)
    assert read_config(config.to_hf()) == config
    assert read_config({k: v for k, v in RAW.items() if k != "auto_map"}) == config
    with pytest.raises(ValueError, match="position_bucket_size is 1"):
        read_config(RAW | {"position_bucket_size": 1})
    with pytest.raises(ValueError, match="model_type is None"):
        read_config(RAW | {"architectures": ["OtherModel"], "auto_map": None})
