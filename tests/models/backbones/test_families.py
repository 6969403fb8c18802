"""What holds for every family of encoders."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import tiny

from lsrjax.convert.names import export_state, import_state
from lsrjax.models import retriever
from lsrjax.models.backbones import encoder
from lsrjax.models.backbones.llama_config import LlamaConfig
from lsrjax.models.backbones.model_types import RELATIVE
from lsrjax.models.backbones.table import BACKBONES, config_from, read_config
from lsrjax.models.retriever import RetrieverSpec

NEWER = (
    *("modernbert", "norbert3", "norbert4", "gte", "nomic_bert", "mpnet"),
    *("deberta-v2", "xlm-roberta-xl", "xmod", "qwen3", "gemma3_text"),
)
# They share a module with a family beside them.
ALIKE = (
    *("llama", "mistral", "eurobert", "gemma", "gemma2", "gemma3_text"),
    *("jina_embeddings_v3", "nomic_bert", "electra", "ernie"),
)
FAMILIES = pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name
        for name in BACKBONES
    ],
)


def spec_of(family, **changes):
    return RetrieverSpec.of("splade", tiny.encoder(family, **changes), tied=False)


@FAMILIES
def test_the_program_does_not_grow_with_its_layers(family):
    """Layers that are computed again run as a loop."""

    def lines(layers):
        graphdef, params = retriever.split(spec_of(family, num_layers=layers))
        text = {
            "ids": jax.ShapeDtypeStruct((2, 8), jnp.int32),
            "mask": jax.ShapeDtypeStruct((2, 8), jnp.bool_),
        }

        def loss(params, text):
            views = retriever.apply(graphdef, params, text, remat="layer")
            return views["terms"].weights_BV.sum()

        lowered = jax.jit(jax.grad(loss)).lower(params, text)
        return lowered.as_text().count("\n")

    assert lines(12) == lines(6)


@FAMILIES
def test_a_spec_goes_to_json_and_back(family):
    spec = spec_of(family)
    again = RetrieverSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert (
        config_from(json.loads(json.dumps(spec.to_dict()))["encoder"]) == spec.encoder
    )


@FAMILIES
def test_config_and_parameters_go_out_and_come_back(family):
    spec = spec_of(family)
    # Hub code names its class in place of a `model_type`.
    raw = spec.encoder.to_hf()
    assert read_config(json.loads(json.dumps(raw))) == spec.encoder
    params = jax.device_get(retriever.init_params(spec, 0))
    of = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert of(retriever.split(spec)[1]) == of(params)
    again = import_state(export_state(params, family), family)
    wanted = dict(jax.tree.leaves_with_path(params))
    found = dict(jax.tree.leaves_with_path(again))
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=str(path))


@FAMILIES
def test_a_new_encoder_reads_texts_of_the_length_asked_for(family):
    config = BACKBONES[family].config.fresh(
        family,
        1,
        13,
        vocab_size=23,
        hidden_size=12,
        num_layers=2,
        num_heads=2,
        intermediate_size=17,
    )
    assert config.max_length == 13
    assert config.with_dropout(0.25).attention_dropout == 0.25
    spec = RetrieverSpec.of("splade", config, tied=False)
    params = retriever.init_params(spec, 3)
    ids = np.arange(26).reshape(2, 13) % 20 + 2
    text = {"ids": ids, "mask": np.ones((2, 13), bool)}
    views = retriever.apply(retriever.split(spec)[0], params, text)
    weights = np.asarray(views["terms"].weights_BV)
    assert np.isfinite(weights).all() and len(np.unique(weights, axis=0)) == 2


def test_shapes_of_many_layers_take_one_layer():
    made = []

    def make():
        made.append(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
        return made[-1]

    model = encoder.shapes_of(lambda: encoder.stack(make, 24))
    assert model.kernel.shape == (24, 3, 4) and len(made) == 1
    assert encoder.stack(make, 2).bias.shape == (2, 4) and len(made) == 3


def test_padding_on_the_left_is_read_of_the_families_of_llama():
    alike = {
        name for name, of in BACKBONES.items() if issubclass(of.config, LlamaConfig)
    }
    assert alike == RELATIVE


def test_no_file_outside_asks_for_the_name_of_a_newer_family():
    """What a family needs is in its own file."""
    package = pathlib.Path(retriever.__file__).parents[1]
    asking = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for name in NEWER
        if f'"{name}"' in path.read_text(encoding="utf-8")
    ]
    assert set(asking) <= {
        "convert/read/presets.py",
        "models/backbones/deberta.py",
        "models/backbones/model_types.py",
        "models/backbones/norbert4.py",
        "models/backbones/table.py",
        "models/backbones/xmod.py",
    }
