"""What libraries write to standard error goes to a file, not between a run's lines.

XLA, CUDA and others write to the descriptor of standard error from C++. So it becomes
that of a file, and Python's `sys.stderr`, with its errors and warnings, goes on to
where it went before.
"""

import contextlib
import faulthandler
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

from lsrjax.distributed.safe_output import Lasting

FILE = "libraries.log"  # in the work directory; runs add to it


class LibraryLog:
    """Redirects the standard error of this process from its making until `close`.

    The file is a temporary one until `move`, since the work directory may not exist
    yet, or the run be refused.
    """

    def __init__(self):
        self._number = os.dup(2)
        self._before = sys.stderr
        real = os.fdopen(
            self._number, "w", buffering=1, errors="replace", closefd=False
        )
        sys.stderr = Lasting(real)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._moved = False
        os.dup2(self._file.fileno(), 2)
        # A library that ends the process by a signal says why in the file only.
        faulthandler.enable(self._number)

    def move(self, folder: pathlib.Path) -> None:
        """Goes on in `libraries.log` of a folder, after what was said so far."""
        sys.stderr.flush()
        new = (folder / FILE).open("ab", buffering=0)
        self._copy_to(new)
        os.dup2(new.fileno(), 2)
        self._file.close()
        self._file, self._moved = new, True

    def close(self, *, silent: bool = False) -> None:
        """Restores standard error; what no file has taken is printed, or dropped."""
        faulthandler.disable()
        sys.stderr.flush()
        sys.stderr = self._before
        os.dup2(self._number, 2)
        os.close(self._number)
        if not (self._moved or silent):
            with os.fdopen(2, "wb", closefd=False) as out:
                self._copy_to(out)
        self._file.close()

    def _copy_to(self, file) -> None:
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)


@contextlib.contextmanager
def shown_if_it_fails() -> Iterator[None]:
    """What libraries write within is printed if an exception ends it, else dropped."""
    log = LibraryLog()
    try:
        yield
    except BaseException:
        log.close()
        raise
    log.close(silent=True)
