"""A signal saves the run and ends it with a code that says so, in whatever phase."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from programs import launch

from lsrjax.distributed import preemption, processes
from lsrjax.distributed.activity import COMPILING, STEPPING, Progress

PROGRAM = pathlib.Path(__file__).parents[1] / "programs" / "signalled.py"
CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "survived.py"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Left(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def guard(monkeypatch):
    """A guard that does not watch, over a progress of its own; `left` is set by it."""
    progress = Progress()
    made = preemption.Guard(progress)
    made.left = threading.Event()

    def leave():
        made.left.set()
        raise Left

    monkeypatch.setattr(preemption, "_exit", leave)
    monkeypatch.setattr(preemption, "_POLL", 0.001)
    made.progress = progress
    return made


def act(guard):
    """Lets the guard act in a thread, as a signal does."""

    def run():
        try:
            guard._act()
        except Left:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_process_with_nothing_to_lose_leaves_once_all_is_written(guard):
    events = []
    guard.progress.pending = lambda: events.append("written")
    act(guard).join(10)
    assert events == ["written"] and guard.left.is_set()


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (20, "while training: all is saved, up to step 20 of stage train"),
        (0, "nothing is lost"),
    ],
)
def test_the_last_line_names_the_step_to_go_on_from(guard, monkeypatch, saved, words):
    said = []
    monkeypatch.setattr(preemption, "say", said.append)
    guard.progress.stage, guard.progress.step = "train", 21
    guard.progress.saved = saved
    with pytest.raises(Left):
        guard.leave()
    assert words in said[0] and "21" not in said[0]


def test_the_last_line_names_the_phase_in_which_the_signal_came(guard, monkeypatch):
    said = []
    monkeypatch.setattr(preemption, "say", said.append)
    with guard.progress.held, guard.progress.at("stepping"):
        act(guard)
        assert guard.progress.asked.wait(10)
    assert guard.left.wait(10)
    assert "while stepping: nothing is lost" in said[-1]


def test_a_save_that_is_under_way_is_finished_first(guard):
    with guard.progress.held:
        act(guard)
        assert guard.progress.asked.wait(10)
        assert not guard.left.wait(0.1)
    assert guard.left.wait(10)


def test_while_the_loop_trains_it_stops_at_its_next_point(guard):
    progress = guard.progress
    assert not progress.point() and not progress.point()
    progress.unsaved = True
    act(guard)
    assert progress.asked.wait(10)
    assert progress.point() and progress.points == 2
    assert not guard.left.wait(0.05)
    progress.unsaved = False  # the loop has kept the state
    assert guard.left.wait(10)


@pytest.mark.parametrize("phase", [COMPILING, STEPPING])
def test_a_state_at_rest_is_saved_by_the_thread(guard, phase):
    progress, saved = guard.progress, []

    def save():
        saved.append(progress.phase)
        progress.unsaved = False

    progress.unsaved = True
    if phase == COMPILING:
        with progress.at(COMPILING), progress.at_rest(save):
            act(guard)
            assert guard.left.wait(10)
        assert saved == [COMPILING]
    else:
        act(guard)
        assert not guard.left.wait(0.05) and not saved


def test_processes_stop_behind_the_point_that_the_foremost_has_passed(
    guard, monkeypatch
):
    progress = guard.progress
    guard._several = True
    told = []

    def exchange(topic, value, seconds):
        told.append(value)
        # Another one has passed five, and has a state to lose.
        return [value, 2 * 5 + 1]

    monkeypatch.setattr(processes, "exchange", exchange)
    monkeypatch.setattr(processes, "meet", lambda name, seconds: True)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    for _ in range(3):
        assert not progress.point()
    progress.unsaved = True
    act(guard)
    assert progress.asked.wait(10)
    assert [progress.point() for _ in range(4)] == [False, False, True, True]
    assert told == [2 * 3 + 1]
    progress.unsaved = False
    assert guard.left.wait(10)


def test_a_process_that_is_behind_does_not_leave_the_others_alone(guard, monkeypatch):
    progress = guard.progress
    guard._several = True
    monkeypatch.setattr(processes, "exchange", lambda *args: [0, 2 * 1 + 1])
    monkeypatch.setattr(processes, "meet", lambda name, seconds: True)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    act(guard)
    assert progress.asked.wait(10)
    assert not guard.left.wait(0.1)
    assert not progress.point()
    assert guard.left.wait(10)


def test_a_second_signal_counts_after_a_while_only(guard, monkeypatch):
    acted = []
    monkeypatch.setattr(guard, "_act", lambda: acted.append(1))
    guard._ask("SIGTERM")
    guard._ask("SIGTERM")
    assert not guard.left.is_set()
    guard._asked_at -= 2 * preemption._PATIENCE
    with pytest.raises(Left):
        guard._ask("SIGTERM")
    time.sleep(0.05)
    assert acted == [1]


def test_a_second_ctrl_c_leaves_at_once(guard, monkeypatch):
    monkeypatch.setattr(guard, "_act", lambda: None)
    guard._ask("SIGINT")
    guard._ask("SIGINT")  # the same key, passed on by a wrapper
    assert not guard.left.is_set()
    guard._asked_at -= 2 * preemption._SAME_KEY
    guard._ask("SIGTERM")
    assert not guard.left.is_set()
    with pytest.raises(Left):
        guard._ask("SIGINT")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_run_that_is_to_outlive_its_terminal_does(guard, ignored):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        guard.take_signals()
        assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) == ignored
        assert callable(signal.getsignal(signal.SIGINT))
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


# The thread sees a signal while the main thread is in a call that Python cannot break.
_DEAF = """
import os, signal, sys, threading
from lsrjax.distributed import activity, preemption
preemption.Guard(activity.Progress()).start()
held = threading.Lock()
held.acquire()
print("ready", flush=True)
lock = __import__("ctypes").CDLL(None)
lock.pause  # returns at a signal
while True:
    lock.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_process_whose_main_thread_is_deaf(number):
    process = subprocess.Popen(
        [sys.executable, "-c", _DEAF], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert signal.Signals(number).name.encode() in said


@pytest.mark.slow
def test_a_run_signalled_in_every_phase_ends_as_the_one_left_alone(tmp_path):
    said = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), "1"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert said.returncode == 0, said.stderr
    lines = [line for line in said.stdout.splitlines() if line.startswith("{")]
    *signalled, end = map(json.loads, lines)
    assert len(signalled) == 8
    for one in signalled:
        assert one["code"] == 75, one
        assert one["seconds"] < 30, one
    assert end == {"rounds": 1, "same": 1}


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_processes_leave_together_where_one_is_told_to(tmp_path, told):
    workdir = tmp_path / "run"
    flags = ["-m", "lsrjax.main", "--config", str(CONFIG), "--workdir", str(workdir)]
    flags += ["--config.steps=400", "--config.checkpoint.every=1000"]
    flags += ["--config.dev.every=0"]
    started = launch.start(flags, tmp_path, processes=2, devices=1)
    metrics = workdir / "train" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 300
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < 5:
            assert time.monotonic() < deadline, started[0].said()
            assert started[0].process.poll() is None, started[0].said()
            time.sleep(0.05)
        started[told].process.send_signal(signal.SIGUSR1)
        codes = [one.ends(60) for one in started]
        said = [one.said() for one in started]
        assert codes == [75] * 2, said
    finally:
        launch.kill(started)
    kept = [int(p.name) for p in (workdir / "train" / "kept" / "checkpoints").iterdir()]
    logged = len(metrics.read_text().splitlines())
    # Every step of the state that was kept is logged, and none beyond it.
    assert kept == [logged]
    assert f"SIGUSR1 of process {told}" in said[0] and "exit code 75" in said[1]
