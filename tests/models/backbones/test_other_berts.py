"""BERT's computation under other names, against PyTorch transformers.

States, logits and gradients, and a checkpoint that goes out as it came in.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from lsrjax.convert.names import by_layer, export_state, import_state
from lsrjax.models.backbones import mpnet
from lsrjax.models.backbones.table import BACKBONES, read_config
from lsrjax.models.cross_encoder import CrossEncoder, CrossEncoderSpec

SIZES = {
    "vocab_size": 151,
    "hidden_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 23,
}
# The class, what its config has besides, and the most tokens of a text.
MODELS = {
    "electra": ("Electra", {"embedding_size": 28}, 23),
    "ernie": ("Ernie", {}, 23),
    # Distances from 8 on share a bucket.
    "mpnet": ("MPNet", {"vocab_size": 151}, 21),
}
FAMILIES = pytest.mark.parametrize("family", MODELS)
SOME = pytest.mark.parametrize(
    "family", ["electra", pytest.param("ernie", marks=pytest.mark.slow), "mpnet"]
)


def reference(family, kind="ForMaskedLM"):
    torch.manual_seed(7)
    name, more, _ = MODELS[family]
    config = getattr(transformers, f"{name}Config")(**SIZES | more)
    config._attn_implementation = "eager"
    model = getattr(transformers, name + kind)(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            center = 1.0 if path.lower().endswith("norm.weight") else 0.0
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    return model.eval()


def texts(length, lengths, pad, left=False):
    """Random ids, padded on one side to `length`."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, SIZES["vocab_size"], (len(lengths), length))
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    return np.where(mask, ids, pad), mask


@SOME
def test_logits_and_gradients_equal_transformers(family):
    """Gradients of all parameters, from those of the logits."""
    model, entry = reference(family), BACKBONES[family]
    config = read_config(model.config.to_dict())
    length = MODELS[family][2]
    assert config.family == family and config.max_length == length
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    params = import_state(state, family)
    assert "decoder" not in params["head"]["mlm"]  # tied
    encoder = entry.encoder(config, rngs=nnx.Rngs(0))
    nnx.update(encoder, jax.tree.map(jnp.asarray, params["encoder"]))
    transform = entry.transform(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mlm = params["head"]["mlm"]
    nnx.update(transform, jax.tree.map(jnp.asarray, mlm["transform"]))
    parts = {"encoder": nnx.split(encoder), "transform": nnx.split(transform)}
    trees = {name: params for name, (_, params) in parts.items()}
    trees["bias"] = jnp.asarray(mlm["bias"])

    def logits(trees, ids, mask):
        made = {k: nnx.merge(graphdef, trees[k]) for k, (graphdef, _) in parts.items()}
        hidden = made["encoder"](ids, mask).reshape(-1, config.hidden_size)
        words = made["encoder"].embeddings.word.embedding[...]
        found = made["transform"](hidden) @ words.T + trees["bias"]
        return found.reshape(*ids.shape, -1)

    for left in (False, True):
        ids, mask = texts(length, [length, 7, 1], config.pad_token_id, left)
        wanted = model(torch.tensor(ids), torch.tensor(mask.astype(int))).logits
        found = np.asarray(jax.jit(logits)(trees, ids, mask))[mask]
        scale = wanted.abs().max().item()
        np.testing.assert_allclose(
            found, wanted.detach().numpy()[mask], atol=1e-5 * scale, rtol=0
        )
    incoming = np.random.default_rng(3).normal(size=wanted.shape).astype(np.float32)
    incoming *= mask[..., None] / SIZES["vocab_size"]
    (wanted * torch.tensor(incoming)).sum().backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters()}

    @jax.jit
    @jax.grad
    def gradient(trees):
        return (logits(trees, ids, mask) * incoming).sum()

    ours = gradient(trees)
    ours = {
        "encoder": nnx.to_pure_dict(ours["encoder"]),
        "head": {
            "mlm": {
                "transform": nnx.to_pure_dict(ours["transform"]),
                "bias": ours["bias"],
            }
        },
    }
    wanted = import_state(gradients, family)
    for tree in (ours, wanted):
        tree["encoder"] = by_layer(tree["encoder"], family)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
    ):
        scale = np.abs(b).max() + 1.0
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@SOME
@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM"])
def test_a_checkpoint_goes_out_as_it_came(family, kind):
    model, entry = reference(family, kind), BACKBONES[family]
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    shared = {entry.names.masked_lm["head/mlm/decoder"], entry.names.bias_copy}
    unused = {n for n in state if "pooler" in n or n.endswith("position_ids")}
    again = export_state(import_state(state, family), family)
    assert again.keys() == state.keys() - shared - unused
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


@FAMILIES
def test_config_goes_to_hugging_face_and_back(family):
    name, more, _ = MODELS[family]
    made = getattr(transformers, f"{name}Config")(**SIZES | more).to_dict()
    config = read_config(made)
    theirs = transformers.AutoConfig.for_model(**config.to_hf()).to_dict()
    assert read_config(config.to_hf()) == read_config(theirs) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "electra", "embedding_size": 7}, "embedding_size is 7"),
        ({"model_type": "electra"}, "embedding_size is 128"),
        (
            {"model_type": "mpnet", "relative_attention_num_buckets": 64},
            "buckets is 64",
        ),
        ({"model_type": "mpnet", "pad_token_id": 0}, "pad_token_id is 0"),
        ({"model_type": "ernie", "use_task_id": True}, "use_task_id is true"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        read_config(SIZES | config)


@SOME
def test_rerankers_score_as_in_transformers(family):
    name, more, _ = MODELS[family]
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(**SIZES | more, num_labels=1)
    kind = getattr(transformers, f"{name}ForSequenceClassification")
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    spec = CrossEncoderSpec(read_config(config.to_dict()))
    ours = CrossEncoder(spec, rngs=nnx.Rngs(0))
    nnx.update(ours, import_state(state, f"{family}-classifier"))
    ids, mask = texts(11, [11, 7], spec.encoder.pad_token_id)
    types, more = None, {}
    if BACKBONES[family].pairs_have_types:
        types = (np.arange(11)[None] > [[3], [2]]).astype(int)
        more = {"token_type_ids": torch.tensor(types)}
    with torch.no_grad():
        wanted = model(torch.tensor(ids), torch.tensor(mask.astype(int)), **more).logits
    np.testing.assert_allclose(
        nnx.jit(ours)(ids, mask, types), wanted[:, 0], atol=1e-5, rtol=0
    )


def test_buckets_of_long_distances_are_those_of_transformers():
    places = torch.arange(300)
    ahead = places[None] - places[:, None]
    wanted = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    wanted = wanted.relative_position_bucket(ahead, num_buckets=32)
    np.testing.assert_array_equal(mpnet.buckets(300), wanted.numpy())
