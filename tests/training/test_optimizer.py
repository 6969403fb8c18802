import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.distributed.trees import path_name
from lsrjax.errors import InputError
from lsrjax.training import optimizer as optim


def config(**fields):
    c = get_default().optim
    c.update(fields)
    return c


@pytest.fixture
def params():
    return {
        "encoder": {
            "embeddings": {"embedding": jnp.linspace(-1, 1, 6).reshape(3, 2)},
            "norm": {"scale": jnp.ones(2), "bias": jnp.full(2, 0.5)},
        },
        "head": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)},
    }


def made(c, params, total=100):
    return optim.make_optimizer(c, total, optim.frozen(c.freeze, params))


def steps(c, params, grads, count=1, total=100):
    optimizer = made(c, params, total)
    state = optimizer.init(params)
    for _ in range(count):
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)],
)
def test_schedules_at_key_points(schedule, middle, last):
    rate = optim.learning_rate(
        config(lr=2.0, schedule=schedule, warmup_steps=10), total_steps=110
    )
    # Up in a straight line from 0, the peak at the end of the warm-up, then down.
    expected = {0: 0, 1: 0.1, 5: 0.5, 10: 1, 60: middle, 110: last, 500: last}
    for step, share in expected.items():
        np.testing.assert_allclose(rate(jnp.int32(step)), 2.0 * share, atol=1e-6)


def test_cosine_at_a_quarter_is_the_formula():
    rate = optim.learning_rate(config(lr=1.0, schedule="cosine"), total_steps=8)
    expected = [(1 + np.cos(np.pi * t / 8)) / 2 for t in range(9)]
    np.testing.assert_allclose([rate(t) for t in range(9)], expected, atol=1e-6)


def test_warmup_as_a_fraction():
    c = config(lr=1.0, schedule="constant", warmup_fraction=0.03)
    rate = optim.learning_rate(c, total_steps=1000)
    np.testing.assert_allclose([rate(15), rate(30), rate(31)], [0.5, 1, 1], rtol=1e-6)
    # Rounded: 0.29 * 100 is a little less than 29.
    c.warmup_fraction = 0.29
    rate = optim.learning_rate(c, total_steps=100)
    np.testing.assert_allclose([rate(28), rate(29)], [28 / 29, 1], rtol=1e-6)


def test_decay_is_decoupled_and_spares_biases_and_norms(params):
    c = config(lr=0.1, schedule="constant", weight_decay=0.5, clip_norm=0.0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    after, _ = steps(c, params, zeros)
    shrunk = 1 - 0.1 * 0.5
    for name, factor in {
        ("encoder", "embeddings", "embedding"): shrunk,
        ("encoder", "norm", "scale"): 1.0,
        ("encoder", "norm", "bias"): 1.0,
        ("head", "kernel"): shrunk,
        ("head", "bias"): 1.0,
    }.items():
        old, new = params, after
        for key in name:
            old, new = old[key], new[key]
        np.testing.assert_allclose(new, factor * old, rtol=1e-6, err_msg=str(name))


def test_adamw_after_two_steps_is_the_formula(params):
    c = config(lr=0.01, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    grads = jax.tree.map(lambda p: 0.3 * jnp.ones_like(p), params)
    after, _ = steps(c, params, grads, count=2)
    # With equal gradients Adam's bias-corrected step is lr * g / (|g| + eps).
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old - 2 * 0.01, rtol=1e-5)


def test_moments_decay_at_their_own_rates(params):
    c = config(lr=0.01, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    c.optimizer.b1, c.optimizer.b2 = 0.5, 0.75
    optimizer = made(c, params)
    state, mean, square = optimizer.init(params), 0.0, 0.0
    for step, g in enumerate((1.0, -3.0), start=1):
        grads = jax.tree.map(lambda p, g=g: jnp.full_like(p, g), params)
        updates, state = optimizer.update(grads, state, params)
        mean, square = 0.5 * mean + 0.5 * g, 0.75 * square + 0.25 * g * g
        wanted = mean / (1 - 0.5**step) / np.sqrt(square / (1 - 0.75**step))
        for leaf in jax.tree.leaves(updates):
            np.testing.assert_allclose(leaf, -0.01 * wanted, rtol=1e-5)


def test_frozen_parameters_stay_and_have_no_state(params):
    c = config(lr=0.1, schedule="constant", weight_decay=0.5, freeze="^encoder/")
    grads = jax.tree.map(jnp.ones_like, params)
    after, state = steps(c, params, grads, count=3)
    for old, new in zip(
        jax.tree.leaves(params["encoder"]),
        jax.tree.leaves(after["encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    assert not np.array_equal(params["head"]["kernel"], after["head"]["kernel"])
    # Two moments for each trained parameter, and nothing for a frozen one.
    shapes = sorted(x.shape for x in jax.tree.leaves(state) if x.ndim)
    assert shapes == sorted(2 * [(2, 3), (3,)])


@pytest.mark.parametrize(
    ("freeze", "frozen"), [("^query_tower/", "query_tower"), ("^head/", "head")]
)
def test_a_tower_is_frozen_by_its_path(params, freeze, frozen):
    towers = params | {"query_tower": params}
    c = config(lr=0.1, schedule="constant", weight_decay=0.5, freeze=freeze)
    after, _ = steps(c, towers, jax.tree.map(jnp.ones_like, towers))
    for path, leaf in jax.tree_util.tree_leaves_with_path(towers):
        name = path_name(path)
        moved = (leaf != after_at(after, path)).any()
        assert moved != name.startswith(frozen), name
    # Both towers are spared the decay alike.
    excluded = optim.matches(get_default().optim.no_decay, towers)
    assert excluded["query_tower"] == optim.matches(
        get_default().optim.no_decay, params
    )


def after_at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


@pytest.mark.parametrize(("freeze", "matched"), [("decoder", 0), (".", 5)])
def test_freezing_nothing_or_everything_is_an_error(params, freeze, matched):
    with pytest.raises(InputError, match=f"{matched} of 5 parameters") as error:
        optim.frozen(freeze, params)
    assert "encoder/embeddings/embedding" in str(error.value)


def test_clipping_bounds_the_norm_over_all_trained_parameters(params):
    # Adam divides by the gradient's size, so clipping is seen where eps is large.
    fields = dict(lr=1.0, schedule="constant", weight_decay=0.0)
    fields["optimizer"] = entry("adamw", eps=1e3, b1=0.0)
    grads = jax.tree.map(lambda p: 50.0 * jnp.ones_like(p), params)
    after, _ = steps(config(clip_norm=1.0, **fields), params, grads)
    count = sum(p.size for p in jax.tree.leaves(params))
    clipped = 1 / np.sqrt(count)
    moved = params["head"]["bias"] - after["head"]["bias"]
    np.testing.assert_allclose(moved, clipped / (clipped + 1e3), rtol=1e-3)
    small = jax.tree.map(lambda g: g * 1e-3, grads)
    with_clip, _ = steps(config(clip_norm=100.0, **fields), params, small)
    without, _ = steps(config(clip_norm=0.0, **fields), params, small)
    for a, b in zip(jax.tree.leaves(with_clip), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [2, 4])  # while the rate rises, and as it falls
def test_groups_have_learning_rates_of_their_own(params, count):
    plain = config(lr=0.01, schedule="linear", warmup_steps=2, weight_decay=0.0)
    grads = jax.tree.map(jnp.ones_like, params)
    once, _ = steps(plain, params, grads, count, total=6)
    plain.groups = {"^head/": {"lr": 0.05}, "embedding$": {"times": 0.5}}
    found, _ = steps(plain, params, grads, count, total=6)
    ways = jax.tree.map(lambda a, b, p: (a - p) / (b - p), found, once, params)
    for leaf in jax.tree.leaves(ways["head"]):
        np.testing.assert_allclose(leaf, 5.0, rtol=1e-4)
    encoder = ways["encoder"]
    np.testing.assert_allclose(encoder["embeddings"]["embedding"], 0.5, rtol=1e-4)
    np.testing.assert_array_equal(encoder["norm"]["bias"], 1.0)


def test_a_group_s_decay_is_its_own_and_spares_what_is_spared(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    c = config(lr=0.1, schedule="constant", weight_decay=0.5, clip_norm=0.0)
    c.groups = {"^head/": {"times": 2.0, "weight_decay": 0.25}}
    after, _ = steps(c, params, zeros)
    kernel, bias = after["head"]["kernel"], after["head"]["bias"]
    np.testing.assert_allclose(kernel, 2 * (1 - 0.2 * 0.25), rtol=1e-6)
    np.testing.assert_array_equal(bias, params["head"]["bias"])
    embedding = after["encoder"]["embeddings"]["embedding"]
    wanted = params["encoder"]["embeddings"]["embedding"] * (1 - 0.1 * 0.5)
    np.testing.assert_allclose(embedding, wanted, rtol=1e-6)


def test_groups_do_not_change_the_others_nor_the_state(params):
    """The norm that gradients are clipped to is that of all of them."""
    grads = jax.tree.map(lambda p: 50.0 * p, params)
    fields = dict(optimizer=entry("sgd"), lr=0.1, schedule="constant", clip_norm=1.0)
    without, state = steps(config(**fields), params, grads)
    found, same = steps(config(**fields, groups={"^head/": {"lr": 0.2}}), params, grads)
    assert [x.shape for x in jax.tree.leaves(state)] == [
        x.shape for x in jax.tree.leaves(same)
    ]
    for a, b in zip(
        jax.tree.leaves(without["encoder"]),
        jax.tree.leaves(found["encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(without["head"]["kernel"], found["head"]["kernel"])


def test_rates_of_groups_are_logged_by_name():
    groups = {
        "^head/static$": {"lr": 1e-3},
        "head.static": {"times": 2.0},
        "norm": {"weight_decay": 0.0},
    }
    found = optim.logged_rates(config(lr=2e-5, groups=groups))
    assert found == pytest.approx({"lr_head_static": 50.0, "lr_head_static_1": 2.0})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"groups": {"static": {"lr": 1.0}}}, "'static'.*no parameter whose learning"),
        (
            {"groups": {"^head/": {"lr": 1.0}, "bias": {"times": 2.0}}},
            "'\\^head/' and 'bias' both match head/bias, and both set its learning",
        ),
        (
            {"groups": {"head": {"weight_decay": 1.0}, "k": {"weight_decay": 0.0}}},
            "both match head/kernel, and both set its decay",
        ),
        # What never decays, and what is frozen, would not change.
        ({"groups": {"bias$": {"weight_decay": 1.0}}}, "whose decay it could set"),
        (
            {"freeze": "^head/", "groups": {"^head/": {"times": 2.0}}},
            "Those that are trained are:\n  encoder/embeddings",
        ),
    ],
)
def test_groups_that_match_nothing_or_the_same_are_refused(params, fields, said):
    with pytest.raises(InputError, match=said):
        made(config(**fields), params)


def test_two_groups_may_match_what_they_set_differently(params):
    groups = {"^head/": {"lr": 1.0}, "kernel": {"weight_decay": 0.0}}
    made(config(groups=groups), params)


def test_paths_and_matches(params):
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert "encoder/norm/scale" in names and len(names) == 5
    assert jax.tree.leaves(optim.matches("", params)) == [False] * 5
    assert optim.matches(r"norm/", params)["encoder"]["norm"]["bias"]
