"""Adapters: what they add changes nothing at first, and is all that is trained."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from programs import tiny

from lsrjax.config import check_run
from lsrjax.config.fields import get_default
from lsrjax.distributed import sharding, trees
from lsrjax.errors import InputError
from lsrjax.models import adapters, low_rank, retriever
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import train_step

ALL = "kernel|word|decoder"
IDS = jnp.array([[3, 4, 5, 2], [5, 6, 0, 0], [7, 3, 3, 0]])
TEXT = {"ids": IDS, "mask": jnp.array(IDS != 0, int)}
# The others are among the slow ones.
FEW = ("bert",)
FAMILIES = [
    pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
    for name in BACKBONES
]


def spec_of(family="bert", **changes):
    changes = {"num_layers": 2, **changes}
    return RetrieverSpec.of("splade", tiny.encoder(family, **changes), tied=True)


def config_of(**options):
    c = get_default()
    c.adapt = {"lora": {"rank": 2, **options}}
    return c


def adapted(spec, **options):
    """Random parameters, and the same with adapters."""
    params = retriever.init_params(spec, 0)
    found = adapters.of(config_of(**options).adapt)
    return params, adapters.added(found, spec, params, seed=5)


def trained(params, seed=0):
    """The same with factors that are not 0."""
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        factor = low_rank.is_factor(trees.path_name(path))
        return rng.normal(0, 0.3, leaf.shape).astype("f4") if factor else leaf

    return jax.tree_util.tree_map_with_path(drawn, params)


def close(found, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_factors_is_that_of_the_merged_matrices(family):
    spec = spec_of(family)
    graphdef, _ = retriever.split(spec)
    plain, params = adapted(spec, paths=ALL)

    @functools.partial(jax.jit, static_argnums=1)
    def views(params, remat="none"):
        return retriever.apply(graphdef, params, TEXT, remat=remat)

    first = views(plain)
    # The same matrices bit for bit; a compiler may add other sums in another order.
    start = low_rank.merged(jax.tree.map(np.asarray, params))
    jax.tree.map(np.testing.assert_array_equal, start, plain)
    close(views(params), first, 1e-6)
    params = trained(params)
    merged = low_rank.merged(jax.tree.map(np.asarray, params))
    assert trees.shapes(merged) == trees.shapes(plain)
    wanted = views(merged)
    assert max(np.abs(a - b).max() for a, b in _pairs(wanted, first)) > 0.1
    for remat in ("none", "layer"):
        close(views(params, remat), wanted, 1e-5)


def _pairs(*found):
    return zip(*map(jax.tree.leaves, found), strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_are_divided_as_their_kernels_are(family):
    spec = spec_of(family, vocab_size=24, intermediate_size=18)  # which divide
    c = config_of(paths=ALL)
    mesh = AbstractMesh((1, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    plain = sharding.layout_of(spec, retriever.split(spec)[1], mesh, False).specs
    specs = sharding.layout_of(spec, adapters.shapes(c, spec), mesh, False).specs
    names = [name for name in plain if f"{name}/base" in specs]
    assert len(names) > 3 and specs.keys() - plain.keys()
    for name in names:
        axes, stacked = tuple(plain[name]), sharding.is_stacked(name)
        lead, (first, *products, last) = axes[:stacked], axes[stacked:]
        assert specs[f"{name}/base"] == plain[name]
        assert specs[f"{name}/a"] == P(*lead, first, *products, None)
        assert specs[f"{name}/b"] == P(*lead, *products, None, last)


def test_a_merged_matrix_is_the_formula():
    rng = np.random.default_rng(1)
    shapes = {"base": (3, 5, 2, 7), "a": (3, 5, 2, 4), "b": (3, 2, 4, 7), "scale": (3,)}
    node = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    # Two products of each of three layers, one by one.
    wanted = node["base"].copy()
    for layer in range(3):
        for i in range(2):
            product = node["a"][layer, :, i] @ node["b"][layer, i]
            wanted[layer, :, i] += node["scale"][layer] * product
    found = low_rank.merged({"layers": {"glu": {"kernel": node}}})
    np.testing.assert_allclose(found["layers"]["glu"]["kernel"], wanted, rtol=1e-12)
    table = {"base": (5, 7), "a": (5, 2), "b": (2, 7), "scale": ()}
    node = {name: rng.normal(size=shape) for name, shape in table.items()}
    found = low_rank.merged({"embedding": node})["embedding"]
    wanted = node["base"] + node["scale"] * node["a"] @ node["b"]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_factors_start_as_those_of_peft():
    _, params = adapted(spec_of(), paths=ALL, rank=8, alpha=4.0)
    found = low_rank.factors(params)
    up = found["encoder/layers/up/kernel"]
    assert up["a"].shape == (2, 12, 8) and up["b"].shape == (2, 8, 17)
    assert not up["b"].any() and (up["scale"] == 0.5).all()
    # kaiming_uniform with the slope of the root of 5.
    assert 0.9 < np.abs(up["a"]).max() * 12**0.5 <= 1
    qkv = found["encoder/layers/attention/qkv/kernel"]
    assert qkv["a"].shape == (2, 12, 3, 8) and qkv["b"].shape == (2, 3, 8, 12)
    # Of a table, whose rows are looked up, the other factor is 0.
    word = found["encoder/embeddings/word/embedding"]
    assert not word["a"].any() and word["b"].any()
    again = low_rank.factors(adapted(spec_of(), paths=ALL, rank=8, alpha=4.0)[1])
    jax.tree.map(np.testing.assert_array_equal, again, found)


def step_config(**options):
    c = config_of(**options)
    c.loss = {"infonce": {}}
    c.model.head = "splade"
    c.optim.schedule = "constant"
    return c


def test_gradients_of_factors_are_those_of_the_kernel_through_the_product():
    spec = spec_of()
    _, params = adapted(spec, paths="qkv|up/kernel", alpha=6.0)
    params = trained(params)
    c = step_config(paths="qkv|up/kernel", alpha=6.0)
    step = train_step.make_step(c, 10, spec)
    state = train_step.init_state(step, params)
    _, found = jax.jit(step.examined)(state, None, tiny.ranked_batch(IDS))
    c.adapt = {}
    whole = train_step.make_step(c, 10, spec)
    state = train_step.init_state(whole, low_rank.merged(params))
    _, wanted = jax.jit(whole.examined)(state, None, tiny.ranked_batch(IDS))
    layers = lambda tree: tree["encoder"]["layers"]  # noqa: E731
    scale = 6.0 / 2
    grad, own = layers(wanted)["up"]["kernel"], layers(params)["up"]["kernel"]
    b = scale * np.swapaxes(own["a"], 1, 2) @ grad
    a = scale * grad @ np.swapaxes(own["b"], 1, 2)
    of = layers(found)["up"]["kernel"]
    assert not np.any(of["base"]) and not np.any(of["scale"])
    close(of["a"], a, 1e-5)
    close(of["b"], b, 1e-5)
    grad = layers(wanted)["attention"]["qkv"]["kernel"]
    own = layers(params)["attention"]["qkv"]["kernel"]
    of = layers(found)["attention"]["qkv"]["kernel"]
    close(of["a"], scale * np.einsum("linO,lnrO->linr", grad, own["b"]), 1e-5)
    close(of["b"], scale * np.einsum("lInr,lIno->lnro", own["a"], grad), 1e-5)


def test_only_factors_and_what_is_named_are_trained_and_have_moments():
    spec = spec_of()
    plain, params = adapted(spec)
    c = step_config(also="^head/")
    step = train_step.make_step(c, 10, spec)
    state = train_step.init_state(step, params)
    moments = sorted(x.shape for x in jax.tree.leaves(state["opt_state"]) if x.ndim)
    wanted = [
        leaf.shape
        for name, leaf in trees.named(params).items()
        if low_rank.is_factor(name) or name.startswith("head/")
    ]
    assert moments == sorted(2 * wanted)
    sizes = sum(np.prod(shape, dtype=int) for shape in wanted)
    assert step.trained == sizes
    run = jax.jit(step)
    for _ in range(2):
        state, metrics = run(state, None, tiny.ranked_batch(IDS))
    assert metrics["grad_norm"] > 0
    for name, leaf in trees.named(state["params"]).items():
        before = trees.named(params)[name]
        moved = (np.asarray(leaf) != before).any()
        assert moved == (low_rank.is_factor(name) or name.startswith("head/")), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"paths": "norm/scale"}, "matches no matrix. The model has:\n.*qkv/kernel"),
        ({"rank": 12}, "of 12 x 12 numbers, of which a product of rank 12 saves none"),
        ({"also": "heads/"}, "also = 'heads/' matches no parameter"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, said):
    with pytest.raises(InputError) as error:
        adapters.shapes(config_of(**options), spec_of())
    assert re.search(f"^config.adapt.lora.*{said}", str(error.value), re.DOTALL)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.adapt.update(lora={"paths": "("}), "adapt.lora.paths is '('; not"),
        (lambda c: c.adapt.update(lora={"paths": ""}), "name kernels to adapt"),
        (lambda c: c.adapt.update(lora={"rank": 0}), "adapt.lora.rank is 0"),
        (lambda c: c.adapt.update(lora={"r": 4}), "adapt.lora.r is no option"),
        (lambda c: c.adapt.update(dora={}), "dora"),
        (lambda c: c.optim.update(freeze="word"), "optim.freeze = 'word' would have"),
    ],
)
def test_settings_without_sense_are_refused(change, said):
    c = get_default()
    c.data.source, c.tokenizer, c.steps = "debian", "embedded:english", 1
    c.model.head, c.loss = "splade", {"infonce": {}}
    c.adapt = {"lora": {}}
    change(c)
    with pytest.raises(InputError, match=re.escape(said)):
        check_run.validate(c)
