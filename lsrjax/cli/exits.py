"""How a command ends with an error, alone and among the processes of a run."""

import os
import sys
import time
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from lsrjax.distributed import processes

# How long a process that ends with an error waits for others to end with theirs.
_TOGETHER_SECONDS = 5.0


def stop(message: str) -> NoReturn:
    """Prints an error and ends this process in good order."""
    _say(message)
    sys.exit(2)


def leave(message: str, together: bool = False) -> NoReturn:
    """Prints an error and ends this process at once.

    An orderly end would wait for the other processes, which wait for this one.

    Args:
      message: the error.
      together: the other processes may have found the same, and get the time to say so:
        one that loses the first process, which has the service that they talk to, is
        ended by JAX.
    """
    _say(message)
    sys.stdout.flush()
    sys.stderr.flush()
    if together:
        processes.meet("error", _TOGETHER_SECONDS)
        if processes.is_first():
            time.sleep(1.0)
    os._exit(2)


def _say(message: str) -> None:
    console = Console(stderr=True)
    # As text, since a message may hold square brackets, which are markup.
    console.print(Text("Error: ", "bold red"), Text(message), sep="", soft_wrap=True)
