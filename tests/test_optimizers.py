"""The optimizers, as a stage makes them, against optax's own and by hand."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from programs.launch import QUICK

from lsrjax.checkpoint import train_states
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.distributed import sharding
from lsrjax.distributed.trees import path_name
from lsrjax.optimizers import OPTIMIZERS
from lsrjax.training.optimizer import frozen, make_optimizer

DECAY, RATE = 0.1, 0.01
# Each with what optax says it is; None: by hand below.
OTHERS = {
    "adamw": (
        {"b1": 0.8, "b2": 0.9, "eps": 1e-3},
        lambda mask: optax.adamw(RATE, 0.8, 0.9, 1e-3, weight_decay=DECAY, mask=mask),
    ),
    "lion": (
        {"b1": 0.7, "b2": 0.8},
        lambda mask: optax.lion(RATE, 0.7, 0.8, weight_decay=DECAY, mask=mask),
    ),
    "lamb": (
        {"b2": 0.9},
        lambda mask: optax.lamb(RATE, b2=0.9, eps=1e-6, weight_decay=DECAY, mask=mask),
    ),
    "adafactor": (
        {"relative": True, "factored_size": 4, "clip": 0.7},
        # Its decay is not times the learning rate.
        lambda mask: optax.adafactor(
            RATE,
            min_dim_size_to_factor=4,
            clipping_threshold=0.7,
            weight_decay_rate=RATE * DECAY,
            weight_decay_mask=mask,
        ),
    ),
    "muon": (
        {"momentum": 0.8, "b1": 0.7},
        # With both in one, its AdamW would look ahead, too.
        lambda mask: optax.partition(
            {
                "matrices": optax.contrib.muon(
                    RATE,
                    beta=0.8,
                    weight_decay=DECAY,
                    consistent_rms=0.2,
                    muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(
                        0, -1
                    ),
                ),
                "others": optax.adamw(RATE, 0.7, weight_decay=DECAY, mask=mask),
            },
            _matrices,
        ),
    ),
    "sgd": (
        {"momentum": 0.8, "nesterov": True},
        lambda mask: optax.chain(
            optax.trace(0.8, nesterov=True),
            optax.add_decayed_weights(DECAY, mask),
            optax.scale(-RATE),
        ),
    ),
}


def _matrices(tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "matrices" if path_name(path).endswith("kernel") else "others",
        tree,
    )


def config(name, options, **fields):
    c = get_default().optim
    c.optimizer = entry(name, **options)
    c.lr, c.schedule, c.weight_decay, c.clip_norm = RATE, "constant", DECAY, 0.0
    c.no_decay = "bias$|embedding$"
    c.update(fields)
    return c


def random(seed, scale=1.0):
    rng = np.random.default_rng(seed)

    def some(*shape):
        # A layer's own size, so that whatever is computed of a parameter differs.
        size = np.array([1.0, 3.0, 9.0]).reshape(3, *(1,) * (len(shape) - 1))
        return jnp.asarray(
            rng.normal(0, scale, shape) * (size if shape[0] == 3 else 1), jnp.float32
        )

    return {
        "encoder": {
            "embeddings": {"word": {"embedding": some(7, 4)}},
            "layers": {
                "attention": {"qkv": {"kernel": some(3, 4, 3, 4)}},
                "up": {"kernel": some(3, 4, 6), "bias": some(3, 6)},
            },
        },
        "transform": {"dense": {"kernel": some(5, 4), "bias": some(5)}},
    }


def unstacked(tree):
    """Each layer's parameters on their own, as other programs have them."""
    layers = tree["encoder"]["layers"]
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(3)]
    return tree | {"encoder": tree["encoder"] | {"layers": dict(enumerate(each))}}


def trained(optimizer, params, change=lambda tree: tree, steps=3):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        grads = change(random(step + 1))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_every_optimizer_is_compared():
    assert set(OTHERS) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_optax_s_of_each_layer(name):
    options, other = OTHERS[name]
    params, spared = random(0), ("bias", "embedding")
    ours = make_optimizer(config(name, options), 10, frozen("", params))

    def decays(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not path_name(path).endswith(spared), tree
        )

    found, _ = trained(ours, params)
    wanted, _ = trained(other(decays), unstacked(params), unstacked)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(unstacked(found)),
        jax.tree.leaves(wanted),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=path_name(path))
        assert np.isfinite(a).all()


@pytest.mark.parametrize("name", OTHERS)
def test_frozen_parameters_stay_and_it_has_no_state_of_them(name):
    params = random(0)
    c = config(name, OTHERS[name][0])
    optimizer = make_optimizer(c, 10, frozen("^encoder/", params))
    found, state = trained(optimizer, params)
    same = jax.tree.map(np.array_equal, found, params)
    assert all(jax.tree.leaves(same["encoder"]))
    assert not any(jax.tree.leaves(same["transform"]))
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not any("layers" in one or "embedding" in one for one in names)


def bytes_of(name, options=()):
    params = random(0)
    optimizer = make_optimizer(config(name, dict(options)), 10, frozen("", params))
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = jax.eval_shape(optimizer.init, params)
    return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) / whole


def test_their_state_takes_as_much_as_they_are_chosen_for():
    assert bytes_of("adamw") == bytes_of("lamb") == 2
    assert bytes_of("lion") == bytes_of("sgd") == 1
    assert bytes_of("sgd", {"momentum": 0.0}) == 0
    assert bytes_of("adafactor", {"factored_size": 4}) < 0.6
    assert 1 < bytes_of("muon") < 1.5  # one moment of the matrices


@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_their_state_is_divided_as_the_parameters_are(name, fsdp):
    """What has a parameter's shape; factored squares, a row's, are on every device."""
    mesh = AbstractMesh((2, 2), ("data", "model"))
    params = random(0)
    layout = sharding.layout(params, mesh, num_heads=2, fsdp=fsdp)
    options = {"factored_size": 4} if name == "adafactor" else {}
    optimizer = make_optimizer(config(name, options), 10, frozen("", params))
    state = jax.eval_shape(optimizer.init, params)
    found = jax.tree.leaves(layout.shardings(state))
    moments = 0
    for (path, leaf), where in zip(
        jax.tree_util.tree_leaves_with_path(state), found, strict=True
    ):
        for own, spec in layout.specs.items():
            if path_name(path).endswith(own) and leaf.shape == layout.shapes[own]:
                assert where.spec == spec
                moments += 1
                break
        else:
            assert where.spec == P()
        where.shard_shape(leaf.shape)  # divides
    assert moments >= (1 if name == "adafactor" else len(layout.specs))


def on_mesh(name, data, model):
    """Parameters after three steps with `fsdp` on so many devices."""
    mesh = sharding.make_mesh(data, model, jax.devices()[: data * model])
    params, (options, _) = random(0), OTHERS[name]
    optimizer = make_optimizer(config(name, options), 10, frozen("", params))
    layout = sharding.layout(params, mesh, num_heads=2, fsdp=True)
    where = layout.shardings(params)
    state_where = layout.shardings(jax.eval_shape(optimizer.init, params))
    params = sharding.place(params, where)
    state = jax.jit(optimizer.init, out_shardings=state_where)(params)

    @functools.partial(jax.jit, out_shardings=(where, state_where))
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for number in range(3):
        grads = sharding.place(random(number + 1), where)
        params, state = step(params, state, grads)
    return jax.tree.map(np.asarray, params)


def compare_meshes():
    """For `test_no_mesh_changes_a_step`, in a process with four devices."""
    for name in OTHERS:
        found, wanted = on_mesh(name, 2, 2), on_mesh(name, 1, 1)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_no_mesh_changes_a_step():
    program = "import test_optimizers; test_optimizers.compare_meshes()"
    flags = f"--xla_force_host_platform_device_count=4 {QUICK}"
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=pathlib.Path(__file__).parent,
        env=os.environ | {"XLA_FLAGS": flags},
    )


@pytest.mark.parametrize("name", OTHERS)
def test_its_state_comes_back_from_a_checkpoint(name, tmp_path):
    optimizer = make_optimizer(config(name, {}), 10, frozen("", random(0)))
    params, opt_state = trained(optimizer, random(0), steps=1)
    state = {"step": jnp.int32(1), "params": params, "opt_state": opt_state}
    checkpoints = train_states.Checkpoints(tmp_path, keep=1, metric="R@5")
    checkpoints.save(state, None, last=True)
    restored = checkpoints.restore(jax.eval_shape(lambda: state), 1)
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
