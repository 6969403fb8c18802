"""A run killed with SIGKILL and started again ends as the run that was left alone."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lsrjax.checkpoint import saved_model

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "tiny_demo.py"
PROGRAM = pathlib.Path(__file__).parents[1] / "programs" / "kill_runs.py"
STAGES = ("teacher", "align", "distill")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def start(workdir, cache, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", "lsrjax.main", "--config", str(CONFIG)]
        + ["--workdir", str(workdir), *flags],
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_logged(workdir, stage):
    path = workdir / stage / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


# When to kill: one condition after the other, each in a process of its own. Between
# them lie training, a stage's preparation, and the evaluation.
KILL_POINTS = {
    "before the teacher's first checkpoint": lambda w: steps_logged(w, "teacher") >= 2,
    "in the teacher": lambda w: steps_logged(w, "teacher") >= 6,
    "while align starts": lambda w: (w / "align" / "model.json").is_file(),
    "while negatives are mined": lambda w: (w / "distill" / "model.json").is_file(),
    "while evaluating": lambda w: (w / "distill" / "done.json").is_file(),
}


def kill_when(process, condition, workdir):
    deadline = time.monotonic() + 300
    while process.poll() is None and not condition(workdir):
        assert time.monotonic() < deadline, "the run never came to the kill point"
        time.sleep(0.01)
    finished = process.poll() is not None
    if not finished:
        process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert not finished, f"the run ended before the kill point:\n{output}"


@pytest.mark.slow
def test_killed_run_ends_bit_for_bit_as_the_one_left_alone(tmp_path, cache):
    alone = start(tmp_path / "alone", cache)
    output = alone.communicate(timeout=600)[0]
    assert alone.returncode == 0, output

    killed = tmp_path / "killed"
    for condition in KILL_POINTS.values():
        kill_when(start(killed, cache), condition, killed)
    again = start(killed, cache)
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output

    for stage in STAGES:
        expected = saved_model.load_model(tmp_path / "alone" / stage).params
        found = saved_model.load_model(killed / stage).params
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(expected),
            jax.tree.leaves(found),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b, err_msg=f"{stage} {path}")
        for line_a, line_b in zip(
            (tmp_path / "alone" / stage / "metrics.jsonl").read_text().splitlines(),
            (killed / stage / "metrics.jsonl").read_text().splitlines(),
            strict=True,
        ):
            a, b = json.loads(line_a), json.loads(line_b)
            for name in ("step", "loss", "grad_norm", "dev_nDCG@10"):
                assert a.get(name) == b.get(name)
    results = [(tmp_path / w / "results.json").read_text() for w in ("alone", "killed")]
    assert results[0] == results[1]

    finished = start(killed, cache)
    output = finished.communicate(timeout=120)[0]
    assert finished.returncode == 0
    assert "is finished" in output and "bm25" in output


@pytest.mark.slow
def test_runs_killed_at_random_end_bit_for_bit_as_the_one_left_alone(tmp_path):
    program = [sys.executable, str(PROGRAM), "4", str(tmp_path / "runs")]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["kills"] == 4 and not found["lost"] and not found["differ"]
