"""NorBERT4 gives the numbers of its authors' code.

What the numbers are, and how they were recorded: `tests/golden/norbert4/README.md`.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import tiny
from safetensors.numpy import load_file

from lsrjax.convert.names import export_state, import_state
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones import norbert4
from lsrjax.models.backbones.table import read_config
from lsrjax.models.retriever import RetrieverSpec

FOLDER = pathlib.Path(__file__).parents[2] / "golden" / "norbert4"
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
    made = norbert4.Norbert4Encoder(read_config(RAW), rngs=nnx.Rngs(0))
    params = import_state(state, "norbert4")["encoder"]
    nnx.update(made, jax.tree.map(jnp.asarray, params))
    return made


def assert_close(found, wanted, bound=2e-5):
    tolerance = bound * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


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
    found = export_state(jax.device_get(gradient), "norbert4")
    wanted = {
        name.removeprefix("grad/"): value
        for name, value in golden.items()
        if name.startswith("grad/")
    }
    assert len(wanted) == 20
    for name, value in wanted.items():
        assert_close(found[name], value, 1e-4)


@pytest.mark.parametrize(
    ("logits", "key"),
    [
        ("plain", "splade_unshifted"),
        ("shifted", "splade_without_sigmoid"),
        ("capped", "splade"),
    ],
)
def test_splade_over_its_masked_lm_is_theirs(state, golden, logits, key):
    params = import_state(state, "norbert4")
    spec = RetrieverSpec.of("splade", read_config(RAW), tied=False, logits=logits)
    graphdef, _ = retriever.split(spec)
    text = {"ids": golden["input_ids"], "mask": golden["attention_mask"].astype(bool)}
    found = jax.jit(lambda params: retriever.apply(graphdef, params, text))(params)
    assert_close(found["terms"].weights_BV, golden[key])
    spec = dataclasses.replace(spec)
    light, _ = retriever.split(spec, weights_only=True)
    again = jax.jit(lambda params: retriever.apply(light, params, text))(params)
    assert_close(again["terms"].weights_BV, golden[key])


def test_logits_of_another_family_are_not_shifted():
    spec = RetrieverSpec.of("splade", tiny.encoder(), logits="shifted")
    with pytest.raises(InputError, match="logits is 'shifted'.* bert"):
        retriever.split(spec)


def test_a_checkpoint_goes_out_as_it_came(state):
    again = export_state(import_state(state, "norbert4"), "norbert4")
    assert again.keys() == state.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_padding_does_not_change_tokens(encoder):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 293, (3, 21))
    mask = np.arange(21)[None] < np.array([21, 12, 1])[:, None]
    encode = nnx.jit(lambda encoder, *text: encoder(*text))
    plain = np.asarray(encode(encoder, ids, mask))
    other = np.asarray(encode(encoder, np.where(mask, ids, 97), mask))
    np.testing.assert_array_equal(other[mask], plain[mask])
    wider = (np.pad(x, ((0, 0), (0, 6))) for x in (ids, mask))
    wider = np.asarray(encode(encoder, *wider))[:, :21]
    tolerance = 1e-6 * np.abs(plain).max()
    np.testing.assert_allclose(wider[mask], plain[mask], atol=tolerance, rtol=0)


def test_its_config_is_told_by_its_classes_and_comes_back():
    config = read_config(RAW)
    assert (config.family, config.ratio, config.max_length) == ("norbert4", 3, 64)
    assert read_config(config.to_hf()) == config
    later = {k: v for k, v in RAW.items() if k != "max_sequence_length"}
    assert read_config(later | {"max_position_embeddings": 64}) == config
    with pytest.raises(ValueError, match="query_key_head_size is 9, .*even"):
        read_config(RAW | {"query_key_head_size": 9})
    with pytest.raises(ValueError, match="local_global_ratio is 0"):
        read_config(RAW | {"local_global_ratio": 0})
