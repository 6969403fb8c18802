"""NorBERT3 and NorBERT4 give the numbers of their authors' code.

What the numbers are, and how they were recorded: the README.md of each folder in
`tests/golden`.
"""

import functools
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
from lsrjax.models.backbones import norbert3
from lsrjax.models.backbones.table import BACKBONES, read_config
from lsrjax.models.retriever import RetrieverSpec

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
RAW = {
    family: json.loads((GOLDEN / family / "config.json").read_text())
    for family in ("norbert3", "norbert4")
}
FAMILIES = pytest.mark.parametrize("family", RAW)
# Recorded gradients, and how close to them is the same.
GRADIENTS = {"norbert3": (12, 2e-5), "norbert4": (20, 1e-4)}


@functools.cache
def golden(family):
    with np.load(GOLDEN / family / "golden.npz") as file:
        return dict(file)


@functools.cache
def state(family):
    return load_file(GOLDEN / family / "model.safetensors")


@functools.cache
def encoder(family):
    made = BACKBONES[family].encoder(read_config(RAW[family]), rngs=nnx.Rngs(0))
    params = import_state(state(family), family)["encoder"]
    nnx.update(made, jax.tree.map(jnp.asarray, params))
    return made


def assert_close(found, wanted, bound=2e-5):
    tolerance = bound * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


def test_buckets_are_theirs():
    found = norbert3.buckets(40, read_config(RAW["norbert3"]))
    np.testing.assert_array_equal(found, golden("norbert3")["position_indices"])


@FAMILIES
@pytest.mark.parametrize("remat", ["none", "layer"])
def test_states_and_gradients_are_theirs(family, remat):
    recorded = golden(family)
    ids, mask = recorded["input_ids"], recorded["attention_mask"].astype(bool)
    graphdef, params = nnx.split(encoder(family))

    def weighted_sum(params):
        states = nnx.merge(graphdef, params)(ids, mask, remat=remat)
        return (states * recorded["grad_weight"]).sum(), states

    (_, states), gradient = jax.jit(jax.value_and_grad(weighted_sum, has_aux=True))(
        params
    )
    assert_close(states[mask], recorded["last_hidden_state"][mask])
    gradient = {"encoder": nnx.to_pure_dict(gradient)}
    found = export_state(jax.device_get(gradient), family)
    wanted = {
        name.removeprefix("grad/"): value
        for name, value in recorded.items()
        if name.startswith("grad/")
    }
    count, bound = GRADIENTS[family]
    assert len(wanted) == count
    for name, value in wanted.items():
        assert_close(found[name], value, bound)


@pytest.mark.parametrize(
    ("family", "logits", "key"),
    [
        ("norbert3", "plain", "splade"),
        ("norbert4", "plain", "splade_unshifted"),
        ("norbert4", "shifted", "splade_without_sigmoid"),
        ("norbert4", "capped", "splade"),
    ],
)
def test_splade_over_its_masked_lm_is_theirs(family, logits, key):
    recorded, config = golden(family), read_config(RAW[family])
    params = import_state(state(family), family)
    spec = RetrieverSpec.of("splade", config, tied=False, logits=logits)
    ids, mask = recorded["input_ids"], recorded["attention_mask"].astype(bool)
    for weights_only in (False, True):
        graphdef, _ = retriever.split(spec, weights_only=weights_only)
        encode = jax.jit(functools.partial(retriever.apply, graphdef))
        found = encode(params, {"ids": ids, "mask": mask})["terms"].weights_BV
        assert_close(found, recorded[key])
        # Special tokens are never active in NorBERT3's.
        assert (np.asarray(found)[:, : config.silent_terms] == 0).all()


def test_logits_of_another_family_are_not_shifted():
    spec = RetrieverSpec.of("splade", tiny.encoder(), logits="shifted")
    with pytest.raises(InputError, match="logits is 'shifted'.* bert"):
        retriever.split(spec)


@FAMILIES
def test_a_checkpoint_goes_out_as_it_came(family):
    buffers = {name for name in state(family) if name.endswith("position_indices")}
    again = export_state(import_state(state(family), family), family)
    assert again.keys() == state(family).keys() - buffers
    for name, value in again.items():
        np.testing.assert_array_equal(value, state(family)[name], err_msg=name)


@FAMILIES
def test_padding_does_not_change_tokens(family):
    rng = np.random.default_rng(0)
    ids = rng.integers(110, 211, (3, 21))
    mask = np.arange(21)[None] < np.array([21, 12, 1])[:, None]
    # Of random weights, whose rounding is a fifth of the bound on several processors;
    # golden's weights enlarge it.
    config = read_config(RAW[family])
    encoder = BACKBONES[family].encoder(config, rngs=nnx.Rngs(0))
    encode = nnx.jit(lambda encoder, *text: encoder(*text))
    plain = np.asarray(encode(encoder, ids, mask))
    other = np.asarray(encode(encoder, np.where(mask, ids, 97), mask))
    np.testing.assert_array_equal(other[mask], plain[mask])
    wider = (np.pad(x, ((0, 0), (0, 6))) for x in (ids, mask))
    wider = np.asarray(encode(encoder, *wider))[:, :21]
    tolerance = 1e-6 * np.abs(plain).max()
    np.testing.assert_allclose(wider[mask], plain[mask], atol=tolerance, rtol=0)


@FAMILIES
def test_a_config_is_told_by_its_classes_and_comes_back(family):
    config = read_config(RAW[family])
    assert config.family == family and read_config(config.to_hf()) == config
    less = {k: v for k, v in RAW[family].items() if k != "auto_map"}
    assert read_config(less) == config
    with pytest.raises(ValueError, match="model_type is None"):
        read_config(less | {"architectures": ["OtherModel"]})


def test_later_revisions_call_positions_otherwise():
    raw = dict(RAW["norbert4"])
    raw["max_position_embeddings"] = raw.pop("max_sequence_length")
    assert read_config(raw) == read_config(RAW["norbert4"])


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("norbert3", {"position_bucket_size": 1}, "position_bucket_size is 1"),
        ("norbert4", {"query_key_head_size": 9}, "query_key_head_size is 9, .*even"),
        ("norbert4", {"local_global_ratio": 0}, "local_global_ratio is 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(family, change, message):
    with pytest.raises(ValueError, match=message):
        read_config(RAW[family] | change)
