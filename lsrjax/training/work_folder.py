"""The run's work directory: where it is, one run at a time, errors of its disk."""

import contextlib
import errno
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from rich.console import Console

from lsrjax import paths
from lsrjax.checkpoint import lock
from lsrjax.distributed import processes
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.training import bucket

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
# With more free space than this, a disk is not full.
_ROOM = 2**20


@contextlib.contextmanager
def located(
    place: str, console: Console, progress: Progress | None = None
) -> Iterator[pathlib.Path]:
    """The folder of a work directory, from `paths.workdir`; a bucket has a copy of it.

    Raises:
      InputError: the bucket cannot be used, or there are several processes.
      TrainingFailed: see `bucket.copied`.
    """
    if not paths.in_bucket(place):
        yield pathlib.Path(place)
        return
    if processes.count() > 1:
        raise shared_by_all(place)
    note = functools.partial(
        console.print, soft_wrap=True, highlight=False, markup=False
    )
    with bucket.copied(place, note, progress) as folder:
        yield folder


def shared_by_all(place: str) -> InputError:
    """Why several processes cannot have a work directory in a bucket."""
    return InputError(
        f"--workdir {place}: a run of several processes needs a folder that all of them"
        " see. Mount the bucket on every host (gcsfuse, Mountpoint for S3) and give"
        " that folder."
    )


@contextlib.contextmanager
def opened(workdir: pathlib.Path, console: Console) -> Iterator[None]:
    """Creates a work directory and keeps other runs out of it.

    Raises:
      InputError: the folder cannot be created, another run holds it, or the body fails
        because of a disk or a folder.
    """
    try:
        with _alone(workdir, console):
            yield
    except (InputError, TrainingFailed):
        raise
    except Exception as error:
        if message := of_disk(error, workdir):
            raise InputError(message) from error
        raise


@contextlib.contextmanager
def _alone(workdir: pathlib.Path, console: Console):
    """Locks the work directory; only the first process does."""
    if not processes.is_first():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            note = functools.partial(console.print, soft_wrap=True)
            stack.enter_context(lock.one_run(workdir, note))
        # A name with a zero byte in it is a ValueError.
        except (OSError, ValueError) as error:
            if isinstance(error, InputError) or _is_full(error):
                raise
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"--workdir {workdir} cannot be made or written to ({reason}). Give a"
                " folder that you may write to."
            ) from error
        yield


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def of_disk(error: Exception, workdir: pathlib.Path) -> str:
    """The message for an error caused by a disk or a folder; else an empty string."""
    if not workdir.is_dir():
        return (
            f"{workdir} was removed, or its disk was taken away, while the run was"
            f" under way ({error}). What was saved there is lost with it; the same"
            " command starts over."
        )
    if not isinstance(error, OSError):
        return ""
    where = error.filename if isinstance(error.filename, str) else None
    inside = (
        where is None or workdir.absolute() in pathlib.Path(where).absolute().parents
    )
    if _is_full(error):
        if not inside:
            return f"The disk of {where} is full ({error}). Make room, and start again."
        if where is None and shutil.disk_usage(workdir).free > _ROOM:
            temporary = tempfile.gettempdir()
            return (
                f"A disk is full ({error}), not that of {workdir}. Temporary files are"
                f" in {temporary} (TMPDIR), indices of corpora in XDG_CACHE_HOME. Make"
                " room, and start again."
            )
        return (
            f"The disk of {workdir} is full ({error}). The checkpoints are as they"
            " were. Make room and start the run again; it goes on from the newest."
        )
    if where is not None and inside and error.errno in _NOT_ALLOWED:
        return (
            f"{where} cannot be read or written ({error.strerror}). Look at whose it is"
            f" and at its permissions, or use another --workdir."
        )
    return ""
