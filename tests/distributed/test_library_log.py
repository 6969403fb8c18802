"""What C++ writes to standard error, and what Python does."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import os, pathlib, sys, warnings
from lsrjax.distributed import library_log, safe_output
safe_output.harden()
log = library_log.LibraryLog()
os.write(2, b"I0000 a banner of XLA\\n")
print("an error", file=sys.stderr)
if {moves}:
    log.move(pathlib.Path({folder!r}))
os.write(2, b"W0000 a slow operation\\n")
safe_output.say("a signal")
warnings.warn("a warning")
{end}
os.write(2, b"after\\n")
print("an error after", file=sys.stderr)
"""


def run(folder, end, moves=True):
    program = _PROGRAM.format(folder=str(folder), end=end, moves=moves)
    environ = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True
    )


def test_libraries_write_to_a_file_and_python_to_standard_error(tmp_path):
    (tmp_path / "libraries.log").write_text("of an earlier start\n")
    done = run(tmp_path, "log.close()")
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[:2] == ["an error", "a signal"]
    assert "a warning" in said[2] and said[-2:] == ["after", "an error after"]
    assert (tmp_path / "libraries.log").read_text() == (
        "of an earlier start\nI0000 a banner of XLA\nW0000 a slow operation\n"
    )


@pytest.mark.parametrize("dropped", [False, True])
def test_what_no_file_has_taken_is_printed_in_the_end(tmp_path, dropped):
    done = run(tmp_path, f"log.close(silent={dropped})", moves=False)
    said = done.stderr.splitlines()
    assert said[0] == "an error" and said[-2:] == ["after", "an error after"]
    libraries = ["I0000 a banner of XLA", "W0000 a slow operation"]
    assert [line for line in said if line in libraries] == libraries * (not dropped)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", ["os.abort()", "raise RuntimeError('a failure')"])
def test_how_a_program_fails_is_seen(tmp_path, end):
    done = run(tmp_path, end)
    assert done.returncode != 0
    wanted = "Fatal Python error: Aborted" if "abort" in end else "a failure"
    assert wanted in done.stderr
    assert "a banner" in (tmp_path / "libraries.log").read_text()
