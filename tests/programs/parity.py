"""Compares an encoder of ours with its class in PyTorch transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from lsrjax.convert.names import by_layer, export_state, import_state
from lsrjax.models.backbones.table import backbone, read_config


def reference(kind, config, seed=7):
    """A model of transformers with random weights, all norms and biases moved."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_((1.0 if norm else 0.0) + 0.2 * torch.randn_like(parameter))
    return model.eval()


def state_of(model):
    """Its tensors, less a pooler that nothing uses."""
    return {
        name: value.numpy().copy()
        for name, value in model.state_dict().items()
        if "pooler" not in name
    }


def encoder_of(model):
    """Our encoder with the weights of a model without head."""
    config = read_config(model.config.to_dict())
    encoder = backbone(config.family).encoder(config, rngs=nnx.Rngs(0))
    params = import_state(state_of(model), config.family)["encoder"]
    wanted = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(encoder, nnx.Param)))
    assert jax.tree.map(np.shape, params) == wanted
    nnx.update(encoder, jax.tree.map(jnp.asarray, params))
    return encoder


def texts(length, lengths, *, vocabulary=151, pad=0, seed=0, left=False):
    """Random ids, padded on one side to `length`, and their mask."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, vocabulary, (len(lengths), length))
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    return np.where(mask, ids, pad), mask


def tensors(ids, mask):
    """Both as PyTorch takes them."""
    return torch.tensor(ids), torch.tensor(mask.astype(int))


@nnx.jit(static_argnames=("remat",))
def encode(encoder, ids, mask, remat="none", **more):
    """Its states, [B, L, D]."""
    return encoder(ids, mask, remat=remat, **more)


def check_states(model, encoder, ids, mask, theirs=None, ours=None):
    """Of all tokens, to 1e-5."""
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(int)),
            **(theirs or {}),
        )
    found = np.asarray(encode(encoder, ids, mask, **(ours or {})))
    wanted = output.last_hidden_state.numpy()
    np.testing.assert_allclose(found[mask], wanted[mask], atol=1e-5, rtol=0)


def check_gradients(model, encoder, ids, mask, remat, theirs=None, ours=None):
    """Of all parameters, to 1e-5 of each one's largest plus 1."""
    family = encoder.config.family
    rng = np.random.default_rng(3)
    shape = (*ids.shape, encoder.config.hidden_size)
    incoming = (rng.normal(size=shape) * mask[..., None]).astype(np.float32)
    output = model(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask.astype(int)),
        **(theirs or {}),
    ).last_hidden_state
    (output * torch.tensor(incoming)).sum().backward()
    grads = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in model.named_parameters()
        if "pooler" not in name
    }
    wanted = by_layer(import_state(grads, family)["encoder"], family)
    graphdef, params = nnx.split(encoder)

    def weighted_sum(params):
        made = nnx.merge(graphdef, params)
        return (made(ids, mask, remat=remat, **(ours or {})) * incoming).sum()

    found = nnx.to_pure_dict(jax.jit(jax.grad(weighted_sum))(params))
    found = by_layer(found, family)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        scale = np.abs(b).max() + 1.0
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0, err_msg=str(path))


def check_logits(model, ids, mask, theirs=None, ours=None):
    """Of a masked LM, to 1e-5 of the largest; returns its parameters, ours."""
    config = read_config(model.config.to_dict())
    entry = backbone(config.family)
    params = import_state(state_of(model), config.family)
    encoder = entry.encoder(config, rngs=nnx.Rngs(0))
    nnx.update(encoder, jax.tree.map(jnp.asarray, params["encoder"]))
    transform = entry.transform(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mlm = params["head"]["mlm"]
    nnx.update(transform, jax.tree.map(jnp.asarray, mlm["transform"]))
    hidden = encode(encoder, ids, mask, **(ours or {}))
    words = params["encoder"]["embeddings"]["word"]["embedding"]
    states = transform(hidden.reshape(-1, config.hidden_size))
    found = states @ mlm.get("decoder", words).T + mlm["bias"]
    found = np.asarray(found).reshape(*ids.shape, -1)
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(int)),
            **(theirs or {}),
        ).logits.numpy()
    tolerance = 1e-5 * np.abs(wanted[mask]).max()
    np.testing.assert_allclose(found[mask], wanted[mask], atol=tolerance, rtol=0)
    return params


def check_it_goes_out_as_it_came(model, tied=()):
    """Names and bits, less the second names of `tied` tensors."""
    state = state_of(model)
    family = read_config(model.config.to_dict()).family
    again = export_state(import_state(state, family), family)
    assert again.keys() == state.keys() - set(tied)
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def check_padding(encoder, pad, **ours):
    """Neither what is behind a text nor how much changes its states."""
    call = functools.partial(encode, encoder, **ours)
    ids, mask = texts(9, [9, 5, 3], pad=pad)
    plain = np.asarray(call(ids, mask))
    other = np.asarray(call(np.where(mask, ids, 97), mask))
    np.testing.assert_array_equal(other[mask], plain[mask])
    wider = call(
        np.pad(ids, ((0, 0), (0, 6)), constant_values=89),
        np.pad(mask, ((0, 0), (0, 6))),
    )
    wider = np.asarray(wider)[:, :9]
    tolerance = 1e-6 * np.abs(plain).max()
    np.testing.assert_allclose(wider[mask], plain[mask], atol=tolerance, rtol=0)
