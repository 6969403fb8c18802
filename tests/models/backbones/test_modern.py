"""ModernBERT against PyTorch transformers, and the laws of every encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from lsrjax.convert.names import by_layer, export_state, import_state
from lsrjax.models.backbones.modern import MODERNBERT, ModernEncoder
from lsrjax.models.backbones.table import read_config
from lsrjax.models.texts import Texts

SPECIAL = {f"{role}_token_id": 3 for role in ("pad", "bos", "eos", "cls", "sep")}
# Heads of 6: RoPE turns three pairs. A local token sees two to either side.
SIZES = {
    "vocab_size": 151,
    "hidden_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "local_attention": 5,
    **SPECIAL,
}
BIASES = dict.fromkeys(
    ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True
)
# What published checkpoints vary.
VARIANTS = {
    "modernbert": {},
    "biases": BIASES,
    "mmbert": {"local_rope_theta": 160_000.0, "num_hidden_layers": 4},
    "other order": {
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        "num_hidden_layers": 3,
    },
    "every second": {"global_attn_every_n_layers": 2, "num_hidden_layers": 5},
    "one layer": {"num_hidden_layers": 1},
}


def reference(variant, kind=transformers.ModernBertModel):
    torch.manual_seed(7)
    config = transformers.ModernBertConfig(**SIZES | VARIANTS[variant])
    config._attn_implementation = "eager"
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm.weight" in name else 0.0
            parameter.copy_(center + 0.15 * torch.randn_like(parameter))
    return model.eval()


def encoders(variant):
    model = reference(variant)
    config = read_config(model.config.to_dict())
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    encoder = ModernEncoder(config, rngs=nnx.Rngs(0))
    params = import_state(state, "modernbert")["encoder"]
    nnx.update(encoder, jax.tree.map(jnp.asarray, params))
    return model, encoder


def texts(length, lengths, seed=0, left=False):
    """Random ids, padded on one side to `length`."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, SIZES["vocab_size"], (len(lengths), length))
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    return np.where(mask, ids, SPECIAL["pad_token_id"]), mask


@nnx.jit(static_argnames=("remat",))
def encode(encoder, ids, mask, keys=None, remat="none"):
    return encoder(ids, mask, dropout_keys_B=keys, remat=remat)


def theirs(model, ids, mask):
    with torch.no_grad():
        output = model(torch.tensor(ids), torch.tensor(mask.astype(int)))
    return output.last_hidden_state.numpy()


@pytest.mark.parametrize(
    "variant",
    [
        v if v == "modernbert" else pytest.param(v, marks=pytest.mark.slow)
        for v in VARIANTS
    ],
)
def test_states_equal_transformers(variant):
    model, encoder = encoders(variant)
    for left in (False, True):
        # Longer than the window; one text without neighbours.
        ids, mask = texts(17, [17, 9, 1], left=left)
        ours = np.asarray(encode(encoder, ids, mask))
        wanted = theirs(model, ids, mask)
        np.testing.assert_allclose(ours[mask], wanted[mask], atol=1e-5, rtol=0)


def test_states_equal_transformers_at_the_maximum_length():
    model, encoder = encoders("modernbert")
    assert encoder.config.max_length == 40
    ids, mask = texts(40, [40, 37])
    ours = np.asarray(encode(encoder, ids, mask))
    wanted = theirs(model, ids, mask)
    np.testing.assert_allclose(ours[mask], wanted[mask], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"41 tokens.*at most 40"):
        jax.eval_shape(encoder, *texts(41, [41]))


@pytest.mark.parametrize(
    ("variant", "remat"),
    [
        ("biases", "none"),
        pytest.param("modernbert", "none", marks=pytest.mark.slow),
        pytest.param("biases", "layer", marks=pytest.mark.slow),
        ("modernbert", "layer"),
    ],
)
def test_gradients_equal_transformers(variant, remat):
    model, encoder = encoders(variant)
    ids, mask = texts(13, [13, 7, 2])
    rng = np.random.default_rng(3)
    incoming = rng.normal(size=(3, 13, SIZES["hidden_size"])) * mask[..., None]
    incoming = incoming.astype(np.float32)
    output = model(torch.tensor(ids), torch.tensor(mask.astype(int))).last_hidden_state
    (output * torch.tensor(incoming)).sum().backward()
    wanted = {name: p.grad.numpy() for name, p in model.named_parameters()}
    graphdef, params = nnx.split(encoder)

    def weighted_sum(params):
        states = nnx.merge(graphdef, params)(ids, mask, remat=remat)
        return (states * incoming).sum()

    ours = nnx.to_pure_dict(jax.jit(jax.grad(weighted_sum))(params))
    ours = by_layer(ours, "modernbert")
    wanted = by_layer(import_state(wanted, "modernbert")["encoder"], "modernbert")
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
    ):
        scale = np.abs(b).max() + 1.0
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@pytest.mark.parametrize("variant", ["modernbert", "biases"])
def test_logits_equal_transformers(variant):
    model = reference(variant, transformers.ModernBertForMaskedLM)
    config = read_config(model.config.to_dict())
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    params = import_state(state, "modernbert")
    assert "decoder" not in params["head"]["mlm"]  # tied
    encoder = ModernEncoder(config, rngs=nnx.Rngs(0))
    nnx.update(encoder, jax.tree.map(jnp.asarray, params["encoder"]))
    transform = MODERNBERT.transform(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mlm = params["head"]["mlm"]
    nnx.update(transform, jax.tree.map(jnp.asarray, mlm["transform"]))
    ids, mask = texts(11, [11, 6])
    hidden = encode(encoder, ids, mask).reshape(-1, config.hidden_size)
    words = params["encoder"]["embeddings"]["word"]["embedding"]
    ours = (transform(hidden) @ words.T + mlm["bias"]).reshape(2, 11, -1)
    with torch.no_grad():
        wanted = model(torch.tensor(ids), torch.tensor(mask.astype(int))).logits
    wanted = wanted.numpy()[mask]
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(ours[mask], wanted, atol=1e-5 * scale, rtol=0)
    # Out again, name by name and bit by bit.
    again = export_state(params, "modernbert")
    tied = {"decoder.weight"}
    assert again.keys() == state.keys() - tied
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_padding_does_not_change_tokens():
    _, encoder = encoders("modernbert")
    ids, mask = texts(9, [9, 5, 3])
    plain = np.asarray(encode(encoder, ids, mask))
    other = np.asarray(encode(encoder, np.where(mask, ids, 97), mask))
    np.testing.assert_array_equal(other[mask], plain[mask])
    wider = encode(
        encoder,
        np.pad(ids, ((0, 0), (0, 6)), constant_values=89),
        np.pad(mask, ((0, 0), (0, 6))),
    )
    tolerance = 1e-6 * np.abs(plain).max()
    wider = np.asarray(wider)[:, :9]
    np.testing.assert_allclose(wider[mask], plain[mask], atol=tolerance, rtol=0)


def test_what_is_computed_again_changes_nothing():
    _, encoder = encoders("modernbert")
    ids, mask = texts(9, [9, 5])
    keys = jax.random.split(jax.random.key(0), 2)
    encoder.config = encoder.config.with_dropout(0.3)
    for module in jax.tree.leaves(
        [encoder.embeddings, encoder.first, encoder.layers],
        is_leaf=lambda x: isinstance(x, nnx.Module),
    ):
        module.config = encoder.config
    plain = encode(encoder, ids, mask, keys)
    for remat in ("dots", "layer"):
        again = encode(encoder, ids, mask, keys, remat=remat)
        np.testing.assert_allclose(again[mask], plain[mask], atol=2e-6, rtol=0)


def test_a_token_with_nothing_in_its_window_is_as_in_pytorch():
    """ColBERT's expanded queries: tokens that others do not attend to."""
    model, encoder = encoders("modernbert")
    model.config._attn_implementation = "sdpa"
    ids, mask = texts(17, [17, 17, 17])
    attended = np.arange(17)[None] < np.array([5, 9, 17])[:, None]
    batch = Texts.of([{"ids": ids, "mask": mask}])
    found = jax.jit(lambda attended: encoder.encode(batch, attended=(attended,)))(
        attended
    )
    wanted = theirs(model, ids, attended)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-5, rtol=0)


def test_text_without_tokens_gives_numbers():
    _, encoder = encoders("modernbert")
    ids, mask = texts(9, [9, 0])
    graphdef, params = nnx.split(encoder)

    @jax.jit
    @jax.value_and_grad
    def total(params):
        return nnx.merge(graphdef, params)(ids, mask).sum()

    for leaf in jax.tree.leaves(total(params)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_goes_to_hugging_face_and_back(variant):
    hf = transformers.ModernBertConfig(**SIZES | VARIANTS[variant]).to_dict()
    config = read_config(hf)
    written = config.to_hf()
    assert read_config(written) == config
    assert read_config(transformers.AutoConfig.for_model(**written).to_dict()) == config
    assert written == {
        key: hf.get(key, value)  # the keys from before transformers 5 are not in hf
        for key, value in written.items()
    }


def test_a_config_from_before_transformers_5_is_the_same():
    new = read_config(
        transformers.ModernBertConfig(**SIZES, local_rope_theta=20_000.0).to_dict()
    )
    old = {"model_type": "modernbert", **SIZES}
    old |= {"global_attn_every_n_layers": 3, "local_rope_theta": 20_000.0}
    assert read_config(old) == new and new.local_theta == 20_000.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            r"rope_scaling .*yarn",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            r"RoPE of full_attention .*yarn",
        ),
        ({"rope_parameters": {"rope_theta": 5.0}}, r"rope_parameters is .* to name"),
        ({"partial_rotary_factor": 0.5}, r"'partial_rotary_factor': 0.5"),
        ({"hidden_activation": "silu"}, r"'silu'.*exact 'gelu'"),
        ({"decoder_bias": False}, r"decoder_bias is False"),
        ({"classifier_activation": "silu"}, r"classifier_activation is 'silu'"),
        ({"layer_types": ["full_attention"]}, r"layer_types has to name"),
        ({"layer_types": ["chunked_attention"] * 6}, r"chunked_attention"),
        ({"norm_bias": 1}, r"norm_bias is 1, which has to be true or false"),
        ({"hidden_size": 12}, r"is odd, and RoPE turns pairs"),
        ({"global_attn_every_n_layers": 0}, r"global_attn_every_n_layers is 0"),
        ({"local_rope_theta": -1.0}, r"RoPE of sliding_attention: rope_theta is -1"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_config({"model_type": "modernbert", **SIZES, **change})
