"""Standard output and error whose failures do not end a run.

A closed pipe, a full disk behind a redirection, a closed terminal or one that shows
only ASCII must not cost a trained state.
"""

import contextlib
import os
import sys


class Lasting:
    """A text stream that drops what cannot be written, and keeps trying.

    Characters that its encoding lacks are written as `?`.
    """

    def __init__(self, stream):
        """Writes to `stream`; to nothing if it is None, as Python sets a closed one."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes if possible; returns the length of the text."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        known = text.encode(encoding, "replace").decode(encoding)
        if self._stream is not None:
            # A closed stream raises ValueError.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(known)
        return len(text)

    def writelines(self, lines) -> None:
        """Writes all lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the stream, if possible."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def harden() -> None:
    """Makes standard output and error of this process `Lasting`."""
    # Otherwise the next file opened would take the number of a closed stream.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Lasting):
            setattr(sys, name, Lasting(stream))


def say(message: str) -> None:
    """Writes a line to stderr, over any live display."""
    # A live display may have hidden the cursor.
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError):
        os.write(stderr_number(), f"{shown}{message}\n".encode())


def stderr_number() -> int:
    """The descriptor of `sys.stderr`, which may not be 2: see `library_log`."""
    try:
        return sys.stderr.fileno()
    # What it is raised by depends on what stands in for a stream.
    except (OSError, ValueError, AttributeError):
        return 2
