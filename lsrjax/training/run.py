"""A whole run from its config: check, train each unfinished stage, evaluate, report."""

import pathlib

import jax
from rich.console import Console

from lsrjax.checkpoint import set_damaged_aside
from lsrjax.config import check_run, fields
from lsrjax.distributed import activity, processes, watchdog
from lsrjax.distributed.library_log import LibraryLog
from lsrjax.retrieval.results_file import RESULTS_FILE
from lsrjax.training import (
    early_checks,
    evaluate_run,
    kept_config,
    last_words,
    stage_data,
    stages,
    trackers,
    work_folder,
)
from lsrjax.training.report import write as report
from lsrjax.training.stage_parts import Run


def run(
    run_config,
    workdir: pathlib.Path,
    console: Console,
    progress: activity.Progress | None = None,
    *,
    accept_changed: bool = False,
    library_log: LibraryLog | None = None,
) -> None:
    """Runs what remains of a run in `workdir`.

    Args:
      progress: shared with the threads that watch this process.
      accept_changed: accept data that has changed since the run began.
      library_log: goes on in the work directory.

    Raises:
      InputError: a config, file or model that cannot be used.
      lsrjax.errors.TrainingFailed: the loss is not finite, or the model collapsed.
    """
    check_run.validate(run_config)
    first = processes.is_first()
    progress = progress or activity.Progress()
    tracker = trackers.Tracker(console, progress) if first else trackers.Silent()
    context = Run(workdir, tracker, progress)
    all_stages = fields.stages(run_config)
    with work_folder.opened(workdir, console):
        if library_log:
            library_log.move(workdir)
        if accept_changed:
            stage_data.accept_all_changed(run_config, workdir, console)
        kept_config.keep(run_config, workdir)
        # A resumed run reuses what it compiled before.
        # JAX creates the attributes of its config at run time.
        if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            compiled = str((workdir / "compiled").absolute())
            jax.config.update("jax_compilation_cache_dir", compiled)
        ended = _is_finished(run_config, workdir)
        tracker.note(f"The run in {workdir} is finished." if ended else f"In {workdir}")
        dog = watchdog.Watchdog(workdir, run_config.watchdog.seconds, progress).start()
        failed = True
        try:
            tracker.start(run_config, workdir)
            with progress.at(activity.PREPARING):
                early_checks.look(run_config, workdir)
            for number, (name, stage) in enumerate(all_stages.items(), start=1):
                dog.seconds = stage.watchdog.seconds
                stages.run_stage(name, stage, context, number, len(all_stages))
            dog.seconds = run_config.watchdog.seconds
            if _wants_results(run_config):
                with progress.at(activity.RESULTS):
                    _evaluate(run_config, workdir, console, progress.poll)
            failed = False
            if first:
                report.at_the_end(workdir, tracker.note)
        finally:
            dog.stop()
            tracker.close(failed)
        if first:
            last_words.show(run_config, workdir, console)


def _is_finished(run_config, workdir: pathlib.Path) -> bool:
    trained = all(
        set_damaged_aside.finished_steps(workdir / name) is not None
        for name in fields.stages(run_config)
    )
    done = (workdir / RESULTS_FILE).is_file()
    return trained and (done or not _wants_results(run_config))


def _wants_results(run_config) -> bool:
    return bool(run_config.evaluate.test or run_config.evaluate.tasks)


def _evaluate(run_config, workdir: pathlib.Path, console: Console, poll) -> None:
    """Evaluates the stages unless their results are sound; prints the results."""
    # Every process follows the first one's finding.
    sound = processes.is_first() and evaluate_run.are_sound(workdir, console)
    if not processes.largest("results are sound", 0, int(sound)):
        evaluate_run.evaluate_run(run_config, workdir, console, poll)
    processes.wait_for_all("results")
    evaluate_run.show(workdir, console)
