"""Standard output and error that end no run, whatever becomes of their readers.

A closed pipe, a full disk behind a redirection, a terminal that has gone or one that
knows ASCII only is no reason to lose what was trained.
"""

import contextlib
import os
import sys


class Lasting:
    """A text stream that drops what cannot be written, and tries again with the next.

    Characters that its encoding lacks are written as `?`.
    """

    def __init__(self, stream):
        """Writes to `stream`; None: to nothing, as Python's own where it is closed."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written; returns the length of the text."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        known = text.encode(encoding, "replace").decode(encoding)
        if self._stream is not None:
            # A closed stream says ValueError.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(known)
        return len(text)

    def writelines(self, lines) -> None:
        """Writes all of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hands on what is buffered."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def harden() -> None:
    """Makes standard output and error of this process outlast their readers."""
    # The next file that is opened would else be what is printed to.
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
    """Writes a line to stderr, whatever the terminal shows."""
    # A live line may have hidden the cursor.
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{shown}{message}\n".encode())
