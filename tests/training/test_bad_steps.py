"""Losses and gradients that are no numbers, and losses that jump: what is done then."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lsrjax import json_files
from lsrjax.checkpoint import saved_model
from lsrjax.config.fields import get_default
from lsrjax.data.batching import loader
from lsrjax.data.examples import Group
from lsrjax.errors import InputError
from lsrjax.training import bad_steps, postmortem, run, train_step
from lsrjax.training.left_out import left_out

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "survived.py"


def config_of(**fields):
    c = get_default().numbers
    for field, value in fields.items():
        c[field] = value
    return c


def steps_of(config, losses, norms=None):
    """The states after steps of these losses that each add 1 to the parameters."""
    state = {"step": jnp.int32(0), "params": {"w": jnp.zeros(2)}, "opt_state": ()}
    state |= bad_steps.init(config)
    found = []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        params = jax.tree.map(lambda w: w + 1.0, state["params"])
        after = {"step": state["step"] + 1, "params": params, "opt_state": ()}
        state, seen = bad_steps.guarded(
            config, state, after, jnp.float32(loss), jnp.float32(norm)
        )
        found.append((int(state["step"]), float(state["params"]["w"][0]), seen))
    return found


def test_by_default_a_step_is_what_it_was():
    after = {"step": jnp.int32(1)}
    assert bad_steps.init(config_of()) == {}
    assert bad_steps.guarded(config_of(), {}, after, jnp.nan, jnp.nan) == (after, {})


def test_a_skipped_step_changes_nothing_but_the_step():
    nan, inf = np.nan, np.inf
    found = steps_of(
        config_of(policy="skip"), [3, nan, 3, inf, 3, 3], [1, 1, 1, 1, nan, 1]
    )
    assert [step for step, _, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [w for _, w, _ in found] == [1, 1, 2, 2, 2, 3]
    seen = [[int(s[k]) for k in ("bad", "skipped", "in_a_row")] for *_, s in found]
    assert seen == [[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 2, 1], [1, 3, 2], [0, 3, 0]]


def test_a_jump_is_told_from_the_median_of_sound_steps():
    usual = np.random.default_rng(0).uniform(1, 3, bad_steps.WINDOW)
    # Not before the window is full; and a jump does not move what it is compared with.
    losses = [*usual[:5], 50.0, *usual[5:-1], 50.0, 2.0, 50.0]
    found = steps_of(config_of(policy="skip", spike=10.0), losses)
    bad = [i for i, (*_, seen) in enumerate(found) if seen["bad"]]
    assert bad == [bad_steps.WINDOW, bad_steps.WINDOW + 2]
    ratio = found[bad_steps.WINDOW][2]["spike"]
    before = losses[: bad_steps.WINDOW]
    np.testing.assert_allclose(ratio, 50.0 / np.median(before), rtol=1e-6)


def test_what_is_judged_bad_says_so():
    c = get_default()
    c.numbers.spike = 5.0
    assert bad_steps.judge(3, {"loss": 1.0, "spike": 4.9}, c) == ""
    assert "6 times the median" in bad_steps.judge(3, {"loss": 1.0, "spike": 6.0}, c)
    assert "Step 3: loss not finite" in bad_steps.judge(3, {"loss": np.nan}, c)
    c.numbers.policy = "skip"
    c.numbers.most = 2
    skipped = {"loss": np.nan, "bad": 1.0, "skipped": 9.0, "in_a_row": 2.0}
    assert bad_steps.judge(3, skipped, c) == ""
    assert "number 3 in a row" in bad_steps.judge(3, skipped | {"in_a_row": 3.0}, c)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"batches": 3}', '{"batches": [1.5]}']
)
def test_a_damaged_list_of_batches_left_out_is_named(tmp_path, damage):
    (tmp_path / "left_out.json").write_text(damage)
    with pytest.raises(InputError, match=r"left_out\.json is damaged"):
        left_out(tmp_path)


def test_batches_left_out_shift_those_behind_them():
    taken = [loader.batch_of(step, [5, 2, 6]) for step in range(6)]
    assert taken == [0, 1, 3, 4, 7, 8]


def test_statistics_of_tensors():
    tree = {"a": {"b": jnp.array([1.0, -3.0, jnp.nan, jnp.inf])}, "c": jnp.zeros(2)}
    found = jax.tree.map(float, postmortem.statistics(tree))
    assert found == {
        "a/b": {"max_abs": 3.0, "mean": -1.0, "not_finite": 2.0},
        "c": {"max_abs": 0.0, "mean": 0.0, "not_finite": 0.0},
    }


def test_an_example_with_scores_is_told():
    group = Group("a:1", {"en": "x" * 200}, [{"en": "y"}], [], np.float32([2, np.nan]))
    assert postmortem._as_json(postmortem._beginnings(group)) == {
        "id": "a:1",
        "query": {"en": "x" * 100},
        "positives": [{"en": "y"}],
        "negatives": [],
        "scores": [2.0, "nan"],
    }


POISONED = 5  # the batch


@pytest.fixture
def poisoned(monkeypatch):
    """One batch whose gradient is no number, whatever the parameters."""
    make, gradient = loader.Batches.__getitem__, train_step.Step._gradient

    def made(self, index):
        batch = make(self, index)
        size = len(next(iter(batch["targets"].values())))
        batch["targets"]["poison"] = np.full(size, index == POISONED, np.float32)
        return batch

    def poison(self, state, teacher_params, batch):
        (loss, aux), grads = gradient(self, state, teacher_params, batch)
        bad = jnp.where(batch["targets"]["poison"].any(), jnp.nan, 1.0)
        return (loss * bad, aux), jax.tree.map(lambda g: g * bad, grads)

    monkeypatch.setattr(loader.Batches, "__getitem__", made)
    monkeypatch.setattr(train_step.Step, "_gradient", poison)


def run_with(workdir, policy):
    c = runpy.run_path(str(CONFIG))["get_config"]()
    c.dev.source, c.dev.queries, c.dev.every = "", 300, 0
    c.numbers.policy = policy
    run.run(c, workdir, Console(quiet=True))


def metrics(workdir):
    lines = (workdir / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_told(workdir):
    told = json.loads((workdir / "train" / "postmortem" / "6.json").read_text())
    assert told["step"] == 6 and told["batch"] == POISONED
    assert len(told["examples"]) == 8
    assert all(
        one["example"] >= 0 and one["id"] and one["query"] for one in told["examples"]
    )
    assert told["numbers"]["loss"] == "nan" and told["loss"]["loss"] == "nan"
    assert all(one["not_finite"] > 0 for one in told["gradients"].values())
    assert all(one["not_finite"] == 0 for one in told["parameters"].values())
    return told


@pytest.mark.slow
def test_a_bad_batch_stops_the_run_and_is_told(poisoned, tmp_path):
    with pytest.raises(bad_steps.BadNumbers, match="Step 6: .*not finite"):
        run_with(tmp_path, "stop")
    assert assert_told(tmp_path)["run_again_at_step"] == 4
    assert (tmp_path / "train" / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_a_bad_batch_is_skipped_and_counted(poisoned, tmp_path):
    run_with(tmp_path, "skip")
    assert_told(tmp_path)
    found = metrics(tmp_path)
    assert [m["step"] for m in found] == list(range(1, 13))
    assert [m["skipped"] for m in found] == [0] * 5 + [1] * 7
    assert ["loss" in m for m in found] == [True] * 5 + [False] + [True] * 6


@pytest.mark.slow
def test_going_back_gives_what_a_run_without_the_batch_does(poisoned, tmp_path):
    run_with(tmp_path / "back", "roll_back")
    assert assert_told(tmp_path / "back")["run_again_at_step"] == 4
    assert left_out(tmp_path / "back" / "train") == [POISONED]
    without = tmp_path / "without" / "train"
    without.mkdir(parents=True)
    json_files.write_json(without / "left_out.json", {"batches": [POISONED]})
    run_with(tmp_path / "without", "roll_back")
    assert not (without / "postmortem").exists()
    models = [
        saved_model.load_model(tmp_path / w / "train") for w in ("back", "without")
    ]
    jax.tree.map(np.testing.assert_array_equal, *(model.params for model in models))
    for a, b in zip(
        *map(metrics, (tmp_path / "back", tmp_path / "without")), strict=True
    ):
        assert (a["step"], a["loss"], a["grad_norm"]) == (
            b["step"],
            b["loss"],
            b["grad_norm"],
        )
