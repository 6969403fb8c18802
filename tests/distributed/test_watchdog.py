"""Who is named where a run has stopped coming forward, and that it ends."""

import signal
import time

import pytest
from programs import launch
from test_preemption import CONFIG

from lsrjax.distributed import watchdog
from lsrjax.distributed.activity import COMPILING, DATA, EVALUATING, PREPARING, STEPPING
from lsrjax.distributed.watchdog import Pulse, judge


def pulse(process, step=7, phase=STEPPING, idle=0.0, silent=0.0):
    return Pulse(process, 3, "align", step, phase, idle, silent)


def test_all_is_well_while_steps_come():
    assert judge([pulse(0, idle=9.0), pulse(1, idle=2.0, silent=3.0)], 10) == ""


@pytest.mark.parametrize("phase", [COMPILING, PREPARING])
def test_what_is_no_step_may_take_long(phase):
    assert judge([pulse(0, phase=phase, idle=1e5)], 10) == ""


def test_without_a_limit_nothing_is_judged():
    assert judge([pulse(0, idle=1e6), pulse(1, silent=1e6)], 0) == ""


def test_who_waits_for_data_is_named_and_not_who_waits_for_it():
    late = [pulse(0, idle=12), pulse(1, phase=DATA, idle=12), pulse(2, idle=12)]
    said = judge(late, 10)
    assert "process 1, at step 7 of stage align (waiting for data) for 12 s" in said
    assert "process 0" not in said and "process 2" not in said


def test_who_is_steps_behind_is_named():
    said = judge([pulse(0, step=9, idle=12), pulse(1, step=7, idle=12)], 10)
    assert "process 1, at step 7" in said and "process 0" not in said


def test_an_evaluation_that_stands_still_is_named():
    assert "process 0" in judge([pulse(0, phase=EVALUATING, idle=12)], 10)


def test_silence_is_named_rather_than_those_who_wait():
    # Silent for less than a lost process is, but the others' steps are late.
    said = judge([pulse(0, idle=11), pulse(1, silent=9)], 10)
    assert "process 1, at step 7" in said and "silent for 9 s" in said
    assert "process 0" not in said
    # A lost process, whatever its step may take.
    assert "process 1" in judge([pulse(0, idle=30), pulse(1, silent=41)], 1800)
    assert judge([pulse(0, idle=30), pulse(1, silent=30)], 1800) == ""


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named_with_its_step(tmp_path, stopped):
    seconds = 12
    workdir = tmp_path / "run"
    flags = ["-m", "lsrjax.main", "--config", str(CONFIG), "--workdir", str(workdir)]
    flags += ["--config.steps=100000", "--config.checkpoint.every=100000"]
    flags += ["--config.dev.every=0", f"--config.watchdog.seconds={seconds}"]
    started = launch.start(flags, tmp_path, processes=2, devices=1)
    metrics = workdir / "train" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 300
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < 5:
            assert time.monotonic() < deadline, started[0].said()
            assert started[0].process.poll() is None, started[0].said()
            time.sleep(0.05)
        started[stopped].process.send_signal(signal.SIGSTOP)
        other = started[1 - stopped]
        assert other.ends(seconds + 10) == 70, other.said()
        step = len(metrics.read_text().splitlines())
        said = other.said()
    finally:
        launch.kill(started)
    assert f"process {stopped}, at step" in said and "silent for" in said
    named = int(said.split(f"process {stopped}, at step ")[1].split()[0])
    # A pulse is up to a second or two old.
    assert 1 <= named <= step + 4
    stacks = workdir / watchdog.STACKS / f"rank-{1 - stopped}.txt"
    assert "most recent call first" in stacks.read_text()


@pytest.mark.slow
def test_a_process_alone_ends_with_its_stacks(tmp_path):
    program = (
        "import time, sys, pathlib\n"
        "from lsrjax.distributed import activity, watchdog\n"
        "at = activity.Progress()\n"
        "dog = watchdog.Watchdog(pathlib.Path(sys.argv[1]), 2.0, at).start()\n"
        "at.forward(7)\n"
        "def hang_here():\n"
        "    with at.at(activity.DATA):\n"
        "        time.sleep(600)\n"
        "hang_here()\n"
    )
    (one,) = launch.start(
        ["-c", program, str(tmp_path)], tmp_path, processes=1, devices=1
    )
    assert one.ends(60) == 70
    assert "process 0, at step 7 (waiting for data)" in one.said()
    assert "hang_here" in (tmp_path / watchdog.STACKS / "rank-0.txt").read_text()
