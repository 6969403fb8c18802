"""The step as a pure function of its arguments, and what the loop does when."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import tiny

from lsrjax.checkpoint import train_states
from lsrjax.config.fields import get_default
from lsrjax.convert.names import by_layer
from lsrjax.data.batching.length_shapes import Shape, cut
from lsrjax.distributed import sharding
from lsrjax.distributed.trees import path_name
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import train_step
from lsrjax.training.batch_contents import Contents, check_batch, slots_of

B, L, V = 5, 7, 31
WHOLE = Shape(((2 * B, L),))
FROZEN = "embeddings/(word|position)"


def step_of(idf=None, **changes):
    """The step of a tiny SPLADE with dropout, and a state before it."""
    config = get_default()
    config.loss = {"infonce": {}}
    config.model.head = "splade"
    config.model.dropout = 0.3
    config.regularizer.query = config.regularizer.document = 0.1
    config.optim.freeze = FROZEN
    config.optim.lr = 1e-2
    config.optim.schedule = "linear"
    config.update(changes)
    encoder = tiny.encoder(
        vocab_size=V, max_positions=L, hidden_dropout=0.3, attention_dropout=0.3
    )
    spec = RetrieverSpec.of("splade", encoder, tied=True)
    step = train_step.make_step(config, 10, spec, idf=idf)
    _, abstract = retriever.split(spec)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
        abstract,
    )
    return step, train_step.init_state(step, params)


def laid_out(rows, shape):
    # No two texts are the same to the loss, whatever their tokens.
    keys = np.arange(4 * B, dtype=np.int32).reshape(2 * B, 2)
    targets = {"query_key": keys[:B], "document_key": keys[B:, None]}
    texts = {"query": rows[:B], "document": rows[B:]}
    return {"student": cut(texts, shape, pad_id=0), "targets": targets}


@pytest.fixture(scope="module")
def texts():
    """Queries, and documents that are the same."""
    return 2 * np.random.default_rng(1).integers(1, V, (B, L)).tolist()


@pytest.fixture(scope="module")
def batch(texts):
    return laid_out(texts, WHOLE)


@pytest.fixture(scope="module")
def state():
    return step_of()[1]


@pytest.fixture(scope="module")
def jitted():
    return jax.jit(step_of()[0])


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_step_repeats_bit_for_bit_with_its_dropout(jitted, state, batch):
    assert_equal(jitted(state, None, batch), jitted(state, None, batch))


def test_dropout_is_drawn_anew_each_step(jitted, state, batch):
    losses = {
        float(jitted(state | {"step": jnp.int32(step)}, None, batch)[1]["loss"])
        for step in range(4)
    }
    assert len(losses) == 4


def test_dropout_is_drawn_from_the_seed(jitted, state, batch):
    other = jax.jit(step_of(seed=1)[0])
    losses = [float(f(state, None, batch)[1]["loss"]) for f in (jitted, other)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_query_and_an_equal_document_are_dropped_out_differently(
    jitted, state, texts, batch
):
    metrics = jitted(state, None, batch)[1]
    assert texts[:B] == texts[B:]
    assert metrics["l1_query_terms"] != metrics["l1_document_terms"]


def test_frozen_parameters_stay_and_all_others_move(jitted, state, batch):
    after, metrics = jitted(state, None, batch)
    assert int(after["step"]) == 1 and metrics["lr"] == np.float32(1e-2)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (path_name(path), bool((a != b).any())),
        state["params"],
        after["params"],
    )
    by_name = dict(jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple)))
    stay = {name for name, changed in by_name.items() if not changed}
    assert stay == {
        "encoder/embeddings/word/embedding",
        "encoder/embeddings/position/embedding",
    }


def test_texts_of_an_example_are_those_of_the_loss():
    config = get_default()
    config.data.group_size = 3
    for name in ("infonce", "kl"):
        config.loss = {name: {}}
        assert Contents.of(config).texts == {"query": 1, "document": 3}
    config.loss, config.data.group_size = {"alignment": {}}, 1
    assert Contents.of(config).texts == {"translation": 1, "english": 1}


def keep_gradient():
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )


def gradient(rows, shape, **changes):
    """Metrics and gradient of a step with nothing frozen."""
    changes = {"optim": {"freeze": ""}} | changes
    step, state = step_of(**changes)
    step = dataclasses.replace(step, optimizer=keep_gradient())
    # Small ones round to a fifth of the tolerance, in any order of the sums.
    small = jax.tree.map(lambda leaf: leaf / 4, state["params"])
    state = train_step.init_state(step, small)
    batch = laid_out(rows, shape)
    jitted = jax.jit(step)
    after, metrics = jitted(state, None, batch)
    found = after["opt_state"]
    # Each layer's queries, keys and values have a scale of their own.
    found = found | {"encoder": by_layer(found["encoder"], "bert")}
    return jax.device_get((metrics, found))


@pytest.fixture(scope="module")
def uneven(texts):
    """Texts of 1 to L tokens, equal ones of different lengths."""
    return [row[: 1 + i % L] for i, row in enumerate(texts)]


@pytest.fixture(scope="module")
def in_one_piece(uneven):
    return gradient(uneven, WHOLE)


@pytest.mark.parametrize(
    ("shape", "memory"),
    [
        (WHOLE, {"encode_chunk": 3, "remat": "dots"}),
        (Shape(((3, 2), (4, 4), (3, L))), {"encode_chunk": 2, "remat": "layer"}),
    ],
    ids=["chunks", "parts and chunks"],
)
def test_how_the_work_is_cut_changes_no_step(uneven, in_one_piece, shape, memory):
    """With dropout."""
    metrics, found = gradient(uneven, shape, memory=memory)
    expected_metrics, expected = in_one_piece
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    # The gradient of the keys' bias is 0 but for rounding, hence a smallest scale.
    smallest = 0.01 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, want), have in zip(leaves, jax.tree.leaves(found), strict=True):
        tolerance = 1e-6 * max(smallest, np.abs(want).max())
        np.testing.assert_allclose(
            have, want, atol=tolerance, rtol=0, err_msg=path_name(path)
        )


def steered():
    """A step that steers, and a state before it."""
    regularizer = {"active_query": 4.0, "active_document": 1000.0, "active_gain": 0.1}
    return step_of(regularizer=regularizer)


@pytest.fixture(scope="module")
def steered_steps(batch):
    """The step's jitted function, and (state, metrics) before and after three steps."""
    step, state = steered()
    jitted = jax.jit(step)
    taken = [(state, None)]
    for _ in range(3):
        taken.append(jitted(taken[-1][0], None, batch))
    return jitted, taken


def test_lambdas_are_steered_towards_the_wanted_number_of_terms(steered_steps):
    _, ((before, _), (after, first), (_, second), _) = steered_steps
    assert jax.tree.map(float, before["controller"]) == {"query": 0, "document": 0}
    for field, wanted in (("query", 4), ("document", 1000)):
        terms = float(first[f"active_{field}_terms"])
        moved = 0.1 * np.clip(np.log(terms / wanted), -1, 1)
        assert float(after["controller"][field]) == pytest.approx(moved, rel=1e-5)
        assert float(first[f"lambda_{field}"]) == pytest.approx(0.1)
        expected = 0.1 * np.exp(moved)
        assert float(second[f"lambda_{field}"]) == pytest.approx(expected, rel=1e-5)
        ratio = second[f"l1_{field}_terms"] / second[f"lambda_{field}"]
        assert ratio > 0.1  # the penalty has the lambda that is logged


def test_a_steered_run_goes_on_from_its_checkpoint(steered_steps, batch, tmp_path):
    jitted, ((start, _), _, (state, _), (expected, metrics)) = steered_steps
    saved = train_states.Checkpoints(tmp_path, keep=1, metric="R")
    saved.save(state, None)
    saved.close()
    again = train_states.Checkpoints(tmp_path, keep=1, metric="R")
    restored = again.restore(start, again.latest_step())
    assert_equal(restored, state)
    assert float(restored["controller"]["document"]) != 0
    assert_equal(jitted(restored, None, batch), (expected, metrics))
    # Without a controller the checkpoint is of another kind of run.
    without = {key: value for key, value in start.items() if key != "controller"}
    with pytest.raises(InputError, match="controller/document"):
        again.restore(without, again.latest_step())
    again.close()


def test_the_controller_lies_on_every_device():
    step, state = steered()
    mesh = sharding.make_mesh(1, 1)
    layout = sharding.layout(state["params"], mesh, num_heads=2, fsdp=False)
    found = layout.shardings(state)["controller"]
    assert set(found) == {"query", "document"}
    assert all(where == sharding.replicated(mesh) for where in found.values())


def test_the_idf_of_terms_reaches_the_penalty(batch):
    changes = {"regularizer": {"name": "idf_flops"}}
    with pytest.raises(ValueError, match="idf_flops needs the idf"):
        step_of(**changes)
    found = {}
    for idf in (1.0, 2.0):
        step, state = step_of(idf={"terms": np.full(V, idf, np.float32)}, **changes)
        _, found[idf] = jax.jit(step)(state, None, batch)
    for text in ("query", "document"):
        name = f"idf_flops_{text}_terms"
        assert float(found[1.0][name]) == pytest.approx(4 * float(found[2.0][name]))


def test_tokens_of_all_parts_count(state, texts):
    rows = [row[: 1 + i % 3] for i, row in enumerate(texts)]
    batch = laid_out(rows, Shape(((6, 2), (4, 5))))
    assert slots_of(batch) == 6 * 2 + 4 * 5
    step = jax.jit(step_of()[0])
    assert step(state, None, batch)[1]["tokens"] == sum(map(len, rows)) == 19


def test_a_batch_has_to_divide_over_the_devices():
    config = get_default()
    for size, devices, advice in ((10, 4, "Take 8 or 12"), (3, 4, r"Take 4\.")):
        config.batch_size = size
        with pytest.raises(InputError, match=rf"{size}, .*the {devices} .*{advice}"):
            check_batch(config, devices)
        check_batch(config, 1)
        check_batch(config, size)


@pytest.mark.parametrize(
    ("steps", "epochs", "examples", "expected"),
    [(7, 0.0, 1000, 7), (0, 1.0, 101, 11), (0, 2.5, 100, 25), (0, 0.001, 100, 1)],
)
def test_steps_or_epochs(steps, epochs, examples, expected):
    config = get_default()
    config.steps, config.epochs, config.batch_size = steps, epochs, 10
    assert Contents.of(config).steps(examples) == expected


def test_a_count_is_neither_decayed_nor_given_moments():
    config = get_default()
    config.loss = {"reconstruction": {}}
    config.model.head = "csr"
    config.optim.weight_decay = 0.5
    encoder = tiny.encoder(vocab_size=V, max_positions=L)
    latents = {"latents": 53, "active_latents": 5, "revived_latents": 7}
    spec = RetrieverSpec.of(
        "csr", encoder, pooling="mean", dead_after=3, towers="separate", **latents
    )
    step = train_step.make_step(config, 10, spec)
    params = retriever.init_params(spec, 0)
    state = train_step.init_state(step, params)
    counts = [
        path_name(path)
        for path, count in jax.tree_util.tree_leaves_with_path(step.frozen)
        if count
    ]
    assert counts == [
        "head/autoencoder/idle",
        "query_tower/head/autoencoder/idle",
    ]
    moments = jax.tree_util.tree_leaves_with_path(state["opt_state"])
    assert not any("idle" in path_name(path) for path, _ in moments)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = step.optimizer.update(ones, state["opt_state"], ones)
    after = optax.apply_updates(ones, updates)
    np.testing.assert_array_equal(after["head"]["autoencoder"]["idle"], 1.0)
    assert (after["head"]["autoencoder"]["kernel"] != 1.0).all()
