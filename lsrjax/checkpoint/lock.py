"""One run at a time in a work directory."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from lsrjax.errors import InputError

LOCK_FILE = "lock"
# Errors of file systems without locks, as on some clusters.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def one_run(workdir: pathlib.Path, note: Callable[[str], None]) -> Iterator[None]:
    """Locks a work directory for this process, until the context or the process ends.

    The system frees the lock of a process that is killed; the file stays and has no
    effect by itself. Without locks on the file system, the run continues with a note.

    Raises:
      InputError: another run holds it; names its host, process and start.
    """
    path = workdir / LOCK_FILE
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{workdir} is in use by another run ({_holder(file)}). Wait for it or"
                " end it, or use another --workdir."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            note(
                f"The file system of {workdir} knows no locks ({error.strerror}): see"
                " to it yourself that no other run uses this folder."
            )
        _sign(file)
        yield


def signature() -> dict[str, Any]:
    """What a lock says of this process."""
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": now}


def holder(values: Any) -> str:
    """Who signed a lock so, in words."""
    try:
        return "host {host}, process {pid}, started {started}".format(**values)
    except (KeyError, TypeError):
        return "one that has just started"


def _holder(file) -> str:
    file.seek(0)
    try:
        return holder(json.loads(file.read()))
    except ValueError:
        return holder(None)


def _sign(file) -> None:
    # A full disk is no reason to refuse a run that only has to resume.
    with contextlib.suppress(OSError):
        file.seek(0)
        file.truncate()
        file.write(json.dumps(signature()) + "\n")
        file.flush()
