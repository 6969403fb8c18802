"""Llama-shaped encoders against PyTorch transformers, and what is their own."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from lsrjax.convert.names import by_layer, export_state, import_state
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones.rope_settings import RESCALED
from lsrjax.models.backbones.table import backbone, read_config
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.texts import Texts

# Two queries' heads for each of keys. A local layer's window is shorter than the texts.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "pad_token_id": 3,
    "bos_token_id": 3,
    "eos_token_id": 3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {
    "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
LOCAL = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
GEMMA = {"sliding_window": 4, "query_pre_attn_scalar": 11}
FIVE = [*["sliding_attention"] * 2, "full_attention"]
QWEN3 = (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)
MISTRAL = (transformers.MistralConfig, transformers.MistralForCausalLM)
LLAMA = (transformers.LlamaConfig, transformers.LlamaForCausalLM)
EUROBERT = (transformers.EuroBertConfig, transformers.EuroBertForMaskedLM)
GEMMA1 = (transformers.GemmaConfig, transformers.GemmaForCausalLM)
GEMMA2 = (transformers.Gemma2Config, transformers.Gemma2ForCausalLM)
GEMMA3 = (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM)
# What published checkpoints vary.
VARIANTS = {
    "qwen3": (*QWEN3, {"tie_word_embeddings": True}),
    "qwen3 local": (*QWEN3, LOCAL | {"attention_bias": True}),
    "qwen3 both": (*QWEN3, {"is_causal": False}),
    "llama": (*LLAMA, {"rope_parameters": LLAMA3}),
    "llama biases": (*LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (*MISTRAL, {"sliding_window": 4}),
    "mistral both": (*MISTRAL, {"sliding_window": 4, "is_causal": False}),
    "mistral full": (*MISTRAL, {"sliding_window": None}),
    "eurobert": (*EUROBERT, {"mask_token_id": 4}),
    "gemma": (*GEMMA1, {"attention_bias": True}),
    "gemma both": (*GEMMA1, {"is_causal": False}),
    "gemma2": (*GEMMA2, GEMMA),
    "gemma2 both": (*GEMMA2, GEMMA | {"is_causal": False}),
    "gemma2 plain": (
        *GEMMA2,
        GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3_text": (*GEMMA3, GEMMA | {"layer_types": FIVE}),
    "gemma3_text both": (
        *GEMMA3,
        GEMMA | {"layer_types": FIVE, "use_bidirectional_attention": True},
    ),
    "gemma3_text linear": (
        *GEMMA3,
        GEMMA | {"layer_types": FIVE, "rope_parameters": LINEAR},
    ),
}
# Those with most of the switches in the default suite, the rest among the slow ones.
QUICK = ("qwen3 local", "llama", "gemma2")


def some(*quick, of=VARIANTS):
    slow = pytest.mark.slow
    return [v if v in quick else pytest.param(v, marks=slow) for v in of]


def reference(variant):
    torch.manual_seed(7)
    config_class, model_class, changes = VARIANTS[variant]
    config = config_class(**SIZES | changes)
    config._attn_implementation = "eager"
    model = model_class(config)
    centered = variant.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = float("norm" in name and not centered)
            parameter.copy_(center + 0.15 * torch.randn_like(parameter))
    return model.eval()


def numpy_state(model):
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def pair(variant):
    model = reference(variant)
    config = read_config(model.config.to_dict())
    encoder = backbone(config.family).encoder(config, rngs=nnx.Rngs(0))
    params = import_state(numpy_state(model), config.family)
    nnx.update(encoder, jax.tree.map(jnp.asarray, params["encoder"]))
    return model, encoder, params


def texts(length, lengths, left=False):
    """Random ids, padded on one side to `length`."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, SIZES["vocab_size"], (len(lengths), length))
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    return np.where(mask, ids, SIZES["pad_token_id"]), mask


@nnx.jit(static_argnames=("remat",))
def encode(encoder, ids, mask, remat="none"):
    return encoder(ids, mask, remat=remat)


def theirs(model, ids, mask):
    with torch.no_grad():
        output = model.model(torch.tensor(ids), torch.tensor(mask.astype(int)))
    return output.last_hidden_state.numpy()


@pytest.mark.parametrize("variant", some(*QUICK))
def test_states_equal_transformers(variant):
    model, encoder, _ = pair(variant)
    for left in (False, True):
        # Longer than the window; one text without neighbours.
        ids, mask = texts(17, [17, 9, 1], left=left)
        ours = np.asarray(encode(encoder, ids, mask))
        wanted = theirs(model, ids, mask)
        np.testing.assert_allclose(ours[mask], wanted[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "variant",
    some(
        "qwen3 local",
        of=("qwen3 local", "llama", "llama biases", "mistral", "eurobert", "gemma2")
        + ("gemma", "gemma3_text both"),
    ),
)
def test_gradients_equal_transformers(variant):
    model, encoder, _ = pair(variant)
    family = encoder.config.family
    ids, mask = texts(13, [13, 7, 2])
    rng = np.random.default_rng(3)
    incoming = rng.normal(size=(3, 13, SIZES["hidden_size"])) * mask[..., None]
    incoming = incoming.astype(np.float32)
    output = model.model(torch.tensor(ids), torch.tensor(mask.astype(int)))
    (output.last_hidden_state * torch.tensor(incoming)).sum().backward()
    wanted = {
        name: p.grad.numpy()
        for name, p in model.named_parameters()
        if not name.startswith("lm_head")
    }
    graphdef, params = nnx.split(encoder)

    def weighted_sum(params):
        states = nnx.merge(graphdef, params)(ids, mask, remat="layer")
        return (states * incoming).sum()

    ours = nnx.to_pure_dict(jax.jit(jax.grad(weighted_sum))(params))
    ours = by_layer(ours, family)
    wanted = by_layer(import_state(wanted, family)["encoder"], family)
    # PyTorch's table has no gradient at the padding, where there is none to have.
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
    ):
        scale = np.abs(b).max() + 1.0
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0, err_msg=str(path))


def splade_of(config, params):
    tied = "decoder" not in params.get("head", {}).get("mlm", {})
    return RetrieverSpec.of("splade", config, tied=tied)


@pytest.mark.parametrize(
    "variant",
    some(
        *("qwen3", "gemma2"),
        of=("qwen3", "llama", "mistral both", "eurobert", "gemma both", "gemma2"),
    ),
)
def test_splade_is_the_maximum_of_transformers_logits(variant):
    model, encoder, params = pair(variant)
    spec = splade_of(encoder.config, params)
    graphdef, abstract = retriever.split(spec)
    assert jax.tree.structure(abstract) == jax.tree.structure(params)
    ids, mask = texts(11, [11, 6, 1])
    text = {"ids": ids, "mask": mask}
    views = jax.jit(lambda p: retriever.apply(graphdef, p, text))(params)
    with torch.no_grad():
        logits = model(torch.tensor(ids), torch.tensor(mask.astype(int))).logits
    logits = np.where(mask[..., None], logits.numpy(), -np.inf).max(axis=1)
    scale = np.abs(logits).max()
    found = views["terms"].raw_BV
    np.testing.assert_allclose(found, logits, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_goes_out_as_it_came_in(variant):
    state = numpy_state(model := reference(variant))
    family = read_config(model.config.to_dict()).family
    params = import_state(state, family)
    if "head" not in params:  # tied
        params = params | {"head": {"mlm": {}}}
    again = export_state(params, family)
    assert again.keys() == state.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_goes_to_hugging_face_and_back(variant):
    config_class, _, changes = VARIANTS[variant]
    config = read_config(config_class(**SIZES | changes).to_dict())
    written = config.to_hf()
    assert read_config(written) == config
    again = transformers.AutoConfig.for_model(**written)
    assert isinstance(again, config_class)
    assert read_config(again.to_dict()) == config


def test_configs_from_before_transformers_5_are_the_same():
    sizes = {k: v for k, v in SIZES.items() if "head" not in k}
    sizes |= {"num_attention_heads": 2}
    rope = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    old = {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": rope, **sizes}
    new = transformers.LlamaConfig(**sizes, rope_parameters=LLAMA3)
    assert read_config(old) == read_config(new.to_dict())
    assert read_config(old).head_size == 10 and read_config(old).num_key_heads == 2
    sizes |= {"num_hidden_layers": 7, "head_dim": 6, "sliding_window": 4}
    old = {"model_type": "gemma3_text", "rope_local_base_freq": 99.0, **sizes}
    old |= {"num_key_value_heads": 1, "rope_theta": 999.0, "sliding_window_pattern": 3}
    found = read_config(old)
    assert found.pattern == (False, False, True)
    assert (found.theta, found.local_theta) == (999.0, 99.0)
    old = {"model_type": "gemma", "hidden_act": "gelu", "rope_theta": 99.0, **SIZES}
    old |= {"hidden_activation": None}
    new = transformers.GemmaConfig(**SIZES, rope_parameters={"rope_theta": 99.0})
    assert read_config(old) == read_config(new.to_dict())


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_scaling_of_rope_is_read_as_in_transformers(family):
    numbers = {"rope_type": "linear", "factor": 2.0}
    own = {"rope_type": "default", "rope_theta": 50.0}
    own = {"full_attention": own} if family == "gemma3_text" else own
    both = {"rope_parameters": own, "rope_scaling": numbers, "rope_theta": 90.0}
    llama3 = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    moved = {"rope_scaling": llama3, "original_max_position_embeddings": 8}
    for change in (both, moved) if family == "llama" else (both,):
        raw = SIZES | change
        # Its constructor moves what is in the dicts.
        made = transformers.AutoConfig.for_model(family, **copy.deepcopy(raw))
        found = read_config({"model_type": family, **raw})
        assert (found.theta, found.rope_scaling) == _rope_of(made)


def _rope_of(made):
    made.standardize_rope_params()  # as its model does
    rope = dict(made.rope_parameters)
    rope = dict(rope.get("full_attention", rope))
    theta = rope.pop("rope_theta")
    keys = RESCALED[rope["rope_type"]]
    return theta, tuple(rope[key] for key in keys)


def test_attention_goes_the_way_that_is_asked_for():
    _, encoder, _ = pair("mistral")
    ids, mask = texts(9, [9])
    changed = ids.copy()
    changed[0, -1] = 59 - changed[0, -1] // 2

    def first_moves(config):
        encoder.config = config
        for module in (encoder.embeddings, encoder.layers, encoder.layers.attention):
            module.config = config
        two = [np.asarray(encode(encoder, x, mask))[0, -3] for x in (ids, changed)]
        return not np.array_equal(*two)

    causal = encoder.config
    assert not first_moves(causal) and first_moves(causal.seeing("both"))
    assert causal.seeing("both").seeing("causal") == causal
    eurobert = pair("eurobert")[1].config
    assert eurobert.seeing("both") == eurobert
    with pytest.raises(InputError, match="EuroBERT reads both ways"):
        eurobert.seeing("causal")


@pytest.mark.parametrize("variant", some("mistral", of=("mistral", "gemma3_text both")))
def test_a_token_with_nothing_in_its_window_has_numbers(variant):
    """ColBERT's expanded queries, and texts without a token."""
    _, encoder, _ = pair(variant)
    ids, mask = texts(17, [17, 17])
    attended = np.arange(17)[None] < np.array([5, 0])[:, None]
    batch = Texts.of([{"ids": ids, "mask": mask}])
    graphdef, params = nnx.split(encoder)

    @jax.jit
    @jax.value_and_grad
    def total(params):
        model = nnx.merge(graphdef, params)
        return model.encode(batch, attended=(attended,)).sum()

    for leaf in jax.tree.leaves(total(params)):
        assert np.isfinite(leaf).all()


def test_the_last_token_is_found_on_either_side():
    _, encoder, params = pair("qwen3 local")
    spec = RetrieverSpec.of("dense", encoder.config, pooling="last", normalize=False)
    graphdef, _ = retriever.split(spec)
    encoded = jax.jit(
        lambda ids, mask: retriever.apply(
            graphdef, {"encoder": params["encoder"]}, {"ids": ids, "mask": mask}
        )
    )
    for left in (False, True):
        ids, mask = texts(9, [9, 4, 1, 0], left=left)
        states = np.asarray(encode(encoder, ids, mask))
        found = encoded(ids, mask)["dense"].embedding_BD
        for row, length in enumerate([9, 4, 1]):
            place = 8 if left else length - 1
            np.testing.assert_allclose(found[row], states[row, place], atol=1e-5)
        assert not found[3].any()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen3", {"hidden_act": "gelu"}, r"'gelu'.*'silu'"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        (
            "qwen3",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor': 0.5"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 5.0}},
            "rope_parameters is .* to name full_attention and",
        ),
        (
            "gemma3_text",
            {"use_bidirectional_attention": True, "is_causal": False},
            "both given, and their windows differ",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 2.0}, "softcapping is 2.0"),
        ("llama", {"num_key_value_heads": 3}, "4 is not divisible by .*heads 3"),
        ("llama", {"head_dim": 5}, "head_dim 5 is odd"),
        ("llama", {"use_bidirectional_attention": True}, '"is_causal": false'),
        ("llama", {"is_causal": 0}, "is_causal is 0, not true or false"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has to name"),
        ("qwen3", {"layer_types": FIVE}, "layer_types has sliding_attention, and"),
        ("mistral", {"layer_types": FIVE}, "which Mistral does not have"),
        ("gemma", {"hidden_activation": "gelu"}, r"'gelu'.*tanh"),
        ("gemma2", {"use_bidirectional_attention": True}, '"is_causal": false'),
        ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping is -1"),
        ("gemma2", {"hidden_activation": "gelu"}, r"'gelu'.*tanh"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": LINEAR["full_attention"]}},
            "RoPE of sliding_attention is rescaled",
        ),
    ],
)
def test_what_would_change_the_mathematics_is_refused(family, change, message):
    with pytest.raises(ValueError, match=message):
        read_config({"model_type": family, **SIZES, **change})


def test_a_sum_over_tokens_of_capped_logits_is_refused():
    config = pair("gemma2")[1].config
    spec = RetrieverSpec.of("splade", config, pooling="sum")
    with pytest.raises(InputError, match="capped at 30 .*only the pooling 'max'"):
        retriever.split(spec)
