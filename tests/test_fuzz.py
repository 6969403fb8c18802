"""Spoiled configs, data and models: a message or sound numbers, and nothing else."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from programs import launch

FUZZ = pathlib.Path(__file__).parent / "programs" / "fuzz.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"), [("configs", 300), ("data", 300), ("models", 300)]
)
def test_no_traceback_no_hang_nothing_that_is_not_finite(kind, count):
    done = subprocess.run(
        [sys.executable, str(FUZZ), kind, str(count)],
        env={**os.environ, "XLA_FLAGS": launch.QUICK},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    counts = json.loads(done.stdout.splitlines()[-1])[kind]
    # Not all was refused before it was looked at, and not all was sound.
    assert counts["taken"] > count / 50 and counts["refused"] > count / 5
