"""The encoder and the masked-LM transform against PyTorch transformers."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from lsrjax.convert.names import by_layer, import_state
from lsrjax.models.backbones import attention
from lsrjax.models.backbones.bert import BertEncoder as Encoder
from lsrjax.models.backbones.table import read_config
from lsrjax.models.layers import MLMTransform

# Sizes that cannot be taken for one another.
SIZES = {
    "bert": {
        "vocab_size": 151,
        "hidden_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 53,
        "max_position_embeddings": 19,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    },
    "xlm-roberta": {
        "vocab_size": 163,
        "hidden_size": 33,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 59,
        "max_position_embeddings": 25,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
    },
}
FAMILIES = sorted(SIZES)
MAX_LENGTHS = {"bert": 19, "xlm-roberta": 23}


def torch_encoder(family):
    torch.manual_seed(7)
    if family == "bert":
        config = transformers.BertConfig(**SIZES[family])
        model = transformers.BertModel(config)
    else:
        config = transformers.XLMRobertaConfig(**SIZES[family])
        model = transformers.XLMRobertaModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    return model.eval()


def load(model, params):
    nnx.update(model, jax.tree.map(jnp.asarray, params))
    return model


def encoders(family, dtype=jnp.float32):
    reference = torch_encoder(family)
    config = read_config(reference.config.to_dict())
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    encoder = Encoder(config, dtype=dtype, rngs=nnx.Rngs(0))
    return reference, load(encoder, import_state(state, family)["encoder"])


@nnx.jit
def encode(encoder, ids, mask, keys=None):
    return encoder(ids, mask, dropout_keys_B=keys)


def texts(family, length, lengths, seed=0):
    """Random ids, padded on the right to `length`."""
    pad = SIZES[family]["pad_token_id"]
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, SIZES[family]["vocab_size"], (len(lengths), length))
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    return np.where(mask, ids, pad), mask


def reference_states(reference, ids, mask):
    with torch.no_grad():
        output = reference(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()
        )
    return output.last_hidden_state.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_transformers(family):
    reference, encoder = encoders(family)
    ids, mask = texts(family, 11, [11, 7, 1])
    ours = np.asarray(encode(encoder, ids, mask))
    assert ours.shape == (3, 11, SIZES[family]["hidden_size"])
    theirs = reference_states(reference, ids, mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_transformers_at_the_maximum_length(family):
    reference, encoder = encoders(family)
    length = encoder.config.max_length
    assert length == MAX_LENGTHS[family]
    ids, mask = texts(family, length, [length, length - 3])
    theirs = reference_states(reference, ids, mask)
    ours = np.asarray(encode(encoder, ids, mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5, rtol=0)


def test_xlmr_counts_positions_from_the_first_token():
    reference, encoder = encoders("xlm-roberta")
    ids, mask = texts("xlm-roberta", 9, [9, 6])
    ids[1], mask[1] = np.roll(ids[1], 3), np.roll(mask[1], 3)
    theirs = reference_states(reference, ids, mask)
    ours = np.asarray(encode(encoder, ids, mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5, rtol=0)
    alone = encode(encoder, ids[1:, 3:], mask[1:, 3:])
    np.testing.assert_allclose(ours[1, 3:], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_transformers(family):
    reference, encoder = encoders(family)
    ids, mask = texts(family, 11, [11, 7, 2])
    rng = np.random.default_rng(3)
    incoming = rng.normal(size=(3, 11, SIZES[family]["hidden_size"])) * mask[..., None]
    incoming = incoming.astype(np.float32)

    output = reference(torch.tensor(ids), torch.tensor(mask).long()).last_hidden_state
    (output * torch.tensor(incoming)).sum().backward()
    theirs = {
        name: parameter.grad.numpy()
        for name, parameter in reference.named_parameters()
        if parameter.grad is not None
    }
    graphdef, params = nnx.split(encoder)

    def weighted_sum(params):
        return (nnx.merge(graphdef, params)(ids, mask) * incoming).sum()

    ours = nnx.to_pure_dict(jax.jit(jax.grad(weighted_sum))(params))
    # Each layer's queries, keys and values have a scale of their own.
    theirs = import_state(theirs, family)["encoder"]
    ours, theirs = by_layer(ours, family), by_layer(theirs, family)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        # The gradient of a key bias is 0 but for rounding.
        scale = np.abs(b).max() + 1.0
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_tokens(family):
    _, encoder = encoders(family)
    ids, mask = texts(family, 7, [7, 5, 3])
    plain = np.asarray(encode(encoder, ids, mask))
    other = np.asarray(encode(encoder, np.where(mask, ids, 97), mask))
    np.testing.assert_array_equal(other[mask], plain[mask])
    integers = np.asarray(encode(encoder, ids, mask.astype(np.int32)))
    np.testing.assert_array_equal(integers[mask], plain[mask])
    # Another shape may sum in another order.
    wider_ids = np.pad(ids, ((0, 0), (0, 6)), constant_values=89)
    wider_mask = np.pad(mask, ((0, 0), (0, 6)))
    wider = np.asarray(encode(encoder, wider_ids, wider_mask))[:, :7]
    tolerance = 1e-6 * np.abs(plain).max()
    np.testing.assert_allclose(wider[mask], plain[mask], atol=tolerance, rtol=0)


def test_xlmr_ignores_what_stands_in_padding_before_a_text():
    _, encoder = encoders("xlm-roberta")
    ids, mask = texts("xlm-roberta", 9, [6])
    ids, mask = np.roll(ids, 3), np.roll(mask, 3)
    plain = np.asarray(encode(encoder, ids, mask))
    other = np.asarray(encode(encoder, np.where(mask, ids, 97), mask))
    np.testing.assert_array_equal(other[mask], plain[mask])


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_see_both_sides_and_padding_gets_no_gradient(family):
    _, encoder = encoders(family)
    ids, mask = texts(family, 7, [5])
    graphdef, params = nnx.split(encoder)

    @jax.jit
    @jax.grad
    def gradient(params):
        return nnx.merge(graphdef, params)(ids, mask)[0, 2].sum()

    table = gradient(params)["embeddings"]["word"]["embedding"][...]
    reached = np.abs(table).max(axis=1) > 0
    assert set(np.flatnonzero(reached)) == set(ids[0, :5])


def test_text_without_tokens_gives_numbers():
    _, encoder = encoders("bert")
    ids, mask = texts("bert", 7, [7, 0])
    for keys in (None, jax.random.split(jax.random.key(1), 2)):
        assert np.isfinite(encode(encoder, ids, mask, keys)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_tree(family):
    sizes = SIZES[family]
    config = read_config({"model_type": family, **sizes})
    params = nnx.to_pure_dict(
        nnx.state(nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))), nnx.Param)
    )
    D, up = sizes["hidden_size"], sizes["intermediate_size"]
    N = sizes["num_hidden_layers"]
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "embeddings": {
            "word": {"embedding": (sizes["vocab_size"], D)},
            "position": {"embedding": (sizes["max_position_embeddings"], D)},
            "token_type": {"embedding": (sizes["type_vocab_size"], D)},
            "norm": {"scale": (D,), "bias": (D,)},
        },
        "layers": {
            "attention": {
                "qkv": {"kernel": (N, D, 3, D), "bias": (N, 3, D)},
                "out": {"kernel": (N, D, D), "bias": (N, D)},
            },
            "attention_norm": {"scale": (N, D), "bias": (N, D)},
            "up": {"kernel": (N, D, up), "bias": (N, up)},
            "down": {"kernel": (N, up, D), "bias": (N, D)},
            "output_norm": {"scale": (N, D), "bias": (N, D)},
        },
    }


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    _, exact = encoders("bert")
    _, rough = encoders("bert", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough))} == {
        np.dtype("float32")
    }
    ids, mask = texts("bert", 7, [7, 5])
    states = encode(rough, ids, mask)
    assert states.dtype == jnp.bfloat16
    error = np.abs(states.astype(jnp.float32) - encode(exact, ids, mask))[mask]
    assert 0 < error.mean() < 0.03


def test_no_implicit_rank_promotion_under_jit():
    _, encoder = encoders("xlm-roberta")
    ids, mask = texts("xlm-roberta", 7, [7, 5])
    graphdef, params = nnx.split(encoder)

    def states(params, keys):
        return nnx.merge(graphdef, params)(ids, mask, dropout_keys_B=keys)

    with jax.numpy_rank_promotion("raise"):
        jitted = jax.jit(states)(params, None)
        jax.eval_shape(states, params, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(jitted, encoder(ids, mask), atol=1e-5, rtol=0)


def with_dropout(encoder, hidden, attention):
    config = dataclasses.replace(
        encoder.config, hidden_dropout=hidden, attention_dropout=attention
    )
    noisy = Encoder(config, rngs=nnx.Rngs(0))
    nnx.update(noisy, nnx.state(encoder))
    return noisy


RATES = {"attention": (0.0, 0.3), "hidden": (0.3, 0.0)}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_dropout_depends_on_the_keys_alone(rates):
    _, encoder = encoders("bert")
    noisy = with_dropout(encoder, *rates)
    ids, mask = texts("bert", 7, [7, 5])
    first, again, other = (
        np.asarray(encode(noisy, ids, mask, jax.random.split(jax.random.key(seed), 2)))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_array_equal(encode(noisy, ids, mask), encode(encoder, ids, mask))


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_dropout_of_a_text_does_not_depend_on_the_texts_beside_it(rates):
    _, encoder = encoders("bert")
    noisy = with_dropout(encoder, *rates)
    ids, mask = texts("bert", 7, [7, 5, 3])
    keys = jax.random.split(jax.random.key(1), 3)
    states = np.asarray(encode(noisy, ids, mask, keys))
    tolerance = 1e-6 * np.abs(states).max()
    order = np.array([2, 0, 1])
    other = np.asarray(encode(noisy, ids[order], mask[order], keys[order]))
    np.testing.assert_allclose(
        other[mask[order]], states[order][mask[order]], atol=tolerance, rtol=0
    )
    equal = np.asarray(encode(noisy, ids[[0, 0, 0]], mask[[0, 0, 0]], keys))
    assert np.abs(equal[0] - equal[1]).max() > 0.1


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_dropout_of_a_text_does_not_depend_on_the_padding_behind_it(rates):
    _, encoder = encoders("bert")
    noisy = with_dropout(encoder, *rates)
    ids, mask = texts("bert", 7, [7, 5, 3])
    keys = jax.random.split(jax.random.key(1), 3)
    states = np.asarray(encode(noisy, ids, mask, keys))
    wide_ids, wide_mask = (np.pad(x, ((0, 0), (0, 6))) for x in (ids, mask))
    wide = np.asarray(encode(noisy, wide_ids, wide_mask, keys))[:, :7]
    tolerance = 1e-6 * np.abs(states).max()
    np.testing.assert_allclose(wide[mask], states[mask], atol=tolerance, rtol=0)


def states_and_gradient(encoder, remat):
    """With dropout, for an incoming gradient that differs from entry to entry."""
    ids, mask = texts("bert", 7, [7, 5, 3])
    keys = jax.random.split(jax.random.key(1), 3)
    shape = (3, 7, encoder.config.hidden_size)
    incoming = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    incoming *= mask[..., None]
    graphdef, params = nnx.split(encoder)

    def weighted_sum(params):
        model = nnx.merge(graphdef, params)
        states = model(ids, mask, dropout_keys_B=keys, remat=remat)
        return (states * incoming).sum(), states * mask[..., None]

    # One operation after the other: the same ones give the same numbers on every
    # processor, where the rounding of a whole program hangs on what is fused.
    with jax.disable_jit():
        differentiated = jax.value_and_grad(weighted_sum, has_aux=True)
        (_, states), gradient = differentiated(params)
    return {"states": states, "gradient": nnx.to_pure_dict(gradient)}


def test_what_is_computed_again_changes_nothing():
    """Of two layers, which differ in their parameters and in what is dropped."""
    _, encoder = encoders("bert")
    noisy = with_dropout(encoder, 0.2, 0.3)
    plain = states_and_gradient(noisy, "none")
    for remat in ("dots", "layer"):
        found = states_and_gradient(noisy, remat)
        leaves = jax.tree.leaves_with_path(plain)
        for (path, want), have in zip(leaves, jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(have, want, err_msg=f"{remat} {path}")


def test_attention_dropout_path_meets_the_other_where_nothing_is_dropped():
    _, encoder = encoders("bert")
    # The smallest rate above 0 leaves every weight in place and unscaled.
    noisy = with_dropout(encoder, 0.0, 1e-12)
    ids, mask = texts("bert", 7, [7, 5])
    states = encode(noisy, ids, mask, jax.random.split(jax.random.key(1), 2))
    np.testing.assert_allclose(states, encode(encoder, ids, mask), atol=1e-5, rtol=0)


def test_mlm_transform_equals_transformers():
    torch.manual_seed(3)
    config = transformers.BertConfig(**SIZES["bert"])
    head = transformers.BertForMaskedLM(config).cls.predictions.transform
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    ours = load(
        MLMTransform(28, 1e-12, rngs=nnx.Rngs(0)),
        {
            "dense": {
                "kernel": head.dense.weight.detach().numpy().T,
                "bias": head.dense.bias.detach().numpy(),
            },
            "norm": {
                "scale": head.LayerNorm.weight.detach().numpy(),
                "bias": head.LayerNorm.bias.detach().numpy(),
            },
        },
    )
    hidden = np.random.default_rng(0).normal(size=(10, 28)).astype(np.float32)
    theirs = head(torch.tensor(hidden)).detach().numpy()
    np.testing.assert_allclose(ours(hidden), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_too_long_texts_are_refused_with_numbers(family):
    _, encoder = encoders(family)
    limit = MAX_LENGTHS[family]
    ids, mask = texts(family, limit + 1, [2])
    rows = SIZES[family]["max_position_embeddings"]
    with pytest.raises(ValueError, match=rf"{limit + 1} tokens.*most {limit}.*{rows}"):
        jax.eval_shape(encoder, ids, mask)


def test_mask_of_another_shape_is_refused():
    _, encoder = encoders("bert")
    ids, mask = texts("bert", 5, [5, 3])
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 4\)"):
        encoder(ids, mask[:, :4])


@pytest.mark.parametrize("family", FAMILIES)
def test_config_goes_to_hugging_face_and_back(family):
    hf = {"model_type": family, **SIZES[family], "hidden_dropout_prob": 0.03}
    config = read_config(hf)
    assert config.hidden_dropout == 0.03
    assert config.max_length == MAX_LENGTHS[family]
    assert read_config(config.to_hf()) == config
    theirs = transformers.AutoConfig.for_model(**config.to_hf()).to_dict()
    assert read_config(theirs) == config


def test_roberta_counts_as_xlm_roberta():
    hf = {"model_type": "roberta", **SIZES["xlm-roberta"]}
    assert read_config(hf).family == "xlm-roberta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, r"'t5'.*bert, xlm-roberta, roberta"),
        ({"model_type": None}, r"model_type is None"),
        ({"hidden_act": "gelu_new"}, r"'gelu_new'.*exact 'gelu'"),
        ({"position_embedding_type": "relative_key"}, r"'relative_key'.*'absolute'"),
        ({"is_decoder": True}, r"is_decoder is true"),
        ({"add_cross_attention": True}, r"add_cross_attention is true"),
        ({"hidden_size": 30}, r"30 is not divisible by num_heads 4"),
        ({"vocab_size": None, "num_hidden_layers": None}, r"vocab_size, num_hidden_l"),
        ({"max_position_embeddings": 0}, r"table of 0 rows"),
    ],
)
def test_configs_that_are_not_implemented_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_config({"model_type": "bert", **SIZES["bert"], **change})


def gpu(version="PJRT C API cuda 12090", capability="9.0"):
    """What the choice of an attention looks at of a device."""
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(
        platform="gpu", client=client, compute_capability=capability
    )


@pytest.mark.parametrize(
    ("device", "dtype", "width", "wanted"),
    [
        (gpu(), jnp.bfloat16, 64, True),
        (gpu(), jnp.float16, 128, True),
        (gpu(), jnp.float32, 64, False),
        (gpu(), jnp.bfloat16, 12, False),
        (gpu(), jnp.bfloat16, 256, False),
        (gpu(capability="7.5"), jnp.bfloat16, 64, False),
        (gpu(version="rocm 60300"), jnp.bfloat16, 64, False),
        (jax.devices("cpu")[0], jnp.bfloat16, 64, False),
    ],
)
def test_cudnn_is_taken_where_it_has_the_kernel(device, dtype, width, wanted):
    assert attention.suits_cudnn(device, jnp.dtype(dtype), width) == wanted


def test_attention_of_cudnn_lowers_for_gpus_with_its_gradients(monkeypatch):
    """All that can be seen of it without a GPU: its calls, with the texts' lengths."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda wanted: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda wanted: False)
    x = jax.ShapeDtypeStruct((2, 24, 2, 64), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, 24), jnp.bool_)

    def loss(q, k, v, mask):
        seen = attention.lengths_of(mask)
        return attention.attend(q, k, v, seen).astype(jnp.float32).sum()

    lowered = jax.export.export(
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))),
        platforms=["cuda"],
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmhaSoftmax{way}")
            for way in ("", "Backward")
        ],
    )(x, x, x, mask)
    text = lowered.mlir_module()
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    # No weights of all pairs of tokens.
    assert "2x2x24x24" not in text


def test_the_config_of_distilbert_comes_back_under_its_own_keys():
    config = transformers.DistilBertConfig(
        vocab_size=41, dim=14, n_layers=3, n_heads=2, hidden_dim=19, dropout=0.2
    ).to_dict()
    found = read_config(config)
    assert (found.hidden_size, found.num_layers, found.type_vocab_size) == (14, 3, 0)
    written = found.to_hf()
    assert written["model_type"] == "distilbert" and written["hidden_dim"] == 19
    assert written == {key: config[key] for key in written}
    assert read_config(written) == found


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "8"])
def test_sizes_are_whole_numbers_above_zero(value):
    config = transformers.BertConfig().to_dict() | {"num_hidden_layers": value}
    with pytest.raises(
        ValueError, match=r"num_hidden_layers is .*whole number above 0"
    ):
        read_config(config)
