"""A run killed with SIGKILL and started again ends as the run that was left alone."""

import time

import pytest
from programs import kill_runs
from programs.kill_runs import start


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    kill_runs.to_its_end(workdir, cache)
    return workdir


def steps_logged(workdir, stage):
    path = workdir / stage / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


# When to kill: one condition after the other, each in a process of its own. Between
# them lie every stage's training, its preparation, and the evaluation.
KILL_POINTS = {
    "before the teacher's first checkpoint": lambda w: steps_logged(w, "teacher") >= 2,
    "in the teacher": lambda w: steps_logged(w, "teacher") >= 6,
    "while align starts": lambda w: (w / "align" / "model.json").is_file(),
    "in align": lambda w: steps_logged(w, "align") >= 5,
    "while negatives are mined": lambda w: (w / "distill" / "model.json").is_file(),
    "in distill": lambda w: steps_logged(w, "distill") >= 5,
    "while evaluating": lambda w: (w / "distill" / "done.json").is_file(),
}


def kill_when(process, condition, workdir):
    deadline = time.monotonic() + 300
    while process.poll() is None and not condition(workdir):
        assert time.monotonic() < deadline, "the run never came to the kill point"
        time.sleep(0.01)
    finished = process.poll() is not None
    if not finished:
        process.kill()
    output = process.communicate()[0]
    assert not finished, f"the run ended before the kill point:\n{output}"


@pytest.mark.slow
def test_killed_run_ends_bit_for_bit_as_the_one_left_alone(alone, tmp_path, cache):
    killed = tmp_path / "killed"
    for condition in KILL_POINTS.values():
        kill_when(start(killed, cache), condition, killed)
    kill_runs.to_its_end(killed, cache)
    assert not kill_runs.differences(killed, alone)
    output = kill_runs.to_its_end(killed, cache)
    assert "is finished" in output and "bm25" in output


@pytest.mark.slow
def test_runs_killed_at_random_end_bit_for_bit_as_the_one_left_alone(
    alone, tmp_path, cache
):
    found = kill_runs.campaign(tmp_path, alone, cache, kills=13, seed=0)
    assert found["kills"] == 13 and not found["differ"]
