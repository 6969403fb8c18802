"""Ends a command with an error, alone or as one of a run's processes."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
from rich.console import Console
from rich.text import Text

from lsrjax.distributed import processes
from lsrjax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)

# How long a failing process waits for others to report their errors.
_TOGETHER_SECONDS = 5.0


def stop(message: str) -> NoReturn:
    """Prints an error and exits in good order."""
    _say(message)
    sys.exit(2)


@contextlib.contextmanager
def on_input_error() -> Iterator[None]:
    """Ends a command with the message of an `InputError`; also a decorator.

    Of an error of the file system, too, which names the file: a folder that cannot be
    made, a disk that is full.
    """
    try:
        yield
    except InputError as error:
        stop(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        stop(
            f"{error.filename or 'A disk'}: {error.strerror}. Name a file or folder"
            " that can be read or written, on a disk with room."
        )


def leave(message: str, together: bool = False) -> NoReturn:
    """Prints an error and exits at once.

    An orderly exit would wait for the other processes, which wait for this one.

    Args:
      together: the other processes may fail in the same way, and get time to say so;
        JAX kills a process that loses the first one, which runs its service.
    """
    _say(message)
    _flush()
    if together:
        processes.meet("error", _TOGETHER_SECONDS)
        if processes.is_first():
            time.sleep(1.0)
    os._exit(2)


def end() -> NoReturn:
    """Exits at once after success."""
    _flush()
    os._exit(0)


def leave_if_lost(error: Exception) -> None:
    """Exits at once if the error is that another of the run's processes ended."""
    count = processes.count()
    if count > 1 and processes.is_lost_process(error):
        leave(
            f"Process {jax.process_index()} of {count} lost another:"
            f" {str(error).splitlines()[0]}\nThe output of the one that ended first"
            " says why. The checkpoints are whole; start all processes again to go on"
            " from the last one."
        )


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _say(message: str) -> None:
    console = Console(stderr=True)
    # As text, since square brackets in a message would be markup.
    console.print(Text("Error: ", "bold red"), Text(message), sep="", soft_wrap=True)
