"""A run from its config: check, train what is left to train, evaluate, show."""

import contextlib
import errno
import json
import pathlib
import re

import jax
from rich.console import Console

from lsrjax import (
    checkpoint,
    config,
    config_run,
    hosts,
    objective,
    prepared,
    progress,
    results,
    stages,
    trackers,
    watchdog,
)
from lsrjax.errors import InputError
from lsrjax.progress import PROGRESS

CONFIG_FILE = "config.json"
COMPILED = "compiled"
# Fields that change no result: a run may go on with others, as on other devices.
_FREE = re.compile(
    r"\.(mesh|memory|log|watchdog)\.|\.checkpoint\.on_full_disk$|"
    r"\.data\.(threads|prefetch|length_parts|length_multiple|bad_records)$"
)


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
    config_run.validate(run_config)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir} is a file; give a folder.")
    try:
        with _alone(workdir, console):
            if accept_changed:
                _accept_changed(run_config, workdir, console)
            _run(run_config, workdir, console)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"The disk of {workdir} is full ({error}). The checkpoints are as they"
            " were. Make room and start the run again; it goes on from the newest."
        ) from error


@contextlib.contextmanager
def _alone(workdir: pathlib.Path, console: Console):
    """Keeps other runs out of the work directory, from the first process."""
    if not hosts.is_first():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with checkpoint.one_run(workdir, console.print):
        yield


def _accept_changed(run_config, workdir: pathlib.Path, console: Console) -> None:
    """Takes changed data of the stages that are not finished as it is; says so."""
    if hosts.is_first():
        for name, stage in config.stages(run_config).items():
            if checkpoint.finished_steps(workdir / name) is not None:
                continue
            kind = objective.of(stage.loss).kind
            for change in prepared.accept_changed(stage, kind, workdir / name):
                console.print(
                    f"Stage {name}: accepted, as --accept_changed_data says: {change}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
    hosts.wait_for_all("changed data")


def _run(run_config, workdir: pathlib.Path, console: Console) -> None:
    _same_config(run_config, workdir)
    # What was compiled once is read back when the run goes on.
    if not jax.config.jax_compilation_cache_dir:
        compiled = str((workdir / COMPILED).absolute())
        jax.config.update("jax_compilation_cache_dir", compiled)
    finished = all(
        checkpoint.finished_steps(workdir / name) is not None
        for name in config.stages(run_config)
    )
    wanted = run_config.evaluate.test
    if finished and (not wanted or (workdir / results.RESULTS_FILE).is_file()):
        console.print(f"The run in {workdir} is finished.", highlight=False)
    tracker = trackers.Tracker(console) if hosts.is_first() else trackers.Silent()
    dog = watchdog.Watchdog(workdir, run_config.watchdog.seconds).start()
    try:
        for name, stage in config.stages(run_config).items():
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
    with PROGRESS.at(progress.RESULTS):
        if not (workdir / results.RESULTS_FILE).is_file():
            results.evaluate_run(run_config, workdir, console)
        hosts.wait_for_all("results")
        results.show(workdir, console)


def _same_config(run_config, workdir: pathlib.Path) -> None:
    """Keeps the config in the work directory; refuses to go on with another one."""
    path = workdir / CONFIG_FILE
    values = json.loads(run_config.to_json())
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        default = json.loads(config.get_default().to_json())
        default["stages"] = dict.fromkeys(config.stages(run_config), default)
        differences = [
            f"  {field}: there {there!r}, asked {asked!r}"
            for field, there, asked in _differences(found, values, default)
            if not _FREE.search(field)
        ]
        if differences:
            raise InputError(
                f"{workdir} holds a run with another config:\n"
                + "\n".join(differences[:20])
                + "\nUse another --workdir, or remove this one to start over."
            )
    if hosts.is_first():
        checkpoint.write_json(path, values)
    hosts.wait_for_all("config")


def _differences(found, wanted, default, prefix="config"):
    """Fields that differ; one that an earlier lsrjax did not have is at its default."""
    for key in [*found, *(k for k in wanted if k not in found)]:
        # A stage is there or not.
        unset = None if prefix == "config.stages" else default.get(key)
        a, b = found.get(key, unset), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, default.get(key, {}), f"{prefix}.{key}")
        elif a != b:
            yield f"{prefix}.{key}", a, b
