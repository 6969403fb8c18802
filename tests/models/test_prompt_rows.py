"""Rows beside a word table: they stand in its place, and are all that is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from programs import tiny

from lsrjax.config.fields import get_default
from lsrjax.distributed import sharding, trees
from lsrjax.models import adapters, low_rank, prompt_rows, retriever
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.ops.vocab_logsumexp import SILENT
from lsrjax.training import train_step

# Two of queries and one of documents, in the middle of the vocabulary.
PROMPT = (17, 18, 19)
IDS = np.array([[3, 17, 18, 4, 5, 2], [5, 6, 0, 0, 0, 0], [7, 19, 3, 3, 0, 0]])
TEXT = {"ids": jnp.array(IDS), "mask": jnp.array(IDS != 0, int)}
WORD = "encoder/embeddings/word"
# With factors beside the rows, and one without; most families among the slow ones.
FAMILIES = [
    *(("bert", False), ("bert", True)),
    *(
        pytest.param(name, True, marks=pytest.mark.slow)
        for name in BACKBONES
        if name != "bert"
    ),
]


def spec_of(family="bert", towers="shared", **changes):
    changes = {"num_layers": 2, **changes}
    return RetrieverSpec.of(
        "splade",
        tiny.encoder(family, **changes),
        tied=BACKBONES[family].head_bias,
        towers=towers,
        prompt_ids=PROMPT,
    )


def config_of(**others):
    c = get_default()
    c.adapt = {"prompt": {"queries": 2, "documents": 1}, **others}
    c.loss = {"infonce": {}}
    c.model.head = "splade"
    c.optim.schedule = "constant"
    return c


def params_of(spec):
    """Random ones, silent at the tokens of prompt vectors."""
    rng = np.random.default_rng(0)

    def leaf(path, leaf):
        value = rng.normal(0, 0.3, leaf.shape).astype("f4")
        if trees.path_name(path).endswith("mlm/bias"):
            value[list(PROMPT)] = SILENT
        if trees.path_name(path).endswith("mlm/decoder"):
            value[list(PROMPT)] = 0
        return value

    return jax.tree_util.tree_map_with_path(leaf, retriever.split(spec)[1])


def adapted(spec, params, config):
    found = adapters.added(adapters.of(config.adapt), spec, params, seed=5)
    return jax.tree.map(np.asarray, found)


def with_rows(params, rows):
    """The parameters with other rows beside the table."""

    def changed(path, leaf):
        return rows if prompt_rows.is_rows(trees.path_name(path)) else leaf

    return jax.tree_util.tree_map_with_path(changed, params)


def merged(params):
    return prompt_rows.merged(low_rank.merged(params))


def close(found, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(("family", "lora"), FAMILIES)
def test_a_model_with_rows_is_that_of_the_table_with_them(family, lora):
    spec = spec_of(family)
    plain, graphdef = params_of(spec), retriever.split(spec)[0]
    # Factors of the same table, in either order.
    others = {"lora": {"rank": 2, "paths": "word|qkv"}} if lora else {}
    config = config_of(**others)
    params = adapted(spec, plain, config)
    again = dict(reversed(list(config.adapt.items())))
    config.adapt = again
    jax.tree.map(np.testing.assert_array_equal, adapted(spec, plain, config), params)
    jax.tree.map(np.testing.assert_array_equal, merged(params), plain)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, 12)).astype("f4")
    if lora:
        for parts in low_rank.factors(params).values():
            for part in "ab":
                parts[part][...] = rng.normal(0, 0.1, parts[part].shape)
    params = with_rows(params, rows)
    wanted = merged(params)
    assert trees.shapes(wanted) == trees.shapes(plain)
    table = wanted["encoder"]["embeddings"]["word"]["embedding"]
    np.testing.assert_array_equal(table[17:20], rows)
    base = low_rank.merged(params)["encoder"]["embeddings"]["word"]["embedding"]
    others = np.delete(np.arange(23), PROMPT)
    np.testing.assert_array_equal(table[others], base[others])

    @functools.partial(jax.jit, static_argnums=1)
    def views(params, remat="none"):
        return retriever.apply(graphdef, params, TEXT, remat=remat)

    found = views(wanted)
    assert np.abs(views(plain)["terms"].raw_BV - found["terms"].raw_BV).any()
    for remat in ("none", "layer"):
        close(views(params, remat), found, 1e-5)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_gradients_of_rows_are_those_of_the_table(family):
    spec = spec_of(family)
    params, c = adapted(spec, params_of(spec), config_of()), config_of()
    step = train_step.make_step(c, 10, spec)
    state = train_step.init_state(step, params)
    _, found = jax.jit(step.examined)(state, None, tiny.ranked_batch(IDS))
    c.adapt = {}
    whole = train_step.make_step(c, 10, spec)
    state = train_step.init_state(whole, merged(params))
    _, wanted = jax.jit(whole.examined)(state, None, tiny.ranked_batch(IDS))
    rows = trees.named(wanted)[f"{WORD}/embedding"][17:20]
    found = trees.named(found)
    assert np.abs(rows).min(axis=1).all()
    close(found.pop(f"{WORD}/prompt"), rows, 1e-5)
    assert not any(map(np.any, found.values()))


@pytest.mark.parametrize("lora", [False, True])
def test_only_rows_are_trained_and_have_moments(lora):
    spec = spec_of()
    c = config_of(**({"lora": {"rank": 2}} if lora else {}))
    params = adapted(spec, params_of(spec), c)
    step = train_step.make_step(c, 10, spec)
    state = train_step.init_state(step, params)
    names = {
        name
        for name in trees.named(params)
        if name == f"{WORD}/prompt" or low_rank.is_factor(name)
    }
    assert (len(names) > 1) == lora
    sizes = sorted(trees.named(params)[name].shape for name in names)
    moments = [x.shape for x in jax.tree.leaves(state["opt_state"]) if x.ndim]
    assert sorted(moments) == sorted(2 * sizes)
    run = jax.jit(step)
    for _ in range(2):
        state, _ = run(state, None, tiny.ranked_batch(IDS))
    moved = {
        name
        for name, leaf in trees.named(state["params"]).items()
        if (np.asarray(leaf) != trees.named(params)[name]).any()
    }
    assert moved == names


def test_each_tower_has_the_rows_of_its_texts():
    spec, c = spec_of(towers="separate"), config_of()
    plain = params_of(spec)
    found = trees.named(adapted(spec, plain, c))
    both = trees.named(plain)
    for tower, first, count in (("", 19, 1), ("query_tower/", 17, 2)):
        table = both[f"{tower}{WORD}/embedding"]
        rows = found[f"{tower}{WORD}/prompt"]
        np.testing.assert_array_equal(rows, table[first : first + count])
        assert found[f"{tower}{WORD}/prompt_start"] == first
    c.adapt["prompt"] = {"queries": 3, "documents": 0}
    names = trees.shapes(adapters.shapes(c, spec))
    assert f"{WORD}/prompt" not in names
    assert names[f"query_tower/{WORD}/prompt"] == (3, 12)


def test_rows_are_on_every_device():
    spec = spec_of(vocab_size=24)  # which divides
    mesh = AbstractMesh((1, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params = adapters.shapes(config_of(), spec)
    specs = sharding.layout_of(spec, params, mesh, False).specs
    assert specs[f"{WORD}/embedding"] == P("model", None)
    assert specs[f"{WORD}/prompt"] == P(None, None)
    assert specs[f"{WORD}/prompt_start"] == P()
