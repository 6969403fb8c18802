"""Trackers that fail or hang, of a run that is resumed or rolled back."""

import dataclasses
import json
import threading
import time
import types

import pytest

from lsrjax.options import Chosen, Options
from lsrjax.trackers import in_thread
from lsrjax.trackers.in_thread import InThread
from lsrjax.trackers.tracker import RunFacts


class Recorder:
    """A tracker that keeps what it is given; `fails` and `hangs` name calls."""

    def __init__(self, fails=(), hangs=()):
        self.calls, self.fails, self.hangs = [], fails, hangs
        self.go_on = threading.Event()

    def __call__(self, options, facts):
        self.made_of = facts
        self.id = facts.id or "new"
        self.called("open")
        return self

    def called(self, *call):
        self.calls.append(call)
        if call[0] in self.fails:
            raise ConnectionError(f"no {call[0]}")
        if call[0] in self.hangs:
            self.go_on.wait()

    def stage(self, name, after):
        self.called("stage", name, after)

    def log(self, stage, step, numbers):
        self.called("log", stage, step, numbers)

    def texts(self, stage, step, rows):
        self.called("texts", stage, step, rows)

    def close(self, failed):
        self.called("close", failed)

    @property
    def steps(self):
        return [call[2] for call in self.calls if call[0] == "log"]


@dataclasses.dataclass
class Run:
    """What a run does with a tracker."""

    folder: object
    notes: list = dataclasses.field(default_factory=list)

    def begin(self, recorder):
        facts = RunFacts("run", self.folder, {"optim.lr": 0.1})
        chosen = Chosen("fake", recorder, Options())
        return InThread(chosen, facts, self.notes.append)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def soon():
    return time.monotonic() + 10


def train(tracker, first, last):
    tracker.stage("align", first)
    for step in range(first + 1, last + 1):
        tracker.log("align", step, {"loss": 1 / step})


def test_a_tracker_receives_everything_in_order(run):
    recorder = Recorder()
    tracker = run.begin(recorder)
    train(tracker, 0, 2)
    tracker.log("align", 2, {"dev_R": 0.5}, "dev")
    tracker.texts("align", 2, [(2, "query")])
    tracker.close(False, soon())
    assert recorder.calls == [
        ("open",),
        ("stage", "align", 0),
        ("log", "align", 1, {"loss": 1.0}),
        ("log", "align", 2, {"loss": 0.5}),
        ("log", "align", 2, {"dev_R": 0.5}),
        ("texts", "align", 2, [(2, "query")]),
        ("close", False),
    ]
    assert recorder.made_of.parameters == {"optim.lr": 0.1} and not run.notes


def test_a_resumed_run_is_the_same_run_and_sends_no_step_twice(run):
    tracker = run.begin(Recorder())
    train(tracker, 0, 5)
    tracker.log("align", 4, {"dev_R": 0.5}, "dev")
    tracker.close(True, soon())
    again = Recorder()
    tracker = run.begin(again)
    train(tracker, 3, 7)  # from a checkpoint of step 3
    tracker.log("align", 4, {"dev_R": 0.5}, "dev")
    tracker.log("align", 7, {"dev_R": 0.5}, "dev")
    tracker.close(False, soon())
    assert again.made_of.id == "new" and ("stage", "align", 5) in again.calls
    assert again.steps == [6, 7, 7]


def test_steps_after_a_roll_back_are_sent_since_they_are_others(run):
    recorder = Recorder()
    tracker = run.begin(recorder)
    train(tracker, 0, 5)
    train(tracker, 2, 6)
    tracker.close(False, soon())
    assert recorder.steps == [1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert ("stage", "align", 2) in recorder.calls


def test_a_killed_run_is_known_by_its_id_before_it_logs(run):
    tracker = run.begin(Recorder())
    path = run.folder / "trackers" / "fake.json"
    while not path.is_file():
        time.sleep(0.01)
    assert json.loads(path.read_text())["id"] == "new"
    tracker.close(True, soon())


def test_a_damaged_file_is_reported_and_begins_a_new_run(run):
    (run.folder / "trackers").mkdir()
    (run.folder / "trackers" / "fake.json").write_text('{"id": "old", "sent": 7}')
    recorder = Recorder()
    run.begin(recorder).close(False, soon())
    assert recorder.made_of.id == "" and "fake.json is damaged" in run.notes[0]


def test_a_tracker_that_cannot_be_opened_is_left_out(run):
    recorder = Recorder(fails=("open",))
    tracker = run.begin(recorder)
    train(tracker, 0, 5)
    tracker.close(False, soon())
    assert recorder.calls == [("open",)]
    (note,) = [note for note in run.notes if "cannot be opened" in note]
    assert "ConnectionError: no open" in note


@pytest.mark.parametrize("call", ["stage", "log", "close"])
def test_a_tracker_that_raises_is_reported_once_and_called_again(run, call):
    recorder = Recorder(fails=(call,))
    tracker = run.begin(recorder)
    train(tracker, 0, 3)
    tracker.close(False, soon())
    assert recorder.steps == [1, 2, 3] and recorder.calls[-1] == ("close", False)
    lost = {"stage": 1, "log": 3, "close": 1}[call]
    assert run.notes == [
        f"The tracker fake failed (ConnectionError: no {call}).",
        f"The tracker fake lacks {lost} entries.",
    ]


@pytest.mark.parametrize("call", ["open", "stage", "log", "close"])
def test_a_tracker_that_hangs_costs_no_time_and_is_left(run, call, monkeypatch):
    monkeypatch.setattr(in_thread, "_WAITING", 10)
    recorder = Recorder(hangs=(call,))
    started = time.monotonic()
    tracker = run.begin(recorder)
    train(tracker, 0, 30 if call != "close" else 3)
    tracker.close(False, time.monotonic() + 0.2)
    assert time.monotonic() - started < 5
    assert "does not answer, and is left" in run.notes[-1]
    if call != "close":
        behind = [note for note in run.notes if "does not keep up" in note]
        assert len(behind) == 1
    if call == "open":  # nothing is taken from the queue
        assert "the last 31 entries" in run.notes[-1]
    recorder.go_on.set()
    tracker._thread.join(10)


def test_a_slow_tracker_lacks_what_did_not_fit(run, monkeypatch):
    monkeypatch.setattr(in_thread, "_WAITING", 4)
    recorder = Recorder(hangs=("stage",))
    tracker = run.begin(recorder)
    tracker.stage("align", 0)
    while len(recorder.calls) < 2:
        time.sleep(0.01)
    for step in range(1, 11):
        tracker.log("align", step, {"loss": 1.0})
    recorder.go_on.set()
    tracker.close(False, soon())
    assert recorder.steps == [1, 2, 3, 4]
    assert run.notes[-1] == "The tracker fake lacks 6 entries."


def test_trackers_of_your_own_have_a_file_each(run):
    for name in ("mine.Tracker", "other.Tracker"):
        chosen = types.SimpleNamespace(name=name, entry=Recorder(), options=None)
        InThread(chosen, RunFacts("run", run.folder, {}), print).close(False, soon())
    names = sorted(path.name for path in (run.folder / "trackers").iterdir())
    assert names == ["mine.Tracker.json", "other.Tracker.json"]
