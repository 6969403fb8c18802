"""Flags that XLA does not take are named before it ends the process."""

import pathlib
import subprocess
import sys

import pytest

from lsrjax.distributed import xla_flags
from lsrjax.errors import InputError

DEMO = pathlib.Path(__file__).parents[2] / "configs" / "demo.py"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--xla_bogus=1", "--xla_bogus=1"),
        ("--xla_cpu_max_isa=AVX2 --xla_one --xla_two=2", "--xla_one --xla_two=2"),
        ("--xla_force_host_platform_device_count=x", "value x for flag"),
        ("xla_dump_to=somewhere", "xla_dump_to=somewhere"),
    ],
)
def test_what_xla_does_not_take_is_named(flags, named):
    with pytest.raises(InputError, match="XLA_FLAGS") as error:
        xla_flags.check({"XLA_FLAGS": flags})
    _, _, said = str(error.value).partition(repr(flags))
    assert named in said and len(str(error.value)) < 500


@pytest.mark.parametrize("flags", ["", " ", "--xla_force_host_platform_device_count=8"])
def test_what_xla_takes_passes(flags):
    xla_flags.check({"XLA_FLAGS": flags})


def test_a_process_that_cannot_be_asked_says_nothing_of_flags(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    xla_flags.check({"XLA_FLAGS": "--xla_not_asked"})


def test_a_command_ends_with_one_line(tmp_path):
    environ = {"XLA_FLAGS": "--xla_bogus", "JAX_PLATFORMS": "cpu", "PATH": ""}
    environ["PYTHONPATH"] = str(DEMO.parents[1])
    command = ("-m", "lsrjax", "train", "--config", DEMO, "--workdir", tmp_path / "run")
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environ,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: ") and "--xla_bogus" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
