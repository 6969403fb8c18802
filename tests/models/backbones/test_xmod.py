"""XLM-R XL and X-MOD against PyTorch transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from programs import parity, tiny

from lsrjax.data.batching import length_shapes
from lsrjax.data.tokenization import pad
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones.encoder_config import STATED
from lsrjax.models.backbones.table import backbone, read_config
from lsrjax.models.batch import apply_batch
from lsrjax.models.retriever import RetrieverSpec

LANGUAGES = ["en_XX", "de_DE", "sw_KE"]
SIZES = {
    "vocab_size": 151,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 25,
}
XMOD = {
    "languages": LANGUAGES,
    "default_language": "de_DE",
    "adapter_reduction_factor": 5,
}
# What published checkpoints vary, and what their code can do.
VARIANTS = {
    "xl": {},
    "xmod-base": XMOD | {"adapter_reduction_factor": 2, "type_vocab_size": 1},
    "pre-norm": XMOD | {"pre_norm": True},
    "own norm": XMOD | {"adapter_layer_norm": True, "ln_before_adapter": False},
    "own norm ahead": XMOD | {"adapter_layer_norm": True, "pre_norm": True},
    "no norm": XMOD | {"adapter_reuse_layer_norm": False, "ln_before_adapter": False},
}
QUICK = ("xl", "own norm ahead")
CASES = pytest.mark.parametrize(
    "variant",
    [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)


def reference(variant, kind="Model", **changes):
    name = "XLMRobertaXL" if variant == "xl" else "Xmod"
    config = getattr(transformers, f"{name}Config")
    kind = getattr(transformers, name + kind)
    return parity.reference(kind, config(**SIZES | VARIANTS[variant] | changes))


@CASES
def test_states_and_gradients_equal_transformers(variant):
    model = reference(variant)
    encoder = parity.encoder_of(model)
    assert encoder.config.max_length == 23
    for left in (False, True):
        ids, mask = parity.texts(23, [23, 9, 1], pad=1, left=left)
        parity.check_states(model, encoder, ids, mask)
    remat = "layer" if variant in QUICK else "none"
    ids, mask = parity.texts(13, [13, 7, 2], pad=1)
    parity.check_gradients(model, encoder, ids, mask, remat)
    parity.check_it_goes_out_as_it_came(model)
    parity.check_padding(encoder, 1)


@pytest.mark.parametrize(
    "variant",
    [
        "own norm ahead",
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("xmod-base", "no norm")),
    ],
)
def test_a_text_passes_through_the_adapters_of_its_language(variant):
    model = reference(variant)
    encoder = parity.encoder_of(model)
    languages = np.array([2, 0, 2, 1])
    theirs = {"lang_ids": torch.tensor(languages)}
    ours = {"language_B": languages}
    ids, mask = parity.texts(13, [13, 7, 2, 5], pad=1)
    parity.check_states(model, encoder, ids, mask, theirs, ours)
    parity.check_gradients(model, encoder, ids, mask, "layer", theirs, ours)
    # Of a batch in one language, the same.
    plain = parity.encode(encoder, ids, mask)
    same = parity.encode(encoder, ids, mask, language_B=np.ones(4, np.int32))
    np.testing.assert_allclose(same[mask], plain[mask], atol=2e-6, rtol=0)


@pytest.mark.parametrize("variant", ["xl", "xmod-base"])
def test_logits_equal_transformers(variant):
    model = reference(variant, "ForMaskedLM")
    params = parity.check_logits(model, *parity.texts(11, [11, 6], pad=1))
    assert "decoder" not in params["head"]["mlm"]
    tied = ("lm_head.decoder.weight", "lm_head.decoder.bias")
    parity.check_it_goes_out_as_it_came(model, tied)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_comes_back(variant):
    raw = reference(variant).config.to_dict()
    config = read_config(raw)
    assert read_config(config.to_hf()) == config
    kind = type(reference(variant).config)
    again = kind(**config.to_hf()).to_dict()
    changed = {key for key in raw if again[key] != raw[key]}
    assert changed <= {"architectures", "dtype", "_attn_implementation"}


def test_a_batch_of_several_languages_is_its_texts_one_by_one():
    """Vectors and gradients, cut into parts and encoded in chunks."""
    spec = RetrieverSpec("splade", tiny.encoder("xmod"))
    graphdef, abstract = retriever.split(spec)
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), abstract
    )
    rows = [rng.integers(2, 23, n).tolist() for n in (3, 9, 5, 1, 9, 7, 2, 4)]
    languages = [0, 2, 2, 1, 0, 1, 2, 0]
    shape = length_shapes.Shape(((5, 6), (3, 9)))
    texts = length_shapes.cut(
        {"query": rows[:3], "document": rows[3:]},
        *(shape, 1),
        languages={"query": languages[:3], "document": languages[3:]},
    )
    weights_BV = rng.normal(0, 1, (8, 23)).astype(np.float32)

    def together(params):
        views = apply_batch(graphdef, params, texts, chunk=3)
        found = [views[name]["terms"].weights_BV for name in ("query", "document")]
        vectors_BV = jnp.concatenate(found)
        return (vectors_BV * weights_BV).sum(), vectors_BV

    padded = pad(rows, 1, 9, ())

    def in_one(params, language):
        name = spec.encoder.languages[language]
        one = spec.replaced(encoder=spec.encoder.with_language(name))
        views = retriever.apply(retriever.split(one)[0], params, padded)
        own_B1 = np.equal(languages, language)[:, None]
        vectors_BV = jnp.where(own_B1, views["terms"].weights_BV, 0)
        return (vectors_BV * weights_BV).sum(), vectors_BV

    def of(function):
        step = jax.jit(jax.value_and_grad(function, has_aux=True))
        (_, vectors_BV), grads = step(params)
        return vectors_BV, grads

    found, grads = of(together)
    each = [of(functools.partial(in_one, language=one)) for one in range(3)]
    wanted, wanted_grads = jax.tree.map(lambda *one: sum(one), *each)
    assert (wanted > 0).any(axis=1).all()
    np.testing.assert_allclose(found, wanted, atol=2e-6, rtol=2e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5),
        grads,
        wanted_grads,
    )


def test_without_a_language_nothing_is_guessed():
    config = read_config(reference("xmod-base").config.to_dict())
    config = dataclasses.replace(config, default_language="")
    encoder = backbone("xmod").encoder(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="config.model.language.*en_XX, de_DE"):
        encoder(*parity.texts(5, [5, 3], pad=1))


def test_a_language_is_named_by_its_code_or_the_beginning_of_it():
    raw = {"model_type": "xmod"} | SIZES | XMOD
    config = read_config(raw | {"languages": [*LANGUAGES, "zh_CN", "zh_TW"]})
    for name, wanted in (("en", "en_XX"), ("sw_KE", "sw_KE"), ("zh_TW", "zh_TW")):
        assert config.with_language(name).default_language == wanted
    for name in ("zh", "fr", "DE"):
        with pytest.raises(InputError, match=f"'{name}' has no adapters, or several"):
            config.with_language(name)
    assert config.language_number("sw") == 2
    assert config.with_language(STATED) == config
    for name in ("de", STATED):
        with pytest.raises(InputError, match=f"'{name}' is named, but a bert encoder"):
            tiny.encoder("bert").with_language(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"default_language": "xx_XX"}, "default_language is 'xx_XX'.*en_XX, de_DE"),
        ({"languages": []}, "languages are"),
        ({"languages": ["a", "a"]}, "languages are"),
        ({"adapter_reduction_factor": 0}, "adapter_reduction_factor is 0"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        read_config({"model_type": "xmod"} | SIZES | XMOD | change)
