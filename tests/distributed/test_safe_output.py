"""What becomes of standard output and error ends no run."""

import errno
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from lsrjax.distributed import safe_output


class Broken(io.StringIO):
    """A stream that cannot be written to, for a while."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        if self.error:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),  # a terminal that has gone
        ValueError("I/O operation on closed file"),
    ],
)
def test_what_cannot_be_printed_is_dropped_and_tried_again(error):
    stream = Broken(error)
    console = Console(file=safe_output.Lasting(stream), width=80)
    console.print("lost")
    stream.error = None
    console.print("said")
    assert stream.getvalue() == "said\n"


def test_characters_that_an_encoding_lacks_are_replaced():
    raw = io.BytesIO()
    stream = safe_output.Lasting(io.TextIOWrapper(raw, encoding="ascii"))
    Console(file=stream, width=80).print("ok · ja 本")
    assert raw.getvalue() == b"ok ? ja ?\n"


def test_a_stream_that_python_has_not_takes_everything():
    stream = safe_output.Lasting(None)
    assert stream.write("x") == 1
    stream.flush()
    assert not stream.isatty()


_PROGRAM = """
import os
from lsrjax.distributed import safe_output
safe_output.harden()
print("·" * 100_000)
own = os.open("own", os.O_RDWR | os.O_CREAT)
safe_output.say("said")
raise SystemExit(own > 2 and 7)
"""


@pytest.mark.parametrize(
    "redirection", [">&- 2>&-", "> /dev/full 2>&1", "| true", "> /dev/null < /dev/null"]
)
def test_a_program_ends_as_it_would(tmp_path, redirection):
    (tmp_path / "program.py").write_text(_PROGRAM)
    shell = f'set -o pipefail; "{sys.executable}" program.py {redirection}'
    environ = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.getcwd()}
    found = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, env=environ, capture_output=True
    )
    assert found.returncode == 7, found.stderr
    # A standard stream that is closed is not what the next file is written through.
    assert (tmp_path / "own").read_bytes() == b""
