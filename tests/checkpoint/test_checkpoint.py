"""What is saved comes back as it was, and only that."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import tiny

from lsrjax import json_files
from lsrjax.checkpoint import names_on_disk, saved_model, train_states
from lsrjax.config.fields import get_default
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import optimizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = RetrieverSpec.of(
    head="splade",
    encoder=tiny.encoder(vocab_size=307, hidden_size=8, max_positions=13),
    tied=True,
    special_ids=(0, 2, 3),
)


@pytest.fixture(scope="module")
def params():
    """Random numbers in the shapes of the spec's parameters."""
    _, abstract = retriever.split(SPEC)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), abstract
    )


def state_of(params, step, optimizer):
    """A train state whose every number differs from step to step."""
    opt_state = optimizer.init(params)
    state = {"step": jnp.int32(0), "params": params, "opt_state": opt_state}
    return jax.tree.map(lambda x: (x + step * (1 + x)).astype(x.dtype), state)


def abstract(state):
    return jax.eval_shape(lambda: state)


def folders(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def small(step):
    """The state of a training step's own optimizer, with a frozen parameter."""
    params = {"layers": {0: {"kernel": jnp.ones((2, 3))}}, "frozen": jnp.ones(3)}
    config = get_default().optim
    config.freeze = "frozen"
    frozen = optimizer.frozen(config.freeze, params)
    return state_of(params, step, optimizer.make_optimizer(config, 9, frozen))


@pytest.fixture
def opened():
    """Opens checkpoints and closes them after the test."""
    all_opened = []

    def open_(folder, keep=2):
        all_opened.append(train_states.Checkpoints(folder, keep=keep, metric="R@5"))
        return all_opened[-1]

    yield open_
    for checkpoints in all_opened:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    """A stage's folder with one checkpoint, and the state in it."""
    folder = tmp_path_factory.mktemp("run") / "stage"
    saved_model.write_model_files(folder, SPEC, GOLDEN / "bert", GOLDEN / "xlmr")
    checkpoints = train_states.Checkpoints(folder, keep=1, metric="R@5")
    state = state_of(params, 3, optax.adam(1e-3))
    checkpoints.save(state, None)
    checkpoints.close()
    return folder, state


def assert_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_bit_for_bit(saved, opened):
    folder, state = saved
    checkpoints = opened(folder)
    assert checkpoints.latest_step() == 3
    restored = checkpoints.restore(abstract(state), 3)
    assert_equal(restored, state)
    assert restored["step"].dtype == jnp.int32


def test_a_state_may_be_given_away_while_it_is_written(tmp_path, opened):
    checkpoints = opened(tmp_path)
    state = small(1)
    wanted = jax.tree.map(np.array, state)
    checkpoints.save(state, None)
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(state)
    checkpoints.close()
    assert_equal(opened(tmp_path).restore(abstract(small(1)), 1), wanted)


def test_the_last_ones_and_the_best_are_kept(tmp_path, opened):
    checkpoints = opened(tmp_path, keep=2)
    for step, value in {1: 0.2, 2: 0.7, 3: None, 4: 0.5, 5: None, 6: 0.1}.items():
        dev = None if value is None else {"R@5": value, "other": -value}
        checkpoints.save(small(step), dev)
    checkpoints.close()
    assert folders(tmp_path) == {"2", "5", "6"}
    again = opened(tmp_path, keep=2)
    assert again.latest_step() == 6
    assert_equal(again.restore(abstract(small(0)), 2), small(2))
    again.save(small(7), None)
    again.close()
    assert folders(tmp_path) == {"2", "6", "7"}  # the best is known from before


def test_another_architecture_is_refused_with_the_differences(saved, opened):
    folder, state = saved
    wanted = abstract(state)
    wanted["params"]["head"]["mlm"]["bias"] = jax.ShapeDtypeStruct((31,), jnp.float32)
    norm = wanted["params"]["encoder"]["embeddings"]["norm"]
    norm["gain"] = norm.pop("scale")
    with pytest.raises(InputError, match="another architecture") as error:
        opened(folder).restore(wanted, 3)
    message = str(error.value)
    assert "params/head/mlm/bias: checkpoint (307,), config (31,)" in message
    where = "params/encoder/embeddings/norm"
    assert f"{where}/gain: checkpoint has none, config (8,)" in message
    assert f"{where}/scale: checkpoint (8,), config has none" in message
    assert len(message.splitlines()) == 5  # what agrees is not listed
    assert "--workdir" in message


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path, opened):
    checkpoints = opened(tmp_path)
    checkpoints.save(small(1), None)
    checkpoints.close()
    # Written under a name of its own, and renamed at the end.
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-7"
    (unfinished / "default").mkdir(parents=True)
    (unfinished / "default" / "x").write_text("half")
    again = opened(tmp_path)
    assert again.latest_step() == 1
    again.save(small(2), None)
    again.close()
    assert folders(tmp_path) == {"1", "2"}


def test_a_model_is_read_without_its_optimizer(saved, params):
    folder, state = saved
    for reference in (folder, str(folder.parent)):  # the run has this one stage
        model = saved_model.load_model(reference)
        assert model.spec == SPEC and model.name == str(folder)
        assert_equal(model.params, state["params"])
        leaves = jax.tree.leaves(model.params)
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
        assert (model.tokenizer / "tokenizer.json").is_file()
        assert (model.pivot_tokenizer / "tokenizer.json").is_file()
        assert saved_model.holds_stages(reference)


def test_a_finished_stage_stands_for_the_checkpoint_that_it_names(
    tmp_path, params, opened
):
    saved_model.write_model_files(tmp_path, SPEC, GOLDEN / "bert", None)
    states = {step: state_of(params, step, optax.sgd(1.0)) for step in (1, 2)}
    checkpoints = opened(tmp_path)
    for step, state in states.items():
        checkpoints.save(state, {"R@5": 0.5 / step})
    checkpoints.close()
    assert checkpoints.best() == (0.5, 1)
    for done, step in (None, 2), ({"steps": 2}, 2), ({"steps": 2, "use": 1}, 1):
        if done:
            (tmp_path / names_on_disk.DONE_FILE).write_text(json.dumps(done))
        model = saved_model.load_model(tmp_path)
        assert_equal(model.params, states[step]["params"])
        assert model.dev == {"R@5": 0.5 / step}
    assert_equal(saved_model.load_model(tmp_path, step=2).params, states[2]["params"])
    for use, message in (3, "no checkpoint of step 3"), ("x", "damaged|use"):
        done = {"steps": 2, "use": use}
        (tmp_path / names_on_disk.DONE_FILE).write_text(json.dumps(done))
        with pytest.raises(InputError, match=message):
            saved_model.load_model(tmp_path)


def test_a_folder_without_a_finished_checkpoint_says_so(tmp_path):
    saved_model.write_model_files(tmp_path, SPEC, GOLDEN / "bert", None)
    assert not (tmp_path / names_on_disk.PIVOT_TOKENIZER).exists()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"no checkpoint was finished there\. Train"):
        saved_model.load_model(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before  # reading creates nothing


def test_a_folder_of_none_or_several_stages_is_no_model(tmp_path):
    assert not saved_model.holds_stages(tmp_path)
    assert not saved_model.holds_stages(tmp_path / "absent")
    with pytest.raises(InputError, match=r"stages found: none"):
        saved_model.load_model(tmp_path)
    for name in ("one", "two"):
        saved_model.write_model_files(tmp_path / name, SPEC, GOLDEN / "bert", None)
    assert saved_model.holds_stages(tmp_path)
    assert saved_model.holds_stages(tmp_path / "two")
    with pytest.raises(InputError, match=r"stages found: one, two.*<workdir>/<stage>"):
        saved_model.load_model(tmp_path)


def test_model_files_of_another_architecture_are_refused(tmp_path):
    for _ in range(2):  # the same again is no offence
        saved_model.write_model_files(tmp_path, SPEC, GOLDEN / "bert", None)
    found = json.loads((tmp_path / names_on_disk.MODEL_FILE).read_text())
    assert RetrieverSpec.from_dict(found) == SPEC
    encoder = dataclasses.replace(SPEC.encoder, num_heads=4)
    other = SPEC.replaced(encoder=encoder, pool_mask="multiply")
    with pytest.raises(InputError) as error:
        saved_model.write_model_files(tmp_path, other, GOLDEN / "bert", None)
    assert "  encoder.num_heads: folder 2, config 4" in str(error.value)
    said = "  options.pool_mask: folder 'exclude', config 'multiply'"
    assert said in str(error.value)
    assert json.loads((tmp_path / names_on_disk.MODEL_FILE).read_text()) == found


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x.json"
    json_files.write_json(path, {"a": "ü"})
    with pytest.raises(TypeError):
        json_files.write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü"}
