"""A run from its config: check, train what is left to train, evaluate, show."""

import pathlib

import jax
from rich.console import Console

from lsrjax.checkpoint import results_file, set_damaged_aside
from lsrjax.config import check_run, fields
from lsrjax.distributed import activity, processes, watchdog
from lsrjax.distributed.activity import Progress
from lsrjax.training import (
    early_checks,
    evaluate_run,
    kept_config,
    stage_data,
    stages,
    trackers,
    work_folder,
)
from lsrjax.training.stage_parts import Run

COMPILED = "compiled"


def run(
    run_config,
    workdir: pathlib.Path,
    console: Console,
    progress: Progress | None = None,
    *,
    accept_changed: bool = False,
) -> None:
    """Brings a run to its end from wherever it stands.

    Args:
      run_config: of one or several stages.
      workdir: the run's folder; the same folder again goes on where it stopped.
      console: receives what is printed.
      progress: what other threads watch; None: none do.
      accept_changed: data that has changed since the run began is taken as it is.

    Raises:
      InputError: a config, file or model that cannot be used.
      lsrjax.errors.TrainingFailed: a loss that is not a number.
    """
    check_run.validate(run_config)
    first = processes.is_first()
    tracker = trackers.Tracker(console) if first else trackers.Silent()
    context = Run(workdir, tracker, progress or Progress())
    all_stages = fields.stages(run_config)
    with work_folder.opened(workdir, console):
        if accept_changed:
            stage_data.accept_all_changed(run_config, workdir, console)
        kept_config.keep(run_config, workdir)
        # What was compiled once is read back when the run goes on.
        # The attributes of JAX's config are made at run time.
        if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            compiled = str((workdir / COMPILED).absolute())
            jax.config.update("jax_compilation_cache_dir", compiled)
        if _is_finished(run_config, workdir):
            console.print(f"The run in {workdir} is finished.", highlight=False)
        dog = watchdog.Watchdog(workdir, run_config.watchdog.seconds, context.progress)
        dog.start()
        try:
            early_checks.look(run_config, workdir)
            for name, stage in all_stages.items():
                dog.seconds = stage.watchdog.seconds
                stages.run_stage(name, stage, context)
            dog.seconds = run_config.watchdog.seconds
            if run_config.evaluate.test:
                with context.progress.at(activity.RESULTS):
                    _evaluate(run_config, context, console)
        finally:
            tracker.stage_end()
            dog.stop()


def _is_finished(run_config, workdir: pathlib.Path) -> bool:
    trained = all(
        set_damaged_aside.finished_steps(workdir / name) is not None
        for name in fields.stages(run_config)
    )
    wanted = run_config.evaluate.test
    return trained and (not wanted or (workdir / results_file.RESULTS_FILE).is_file())


def _evaluate(run_config, context: Run, console: Console) -> None:
    """Evaluates the stages, unless there are sound results; shows them."""
    workdir = context.workdir
    # All processes do what the first one finds.
    sound = processes.is_first() and evaluate_run.are_sound(workdir, console)
    if not processes.largest("results are sound", 0, int(sound)):
        evaluate_run.evaluate_run(run_config, workdir, console, context.progress.poll)
    processes.wait_for_all("results")
    evaluate_run.show(workdir, console)
