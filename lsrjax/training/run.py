"""A run from its config: check, train what is left to train, evaluate, show."""

import contextlib
import errno
import pathlib
import shutil
import tempfile

import jax
from rich.console import Console

from lsrjax.checkpoint import lock, results, set_damaged_aside
from lsrjax.config import check_run, fields
from lsrjax.distributed import activity, processes, watchdog
from lsrjax.distributed.activity import PROGRESS
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.losses import objective
from lsrjax.training import (
    early_checks,
    evaluate_run,
    kept_config,
    stage_data,
    stages,
    trackers,
)

CONFIG_FILE = kept_config.FILE
COMPILED = "compiled"
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
# With so many bytes free, a disk is not the one that is full.
_ROOM = 2**20


def run(
    run_config, workdir: pathlib.Path, console: Console, *, accept_changed: bool = False
) -> None:
    """Brings a run to its end from wherever it stands.

    Args:
      run_config: of one or several stages.
      workdir: the run's folder; the same folder again goes on where it stopped.
      console: what is printed goes there.
      accept_changed: data that has changed since the run began is taken as it is.

    Raises:
      InputError: a config, file or model that cannot be used.
      lsrjax.errors.TrainingFailed: a loss that is not a number.
    """
    check_run.validate(run_config)
    try:
        with _alone(workdir, console):
            if accept_changed:
                _accept_changed(run_config, workdir, console)
            _run(run_config, workdir, console)
    except (InputError, TrainingFailed):
        raise
    except Exception as error:
        if message := _of_disk(error, workdir):
            raise InputError(message) from error
        raise


@contextlib.contextmanager
def _alone(workdir: pathlib.Path, console: Console):
    """Keeps other runs out of the work directory, from the first process."""
    if not processes.is_first():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.one_run(workdir, console.print))
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


def _accept_changed(run_config, workdir: pathlib.Path, console: Console) -> None:
    """Takes changed data of the stages that are not finished as it is; says so."""
    if processes.is_first():
        for name, stage in fields.stages(run_config).items():
            if set_damaged_aside.finished_steps(workdir / name) is not None:
                continue
            kind = objective.of(stage.loss).kind
            for change in stage_data.accept_changed(stage, kind, workdir / name):
                console.print(
                    f"Stage {name}: accepted, as --accept_changed_data says: {change}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
    processes.wait_for_all("changed data")


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _of_disk(error: Exception, workdir: pathlib.Path) -> str:
    """What to say of an error whose cause is a disk or a folder; else nothing."""
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


def _run(run_config, workdir: pathlib.Path, console: Console) -> None:
    kept_config.keep(run_config, workdir)
    # What was compiled once is read back when the run goes on.
    if not jax.config.jax_compilation_cache_dir:
        compiled = str((workdir / COMPILED).absolute())
        jax.config.update("jax_compilation_cache_dir", compiled)
    finished = all(
        set_damaged_aside.finished_steps(workdir / name) is not None
        for name in fields.stages(run_config)
    )
    wanted = run_config.evaluate.test
    if finished and (not wanted or (workdir / results.RESULTS_FILE).is_file()):
        console.print(f"The run in {workdir} is finished.", highlight=False)
    tracker = trackers.Tracker(console) if processes.is_first() else trackers.Silent()
    dog = watchdog.Watchdog(workdir, run_config.watchdog.seconds).start()
    try:
        early_checks.look(run_config, workdir)
        for name, stage in fields.stages(run_config).items():
            dog.seconds = stage.watchdog.seconds
            stages.run_stage(name, stage, workdir, tracker)
        dog.seconds = run_config.watchdog.seconds
        _conclude(run_config, workdir, console)
    finally:
        tracker.stage_end()
        dog.stop()


def _conclude(run_config, workdir: pathlib.Path, console: Console) -> None:
    """Evaluates the stages, where the config asks for it."""
    if not run_config.evaluate.test:
        return
    with PROGRESS.at(activity.RESULTS):
        # All processes do what the first one finds.
        sound = processes.is_first() and evaluate_run.are_sound(workdir, console)
        if not processes.largest("results are sound", 0, int(sound)):
            evaluate_run.evaluate_run(run_config, workdir, console)
        processes.wait_for_all("results")
        evaluate_run.show(workdir, console)
