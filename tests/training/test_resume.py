"""A run killed with SIGKILL and started again ends as the run that was left alone."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parents[1] / "programs" / "kill_runs.py"


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_as_the_one_left_alone(tmp_path):
    program = [sys.executable, str(PROGRAM), "chosen", str(tmp_path / "runs")]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["kills"] == 5 and not found["lost"] and not found["differ"]
