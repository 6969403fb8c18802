"""GTE, Jina v3 and Nomic against PyTorch transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.core_model_loading import revert_weight_conversion

from lsrjax.convert.names import by_layer, export_state, import_state
from lsrjax.models.backbones.rotary_bert import RotaryEncoder
from lsrjax.models.backbones.table import BACKBONES, read_config

# Heads of 6: RoPE turns three pairs.
SIZES = {
    "vocab_size": 151,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 31,
    "pad_token_id": 3,
}
CLASSES = {
    "gte": "Gte",
    "jina_embeddings_v3": "JinaEmbeddingsV3",
    "nomic_bert": "NomicBert",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 1.7, "rope_theta": 700.0}
# What published checkpoints vary.
VARIANTS = {
    "gte": {},
    "jina_embeddings_v3": {},
    "nomic_bert": {},
    "gte without types": {"type_vocab_size": 0},
    "gte stretched": {"rope_parameters": LINEAR, "type_vocab_size": 2},
    "jina_embeddings_v3 stretched": {"rope_parameters": LINEAR},
}
ALL = pytest.mark.parametrize("variant", VARIANTS)
SOME = pytest.mark.parametrize(
    "variant",
    [v if v in CLASSES else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
FAMILIES = pytest.mark.parametrize("family", CLASSES)


def reference(variant, kind="Model"):
    torch.manual_seed(7)
    name = CLASSES[variant.split()[0]]
    config = getattr(transformers, f"{name}Config")(**SIZES | VARIANTS[variant])
    config._attn_implementation = "eager"
    model = getattr(transformers, name + kind)(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            center = 1.0 if path.lower().endswith("norm.weight") else 0.0
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    return model.eval()


def published(model, state):
    """The tensors under the names in the files that transformers writes."""
    found = revert_weight_conversion(model, {k: v.clone() for k, v in state.items()})
    return {name: value.numpy() for name, value in found.items()}


def encoders(variant):
    model = reference(variant)
    config = read_config(model.config.to_dict())
    encoder = RotaryEncoder(config, rngs=nnx.Rngs(0))
    state = published(model, model.state_dict())
    params = import_state(state, variant.split()[0])["encoder"]
    nnx.update(encoder, jax.tree.map(jnp.asarray, params))
    return model, encoder


def texts(length, lengths, left=False):
    """Random ids, padded on one side to `length`."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, SIZES["vocab_size"], (len(lengths), length))
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    return np.where(mask, ids, SIZES["pad_token_id"]), mask


def theirs(model, ids, mask, **more):
    with torch.no_grad():
        output = model(torch.tensor(ids), torch.tensor(mask.astype(int)), **more)
    return output[0].numpy()


@nnx.jit
def encode(encoder, ids, mask, types=None):
    return encoder(ids, mask, types_BL=types)


@SOME
def test_states_equal_transformers(variant):
    model, encoder = encoders(variant)
    for left in (False, True):
        ids, mask = texts(31, [31, 9, 1], left)
        ours, wanted = encode(encoder, ids, mask), theirs(model, ids, mask)
        np.testing.assert_allclose(ours[mask], wanted[mask], atol=1e-5, rtol=0)
    assert encoder.config.max_length == 31


@pytest.mark.parametrize(
    "variant", ["nomic_bert", pytest.param("gte stretched", marks=pytest.mark.slow)]
)
def test_second_texts_of_pairs_have_their_type(variant):
    model, encoder = encoders(variant)
    ids, mask = texts(11, [11, 7])
    types = (np.arange(11)[None] > [[5], [3]]).astype(int)
    ours = encode(encoder, ids, mask, types)
    wanted = theirs(model, ids, mask, token_type_ids=torch.tensor(types))
    np.testing.assert_allclose(ours[mask], wanted[mask], atol=1e-5, rtol=0)
    assert np.abs(ours - encode(encoder, ids, mask))[mask].max() > 0.1


@FAMILIES
@pytest.mark.parametrize(
    "remat", ["none", pytest.param("layer", marks=pytest.mark.slow)]
)
def test_gradients_equal_transformers(family, remat):
    model, encoder = encoders(family)
    ids, mask = texts(13, [13, 7, 2])
    shape = (3, 13, SIZES["hidden_size"])
    incoming = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    incoming *= mask[..., None]
    output = model(torch.tensor(ids), torch.tensor(mask.astype(int)))[0]
    (output * torch.tensor(incoming)).sum().backward()
    gradients = {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }
    graphdef, params = nnx.split(encoder)

    def weighted_sum(params):
        states = nnx.merge(graphdef, params)(ids, mask, remat=remat)
        return (states * incoming).sum()

    ours = nnx.to_pure_dict(jax.jit(jax.grad(weighted_sum))(params))
    wanted = import_state(published(model, gradients), family)["encoder"]
    ours, wanted = by_layer(ours, family), by_layer(wanted, family)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
    ):
        scale = np.abs(b).max() + 1.0
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@FAMILIES
def test_logits_equal_transformers_and_tensors_go_out_as_they_came(family):
    model = reference(family, "ForMaskedLM")
    config = read_config(model.config.to_dict())
    state = published(model, model.state_dict())
    params = import_state(state, family)
    assert "decoder" not in params["head"]["mlm"]  # tied
    encoder = RotaryEncoder(config, rngs=nnx.Rngs(0))
    nnx.update(encoder, jax.tree.map(jnp.asarray, params["encoder"]))
    entry = BACKBONES[family]
    transform = entry.transform(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mlm = params["head"]["mlm"]
    nnx.update(transform, jax.tree.map(jnp.asarray, mlm["transform"]))
    ids, mask = texts(11, [11, 6])
    hidden = encode(encoder, ids, mask).reshape(-1, config.hidden_size)
    words = params["encoder"]["embeddings"]["word"]["embedding"]
    ours = (transform(hidden) @ words.T + mlm["bias"]).reshape(2, 11, -1)
    wanted = theirs(model, ids, mask)[mask]
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(ours[mask], wanted, atol=1e-5 * scale, rtol=0)
    again = export_state(params, family)
    tied = {entry.names.masked_lm["head/mlm/decoder"], entry.names.bias_copy}
    assert again.keys() == state.keys() - tied
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


@ALL
def test_config_goes_to_hugging_face_and_back(variant):
    name = CLASSES[variant.split()[0]]
    made = getattr(transformers, f"{name}Config")(**SIZES | VARIANTS[variant])
    config = read_config(made.to_dict())
    written = config.to_hf()
    assert read_config(written) == config
    theirs = transformers.AutoConfig.for_model(**written).to_dict()
    assert read_config(theirs) == config
    assert written == {key: theirs[key] for key in written}


# As published: in the words of the authors' own code.
HUB = {
    "gte": {
        "model_type": "new",
        "architectures": ["NewModel", "NewForTokenClassification"],
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_scaling": {"factor": 8.0, "type": "ntk"},
        "rope_theta": 20_000,
    },
    "jina_embeddings_v3": {
        "model_type": "xlm-roberta",
        "auto_map": {
            "AutoConfig": "a/b--configuration_xlm_roberta.XLMRobertaFlashConfig"
        },
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20_000.0,
        "lora_adaptations": ["retrieval.query"],
    },
    "nomic_bert": {
        "model_type": "nomic_bert",
        "activation_function": "swiglu",
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "qkv_proj_bias": False,
        "resid_pdrop": 0.0,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 29,
    },
}
GPT2_WORDS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}


def hub(family, **changes):
    words = GPT2_WORDS if family == "nomic_bert" else {}
    sizes = {words.get(key, key): value for key, value in SIZES.items()}
    return {**sizes, **HUB[family], **changes}


@FAMILIES
def test_configs_of_the_authors_code_are_transformers(family):
    # Angles of GTE's NTK: base 8 times 20,000, all over 8^(2/6).
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 160_000.0}
    same = {"rope_parameters": rope} if family == "gte" else {}
    name = CLASSES[family]
    made = getattr(transformers, f"{name}Config")(**SIZES | same)
    found = read_config(hub(family))
    assert found.family == family and found == read_config(made.to_dict())


def test_scaling_with_the_longest_text_ends_where_it_begins():
    assert read_config(hub("nomic_bert")).max_length == 31
    assert read_config(hub("nomic_bert", rotary_scaling_factor=2)).max_length == 29


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gte", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (
            "gte",
            {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}},
            "'mixed_b': 0.6",
        ),
        ("gte", {"rope_scaling": {"type": "ntk", "factor": 0}}, "factor is 0"),
        ("gte", {"rope_theta": "x", "rope_scaling": None}, "rope_theta is 'x'"),
        ("gte", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor': 0.5"),
        (
            "gte",
            {"rope_scaling": LLAMA3},
            "RoPE is 'llama3', which is not implemented for gte",
        ),
        ("gte", {"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ("gte", {"position_embedding_type": "absolute"}, "'absolute'.*'rope'"),
        ("gte", {"layer_norm_type": "rms_norm"}, "layer_norm_type is 'rms_norm'"),
        ("gte", {"logn_attention_scale": True}, "logn_attention_scale is True"),
        ("gte", {"hidden_size": 12}, "odd, and RoPE turns pairs"),
        ("jina_embeddings_v3", {"position_embedding_type": "alibi"}, "'alibi'"),
        ("jina_embeddings_v3", {"hidden_act": "gelu_new"}, "exact 'gelu'"),
        ("nomic_bert", {"num_experts": 8}, "num_experts is 8"),
        (
            "nomic_bert",
            {"activation_function": "gelu"},
            "activation_function is 'gelu'",
        ),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
        ("nomic_bert", {"mlp_fc1_bias": True}, "mlp_fc1_bias is True"),
        ("nomic_bert", {"hidden_act": "gelu"}, "only 'silu' is implemented"),
        (
            "nomic_bert",
            {"head_dim": 8, "hidden_size": 24, "num_attention_heads": 4},
            "head_dim is 8",
        ),
    ],
)
def test_what_would_change_the_mathematics_is_refused(family, change, message):
    with pytest.raises(ValueError, match=message):
        read_config(hub(family, **change))
