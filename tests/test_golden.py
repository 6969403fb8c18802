"""The training step gives the numbers of the reference MILCO implementation.

What the numbers are, and how they were recorded: `tests/golden/README.md`.
"""

import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default
from lsrjax.convert import layouts
from lsrjax.convert.names import export_state, import_state
from lsrjax.convert.read.huggingface import load_checkpoint, read_config
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training.train_step import init_state, make_step

FOLDER = pathlib.Path(__file__).parent / "golden"
MILCO = layouts.milco("xlm-roberta")
DISTILL = [
    "distill_flops_echo",
    pytest.param("distill_flops_pivot", marks=pytest.mark.slow),
    pytest.param("distill_l1_echo", marks=pytest.mark.slow),
    pytest.param("distill_l1_pivot", marks=pytest.mark.slow),
]
CASES = ["align", *DISTILL]
STEPS = 20


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "golden.npz") as file:
        return dict(file)


def config_of(case):
    c = get_default()
    c.model.head.pool_mask = "multiply"
    c.model.head.lexecho = case.endswith("echo")
    c.init.encoder, c.init.head = str(FOLDER / "xlmr"), str(FOLDER / "bert")
    c.data.source.files = "recorded"
    if case == "align":
        c.loss = {"alignment": {}}
        c.teacher.model = str(FOLDER / "bert")
    else:
        c.loss = {"kl": {}}
        c.data.group_size = 4
        c.regularizer.name = case.split("_")[1]
        c.regularizer.query, c.regularizer.document = 1e-2, 1e-3
    c.optim.lr, c.optim.schedule = 1e-3, "constant"
    c.optim.no_decay = ""
    c.steps = STEPS
    validate(c)
    return c


def spec_of(case):
    pivot = read_config(str(FOLDER / "bert"))
    return RetrieverSpec.of(
        head="milco",
        encoder=read_config(str(FOLDER / "xlmr")),
        pool_mask="multiply",
        lexecho=case.endswith("echo"),
        pivot_vocab_size=pivot.vocab_size,
        pivot_hidden_size=pivot.hidden_size,
        pivot_layer_norm_eps=pivot.layer_norm_eps,
    )


def initial_params(case):
    state = load_file(FOLDER / "init.safetensors")
    if not case.endswith("echo"):
        for name in ("echo.weight", "echo.bias", "scale"):
            del state[name]
    return jax.tree.map(jnp.asarray, import_state(state, MILCO))


def keep_gradient():
    """Passes the gradient on and leaves a copy in the optimizer's state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )


@functools.cache
def setup(case):
    """The compiled step, the state before it and the teacher's parameters."""
    teacher = teacher_params = None
    if case == "align":
        found = load_checkpoint(str(FOLDER / "bert"))
        teacher_params = jax.tree.map(jnp.asarray, found.params)
        teacher = RetrieverSpec.of(head="splade", encoder=found.config, tied=True)
    step = make_step(config_of(case), STEPS, spec_of(case), teacher)
    step = dataclasses.replace(
        step, optimizer=optax.chain(keep_gradient(), step.optimizer)
    )
    jitted = jax.jit(step)
    return jitted, init_state(step, initial_params(case)), teacher_params


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef, params, text):
    return retriever.apply(graphdef, params, text)


def text(golden, key):
    return {
        "ids": golden[f"{key}/input_ids"].astype(np.int32),
        "mask": golden[f"{key}/attention_mask"].astype(np.int32),
    }


def laid_out(**texts):
    """Texts in their order, each name a part of its own with its recorded padding."""
    parts, place, first = [], {}, 0
    for name, part in texts.items():
        place[name] = first + np.arange(len(part["ids"]), dtype=np.int32)
        query = np.full(len(part["ids"]), name == "query")
        parts.append(part | {"query": query, "number": place[name]})
        first += len(part["ids"])
    return {"parts": tuple(parts), "place": place}


def batch(golden, key):
    if key.startswith("align"):
        return {
            # The translations, then the English texts.
            "student": laid_out(
                translation=text(golden, f"{key}/m"),
                english=text(golden, f"{key}/me"),
            ),
            "teacher": laid_out(teacher=text(golden, f"{key}/en")),
            "targets": {},
        }
    return {
        # The queries, then the documents.
        "student": laid_out(
            query=text(golden, f"{key}/q"), document=text(golden, f"{key}/p")
        ),
        "targets": {"scores": golden[f"{key}/teacher_scores"]},
    }


def recorded(golden, prefix):
    """The recorded values whose key starts with `prefix`, by the rest of the key."""
    return {
        key.removeprefix(prefix): value
        for key, value in golden.items()
        if key.startswith(prefix)
    }


@functools.cache
def first_step(case):
    """Gradient under the reference's names, and the metrics."""
    with np.load(FOLDER / "golden.npz") as golden:
        step, state, teacher_params = setup(case)
        after, metrics = step(state, teacher_params, batch(dict(golden), case))
    return export_state(after["opt_state"][0], MILCO), jax.device_get(metrics)


def test_alignment_loss_and_lengths(golden):
    _, metrics = first_step("align")
    expected = recorded(golden, "align/out/")
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    lengths = metrics["active_translation_pivot"], metrics["active_english_pivot"]
    assert np.mean(lengths) == pytest.approx(expected["student_length"], rel=1e-6)
    step = setup("align")[0].__wrapped__
    teacher_text = text(golden, "align/en")
    teacher = encode(step.teacher, setup("align")[2], teacher_text)["terms"]
    assert teacher.active_terms().mean() == expected["teacher_length"]


@pytest.mark.parametrize("case", DISTILL)
def test_distillation_loss_its_parts_and_lengths(golden, case):
    _, metrics = first_step(case)
    kind = case.split("_")[1]
    penalty = metrics[f"{kind}_query_pivot"] + metrics[f"{kind}_document_pivot"]
    found = {
        "loss": metrics["loss"],
        "l1_loss": penalty,
        "distillation_loss": metrics["kl"],
        "q_length": metrics["active_query_pivot"],
        "d_length": metrics["active_document_pivot"],
    }
    expected = recorded(golden, f"{case}/out/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("case", DISTILL)
@pytest.mark.parametrize("kind", ["q", "p"])
def test_representations(golden, case, kind):
    graphdef, _ = retriever.split(spec_of(case))
    given = text(golden, f"{case}/{kind}")
    views = jax.device_get(encode(graphdef, initial_params(case), given))
    expected = recorded(golden, f"{case}/rep_{kind}/")
    pivot = views["pivot"].weights_BV
    np.testing.assert_allclose(pivot, expected["pivot"], atol=2e-6, rtol=0)
    assert ("source" in views) == ("source_ids" in expected)
    if "source" not in views:
        return
    ids, weights = views["source"].ids_BK, views["source"].weights_BK
    np.testing.assert_array_equal(ids, expected["source_ids"])
    np.testing.assert_allclose(weights, expected["source_weights"], atol=1e-5, rtol=0)
    dual = np.zeros(expected["dual_view"].shape, np.float32)
    dual[:, : pivot.shape[1]] = pivot
    np.add.at(dual, (np.arange(len(ids))[:, None], pivot.shape[1] + ids), weights)
    np.testing.assert_allclose(dual, expected["dual_view"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_every_parameter(golden, case):
    """Errors relative to the largest entry of the parameter's own gradient."""
    found, _ = first_step(case)
    expected = recorded(golden, f"{case}/grad/")
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        scale = np.abs(want).max()
        if name.endswith(".attention.self.key.bias"):
            # The same vector added to every key shifts all logits of a text alike,
            # which softmax ignores: the gradient is 0, and what both sides hold is
            # rounding. It is measured against the gradient of the key's weights.
            scale = np.abs(expected[name.replace("bias", "weight")]).max()
            assert np.abs(want).max() < 1e-5 * scale
        error = np.abs(found[name] - want)
        assert error.max() < 1e-4 * scale, name
        # The large entries one by one.
        large = np.abs(want) > 0.01 * scale
        assert (error[large] < 1e-3 * np.abs(want[large])).all(), name
        # Parameters that took no part: rows of tokens and positions not seen.
        assert not found[name][want == 0].any(), name


def run(golden, case, params):
    """The curve of loss and gradient norm from a start, [STEPS, 2]."""
    step, state, teacher_params = setup(case)
    state = state | {"params": params}
    curve = []
    for i in range(STEPS):
        state, metrics = step(state, teacher_params, batch(golden, f"{case}_traj/{i}"))
        curve.append((metrics["loss"], metrics["grad_norm"]))
    return np.array(jax.device_get(curve))


def perturbed(params, size, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: p * (1 + size * rng.standard_normal(p.shape).astype(np.float32)),
        params,
    )


@pytest.mark.parametrize(
    "case", [pytest.param("align", marks=pytest.mark.slow), *DISTILL]
)
def test_twenty_steps_of_adamw(golden, case):
    """Loss and gradient norm of every step, relative to the recorded ones.

    Where two tokens reach a term's maximum within rounding, rounding decides which of
    them gets the gradient: the loss is continuous there, its gradient jumps by a few
    tenths of a percent. So the loss is that of our own run, and where its gradient norm
    leaves the recorded curve, a start that differs by 1e-6 or 1e-5 must follow the
    whole curve.
    """
    expected = recorded(golden, f"{case}_traj/")
    expected = np.stack([expected["loss"], expected["grad_norm"]], axis=1)
    params = initial_params(case)
    errors = np.abs(run(golden, case, params) / expected - 1)
    assert errors[:, 0].max() < 1e-3
    for size, seed in itertools.product((1e-6, 1e-5), range(16)):
        if errors.max() < 1e-3:
            break
        curve = run(golden, case, perturbed(params, size, seed))
        errors = np.abs(curve / expected - 1)
    assert errors.max() < 1e-3
