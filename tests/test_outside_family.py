"""A family of encoders of the user's, with an option of its own: one file, one name."""

import json
import sys

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from lsrjax import lookup
from lsrjax.checkpoint import saved_model
from lsrjax.cli import convert, encode
from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.convert.names import export_state
from lsrjax.convert.open_model import open_model
from lsrjax.data.debian_texts import embedded
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.retrieval.vector_formats.reading import open_vectors
from lsrjax.training import run

MINE = '''
import dataclasses

import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.layers import LayerNorm, gelu, linear
from lsrjax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Reach(Options):
    reach: int = option(1, "tokens to either side that a token sees", above=0)


@dataclasses.dataclass(frozen=True)
class MixConfig(EncoderConfig):
    KEYS = {
        name: name
        for name in (
            "vocab_size", "hidden_size", "num_layers", "num_heads",
            "intermediate_size", "max_positions", "pad_token_id", "reach",
            "hidden_dropout", "attention_dropout",
        )
    }

    reach: int = 1


class Layer(nnx.Module):
    """The mean of the tokens around, and a dense layer."""

    def __init__(self, config, *, dtype, rngs):
        self.reach = config.reach
        size = config.hidden_size
        self.mix = linear(size, size, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, hidden_TD, texts):
        def around(x_BLD, mask_BL):
            kept_BL1 = mask_BL[..., None].astype(x_BLD.dtype)
            at_L = jnp.arange(x_BLD.shape[1])
            near = jnp.abs(at_L[:, None] - at_L) <= self.reach
            return near @ (x_BLD * kept_BL1) / jnp.maximum(near @ kept_BL1, 1)

        parts = texts.split(hidden_TD)
        mixed_TD = texts.join(map(around, parts, texts.mask))
        return self.norm(hidden_TD + gelu(self.mix(mixed_TD))).astype(hidden_TD.dtype)


class MixEncoder(encoder.Encoder):
    """Layers that average."""

    rules = (Rule("mix/kernel", (None, None)), Rule("mix/bias", (None,)))

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.embeddings = nnx.Dict(word=encoder.table(config, rngs, config.vocab_size))
        self.layers = encoder.stack(
            lambda: Layer(config, dtype=dtype, rngs=rngs), config.num_layers
        )

    def embed(self, texts, types, keys_T):
        return self.embeddings["word"](texts.join(texts.ids)).astype(self.dtype)

    def run(self, hidden_TD, batch):
        def call(layer, hidden_TD, index, place):
            return layer(hidden_TD, batch.texts)

        return self.run_layers(call, self.layers, hidden_TD, batch)


FAMILY = Backbone(
    MixConfig,
    MixEncoder,
    names.Names(
        prefixes=("mixer.", ""),
        encoder={
            names.WORD: "words.weight",
            **names.of_layers(
                "layers",
                {
                    "mix/kernel": "mix.weight",
                    "mix/bias": "mix.bias",
                    "norm/scale": "norm.weight",
                    "norm/bias": "norm.bias",
                },
            ),
        },
        masked_lm=names.masked_lm("head.dense", "head.norm", "decoder", "decoder"),
    ),
    architectures="Mixer",
    Options=Reach,
)
'''
NAME = "family_of_mine.FAMILY"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "family_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("family_of_mine", None)
    lookup._IMPORTED.pop(NAME, None)


def config_of(**options):
    c = get_default()
    c.model.head = "splade"
    c.model.family = entry(NAME, **options)
    c.loss = "infonce"
    c.tokenizer = "embedded:english"
    c.model.hidden_size, c.model.num_heads, c.model.num_layers = 16, 2, 2
    c.data.source, c.data.source.split = "debian", "dev"
    c.data.query_length, c.data.document_length = 8, 12
    c.batch_size, c.steps, c.log.every = 4, 2, 1
    return c


def test_it_trains_and_its_export_is_encoded_by_its_name(mine, monkeypatch):
    run.run(config_of(reach=2), mine / "run", Console(quiet=True))
    trained = saved_model.load_model(mine / "run" / "train")
    assert trained.spec.encoder.reach == 2 and trained.spec.encoder.family == NAME
    (mine / "texts.tsv").write_text("a\tthe python library\nb\tfree fonts\n")
    lookup._IMPORTED.pop(NAME)  # as in another program
    common = ["--texts", str(mine / "texts.tsv"), "--max_length", "12"]

    def vectors(model, out):
        encode.main(
            ["--model", str(model), "--out", str(mine / out), *common, "--family", NAME]
        )
        return np.concatenate(
            [m.toarray() for _, m in open_vectors(mine / out).blocks()]
        )

    wanted = vectors(mine / "run", "trained.npz")
    assert wanted.any()
    lookup._IMPORTED.pop(NAME)
    exported = ["--from", str(mine / "run"), "--to", "lsrjax", "--out"]
    convert.main([*exported, str(mine / "exported"), "--family", NAME])
    np.testing.assert_array_equal(vectors(mine / "exported", "exported.npz"), wanted)
    lookup._IMPORTED.pop(NAME)
    with pytest.raises(InputError, match=f"{NAME}' is none of") as error:
        saved_model.load_spec(mine / "exported")
    assert "--family of encode" in str(error.value)


def test_its_hugging_face_checkpoint_starts_a_run_that_names_it(mine):
    made = build_student.student(config_of(reach=3), None)
    wanted = made.params([])
    folder = mine / "hub"
    folder.mkdir()
    raw = made.spec.encoder.to_hf() | {"model_type": "mixer"}
    raw["architectures"] = ["MixerForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(export_state(wanted, NAME), folder / "model.safetensors")
    for path in embedded.ENGLISH_TOKENIZER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = open_model(str(folder), mine)
    assert model.spec.encoder == made.spec.encoder
    np.testing.assert_array_equal(
        model.params["encoder"]["layers"]["mix"]["kernel"],
        wanted["encoder"]["layers"]["mix"]["kernel"],
    )
    config = config_of()
    config.init = {"encoder": {"model": str(folder)}}
    config.tokenizer = ""
    for name in ("hidden_size", "num_heads", "num_layers"):
        config.model[name] = get_default().model[name]
    validate(config)  # the name alone lets the files name it
    config.model.family.reach = 2
    with pytest.raises(InputError, match="the weights come from init.encoder"):
        validate(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raech": 2}, "config.model.family.raech is no option of"),
        ({"reach": 0}, "config.model.family.reach is 0; it must be > 0"),
        ({"name": "math.pi"}, "names 'math.pi', which is no lsrjax.models"),
        ({"name": "bart"}, "config.model.family is 'bart'; known: 'bert', "),
        ({"name": "bert", "reach": 2}, "config.model.family.reach is no option of"),
    ],
)
def test_its_options_are_checked(mine, change, message):
    config = config_of()
    for option, value in change.items():
        config.model.family[option] = value
    with pytest.raises(InputError) as error:
        validate(config)
    assert message in str(error.value)
