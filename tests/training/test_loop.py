"""What the loop does when: logging, evaluating, saving, stopping."""

import itertools
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.config.fields import get_default
from lsrjax.distributed.activity import Preempted, Progress
from lsrjax.errors import TrainingFailed
from lsrjax.training import loop as loops
from lsrjax.training.batch_contents import Contents
from lsrjax.training.step_numbers import Clock


class Feed:
    """Batches, and what the loop asks to be mined on the way."""

    def __init__(self, batches, every=0, ask=lambda step: None):
        self._batches, self._every, self._ask = iter(batches), every, ask
        self.mined = []

    def __next__(self):
        return next(self._batches)

    def due(self, step):
        return bool(self._every and step and step % self._every == 0)

    def mine(self, params, step):
        self.mined.append((step, float(params)))
        self._ask(step)


class Evaluation:
    """Of a loop, whose method may be replaced."""

    def __init__(self, loop):
        self.loop = loop

    def __call__(self, params):
        return self.loop.evaluate(params)

    def texts(self, params):
        return [("a text",)]


class Loop:
    """Runs `train` with a step that sums its batches, and writes down what it does."""

    def __init__(self, **fields):
        self.config = get_default()
        self.config.log.every = 3
        self.config.checkpoint.every = 4
        self.config.dev.every = 5
        self.config.batch_size = 2
        self.config.update_from_flattened_dict(fields)
        self.logged, self.events, self.drawn = [], [], []
        self.kept = []
        self.progress = Progress()

    def batches(self, start):
        for i in itertools.count(start):
            self.drawn.append(i)
            # Two texts, one of 1 to 4 tokens and one of a single token.
            mask = np.arange(4) <= np.array([[i % 4], [0]])
            part = {"ids": np.ones((2, 4), np.int32), "mask": mask}
            yield {"student": {"parts": (part,)}, "x": np.float32(i)}

    @staticmethod
    def step(state, teacher_params, batch):
        step = state["step"] + 1
        loss = jnp.where(batch["x"] == 1000, jnp.nan, 100 * step + batch["x"])
        tokens = batch["student"]["parts"][0]["mask"].sum()
        state = {"step": step, "params": state["params"] + batch["x"]}
        return state, {"loss": loss, "tokens": tokens}

    def log(self, step, numbers):
        self.logged.append((step, numbers))
        self.events.append(("log", step, *(n for n in numbers if n.startswith("dev"))))

    def save(self, state, dev, last):
        assert last == (int(state["step"]) == self.ends)
        self.events.append(("save", int(state["step"]), dev))

    def check(self, *args):
        """Sees what is compiled."""

    def ask(self):
        """Asks to leave, as a signal does."""
        self.progress.stop_at(self.progress.freeze())

    def evaluate(self, params):
        return {"R": float(params)}

    def texts(self, step, rows):
        assert rows == [("a text",)]

    def note(self, text):
        self.events.append(("note", text))

    def run(
        self,
        total,
        start=0,
        evaluate=True,
        batches=None,
        owes=False,
        best=None,
        ends=0,
        feed=None,
    ):
        self.ends = ends or total
        stage = types.SimpleNamespace(
            config=self.config,
            contents=Contents.of(self.config),
            total_steps=total,
            step=self.step,
            teacher_params=None,
            student=types.SimpleNamespace(
                spec=types.SimpleNamespace(views={}, roles_apart=False)
            ),
            evaluate=Evaluation(self) if evaluate else None,
            check=self.check,
        )
        states = types.SimpleNamespace(
            owes=owes,
            best=lambda: best,
            save=self.save,
            keep=lambda state: self.kept.append(int(state["step"])),
            poll=lambda: None,
        )
        return loops.train(
            stage,
            types.SimpleNamespace(progress=self.progress, tracker=self),
            states,
            {"step": jnp.int32(start), "params": jnp.float32(sum(range(start)))},
            feed or Feed(batches or self.batches(start)),
        )


def test_the_loop_logs_evaluates_and_saves_when_it_should():
    loop = Loop()
    state = loop.run(11)
    assert int(state["step"]) == 11 and float(state["params"]) == sum(range(11))
    dev = {step: {"R": float(sum(range(step)))} for step in (5, 10, 11)}
    assert loop.events == [
        ("log", 3),
        ("save", 4, None),
        ("log", 5, "dev_R"),
        ("save", 5, dev[5]),
        ("log", 6),
        ("save", 8, None),
        ("log", 9),
        ("log", 10, "dev_R"),
        ("save", 10, dev[10]),
        ("log", 11),
        ("log", 11, "dev_R"),
        ("save", 11, dev[11]),
    ]
    assert loop.drawn == list(range(11))  # and no batch beyond the last step


def test_the_loop_mines_behind_a_checkpoint_and_goes_on():
    loop = Loop()
    feed = Feed(loop.batches(0), every=4)
    state = loop.run(8, feed=feed)
    # Not behind the last step, of which nothing is trained.
    assert feed.mined == [(4, float(sum(range(4))))]
    assert float(state["params"]) == sum(range(8))


@pytest.mark.parametrize(("step", "kept"), [(3, [3]), (4, [])])
def test_a_loop_that_is_asked_to_leave_while_it_mines_keeps_its_state(step, kept):
    loop = Loop()

    def leave(at):
        if at == step:
            raise Preempted

    with pytest.raises(Preempted):
        # Of step 4 there is a checkpoint.
        loop.run(11, feed=Feed(loop.batches(0), every=step, ask=leave))
    assert loop.kept == kept
    assert loop.drawn == list(range(step))


def test_logged_numbers_are_those_of_the_step_itself():
    loop = Loop(**{"log.every": 2})
    loop.run(7)
    losses = {step: n["loss"] for step, n in loop.logged if "loss" in n}
    assert losses == {step: 100 * step + (step - 1) for step in (2, 4, 6, 7)}
    dev = {step: n["dev_R"] for step, n in loop.logged if "dev_R" in n}
    assert dev == {5: 10.0, 7: 21.0}


class Dying(Loop):
    """Its vectors are all empty from step 4 on."""

    @staticmethod
    def step(state, teacher_params, batch):
        state, metrics = Loop.step(state, teacher_params, batch)
        empty = jnp.float32(state["step"] >= 4)
        return state, metrics | {"empty_query": empty, "lambda_query": 8 * empty}


def test_empty_vectors_are_said_once_at_the_next_entry_of_the_log():
    loop = Dying(**{"regularizer.query": 8.0})
    loop.run(9, evaluate=False)
    (note,) = (event[1] for event in loop.events if event[0] == "note")
    assert note.startswith("  Step 6: every query vector is empty")
    assert "config.regularizer.query = 8:" in note
    with pytest.raises(TrainingFailed, match="Step 53: every query .* for 50 steps"):
        Dying().run(60, evaluate=False)


def test_a_loop_goes_on_from_a_state():
    whole, rest = Loop(), Loop()
    expected = whole.run(11)
    found = rest.run(11, start=6)
    assert found == expected
    assert rest.events == [e for e in whole.events if e[1] > 6]
    assert rest.drawn == list(range(6, 11))


class Falling(Loop):
    """Its metric is best at step 10, and as good again at 15."""

    def evaluate(self, params):
        step = int((1 + (1 + 8 * float(params)) ** 0.5) / 2)
        return {"nDCG@10": 0.5 if step in (10, 15) else 1 / (5 + step)}


def test_evaluations_below_the_best_one_end_the_stage():
    whole = Falling(**{"dev.patience": 2})
    state = whole.run(40, ends=25)
    assert int(state["step"]) == 25 and whole.drawn[-1] == 24
    saved = [event[1] for event in whole.events if event[0] == "save"]
    assert saved[-3:] == [20, 24, 25]
    (note,) = (event[1] for event in whole.events if event[0] == "note")
    assert "Stopped at step 25" in note and "step 15" in note
    # Resumed anywhere, it stops at the same step: also from that one itself.
    for start in (12, 20, 21):
        best = (0.5, 15 if start > 15 else 10)
        again = Falling(**{"dev.patience": 2})
        assert int(again.run(40, start=start, best=best, ends=25)["step"]) == 25
    done = Falling(**{"dev.patience": 2})
    assert int(done.run(40, start=25, best=(0.5, 15), ends=25)["step"]) == 25
    assert not done.drawn and [event[0] for event in done.events] == ["note"]
    without = Falling()
    assert int(without.run(40)["step"]) == 40


def asked_at(loop, step, batches=None):
    """The loop's batches; when it draws that of a step, it is asked to leave."""
    for i, batch in enumerate(batches or loop.batches(0), start=1):
        if i == step:
            loop.ask()
        yield batch


@pytest.mark.parametrize("step", [2, 3, 6, 7, 11])
def test_asked_to_leave_the_loop_keeps_what_it_has_and_goes_on_from_there(step):
    whole, first, rest = Loop(), Loop(), Loop()
    expected = whole.run(11)
    with pytest.raises(Preempted):
        first.run(11, batches=asked_at(first, step))
    saved = [e[1] for e in first.events if e[0] == "save"]
    # Steps 5 and 10 are saved already when the next batch is drawn.
    owes = step - 1 not in saved
    assert first.kept == [step - 1] * owes
    assert first.progress.saved == step - 1
    assert [e[1] for e in first.events if e[0] == "log"][-1:] == [
        n for n in [e[1] for e in whole.events if e[0] == "log"] if n < step
    ][-1:]
    found = rest.run(11, start=step - 1, owes=owes)
    assert found == expected
    # Steps 4 and 10 were due and done; none is done twice but by a state that is owed.
    again = [e[1] for e in rest.events if e[0] == "save"]
    assert sorted({*saved, *again}) == [4, 5, 8, 10, 11]


def test_a_process_without_anything_new_keeps_nothing():
    loop = Loop()
    with pytest.raises(Preempted):
        loop.run(11, batches=asked_at(loop, 1))
    assert loop.kept == [] and loop.events == []


def test_an_evaluation_that_is_left_is_made_up_for():
    whole, first, rest = Loop(), Loop(), Loop()
    whole.run(11)

    def left(params):
        first.ask()
        raise Preempted

    first.evaluate = left
    with pytest.raises(Preempted):
        first.run(11)
    assert first.kept == [5]
    rest.run(11, start=5, owes=True)
    assert first.events + rest.events == whole.events


def test_a_bad_step_in_flight_is_not_kept():
    loop = Loop()
    batches = list(itertools.islice(Loop().batches(0), 9))
    batches[2]["x"] = np.float32(1000)
    with pytest.raises(TrainingFailed, match="Step 3"):
        loop.run(9, batches=asked_at(loop, 4, batches))
    assert loop.kept == []


def test_a_state_can_be_kept_while_another_shape_compiles():
    loop = Loop(**{"log.every": 1})
    loop.run(3, evaluate=False)
    wide = list(itertools.islice(loop.batches(0), 6))
    part = {"ids": np.ones((2, 8), np.int32), "mask": np.ones((2, 8), bool)}
    wide[3] = {"student": {"parts": (part,)}, "x": np.float32(3)}
    seen = []

    def check(*args):
        at = loop.progress
        seen.append((at.phase, at.unsaved, at.rest is not None))
        if at.unsaved:
            # What was in flight is known to be sound.
            assert [step for step, _ in loop.logged] == [1, 2, 3]
            at.rest()

    loop.logged.clear()
    loop.check = check
    loop.run(6, evaluate=False, batches=iter(wide))
    assert seen == [("compiling", False, True), ("compiling", True, True)]
    assert loop.kept == [3]


def test_a_finished_loop_does_nothing():
    loop = Loop()
    assert int(loop.run(4, start=4)["step"]) == 4
    assert not loop.events and not loop.drawn


def test_without_dev_data_nothing_is_evaluated():
    loop = Loop()
    loop.run(9, evaluate=False)
    assert [e for e in loop.events if e[0] == "save"] == [
        ("save", step, None) for step in (4, 8, 9)
    ]
    at_the_end = Loop(**{"dev.every": 0})
    at_the_end.run(9)
    assert [e for e in at_the_end.events if e[0] == "save"] == [
        ("save", 4, None),
        ("save", 8, None),
        ("save", 9, {"R": 36.0}),
    ]


def test_a_loss_that_is_no_number_stops_before_the_state_is_saved():
    loop = Loop(**{"checkpoint.every": 1})
    batches = list(itertools.islice(Loop().batches(0), 9))
    batches[2]["x"] = np.float32(1000)
    with pytest.raises(TrainingFailed, match=r"Step 3: loss not finite \(loss = nan"):
        loop.run(9, batches=iter(batches))
    assert [e[1] for e in loop.events if e[0] == "save"] == [1, 2]


def test_padding_is_the_share_of_all_batches_so_far():
    loop = Loop(**{"log.every": 3})
    loop.run(6)
    padding = [numbers["padding"] for _, numbers in loop.logged if "padding" in numbers]
    # Of 8 places, batches have 2, 3, 4, 5, 2 and 3 tokens.
    np.testing.assert_allclose(padding, [1 - 9 / 24, 1 - 19 / 48])


def test_rates_are_of_the_time_since_the_last_reading():
    clock = Clock(started=time.monotonic() - 4.0)
    clock.count(examples=8, tokens=30, slots=60)
    clock.count(examples=8, tokens=10, slots=20)
    rates = clock.read()
    np.testing.assert_allclose(rates["examples_per_s"], 4.0, rtol=0.05)
    np.testing.assert_allclose(rates["tokens_per_s"], 10.0, rtol=0.05)
    assert rates["padding"] == 0.5
    clock.started -= 2.0
    clock.count(examples=4, tokens=20, slots=20)
    rates = clock.read()
    np.testing.assert_allclose(rates["examples_per_s"], 2.0, rtol=0.05)
    np.testing.assert_allclose(rates["padding"], 0.4)
