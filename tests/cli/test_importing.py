"""What JAX does not take of its environment ends each command with one line."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        ("lsrjax.main", "JAX_ENABLE_X64"),
        ("lsrjax.encode", "JAX_NUM_CPU_DEVICES"),
        ("lsrjax.convert", "JAX_DEFAULT_MATMUL_PRECISION"),
    ],
)
def test_a_variable_of_jax_that_means_nothing_is_named(command, variable):
    environ = os.environ | {variable: "maybe", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        env=environ,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: JAX does not take the environment variable")
    assert f"{variable}, 'maybe'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
