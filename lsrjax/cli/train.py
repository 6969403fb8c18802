"""Trains and evaluates what a config describes.

lsrjax train --config demo [--workdir DIR] [--config.x.y=VALUE …]
"""

import contextlib
import sys

import jax
from absl import logging
from rich.console import Console

from lsrjax.cli import dry_run, exits, flags
from lsrjax.cli.flags import Given
from lsrjax.distributed import preemption, processes, safe_output
from lsrjax.distributed.activity import Preempted, Progress
from lsrjax.distributed.library_log import LibraryLog
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.trackers import in_thread
from lsrjax.training import run, work_folder


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    given = _parse()
    # The libraries log every checkpoint at INFO.
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    if given.flags.dry_run:
        with exits.on_input_error():
            given.workdir()
            dry_run.plan(given)
    else:
        _train(given)


def _parse() -> Given:
    """Parses the command line; exits on an error in it or in the config."""
    parser = flags.parser("train", __doc__)
    parser.add_argument(
        "--accept_changed_data",
        action="store_true",
        help="go on although data files are not what they were when the run began;"
        " names them",
    )
    dry_run.add_flags(parser)
    given = flags.parse(parser, sys.argv[1:])
    wrong = [*given.unknown, *given.wrong]
    if not wrong and given.config is None:
        wrong = ["No config; give a file or a name, as in --config demo"]
    if hasattr(given.flags, "dry_run"):
        wrong += dry_run.without_effect(given.flags)
    if wrong:
        exits.stop(str(InputError(*wrong)))
    return given


def _train(given: Given) -> None:
    progress = Progress()
    guard = preemption.Guard(progress).start()
    try:
        with contextlib.ExitStack() as stack:
            place = given.workdir()
            log = _join(given, stack)
            guard.several()
            console = Console(quiet=not processes.is_first())
            workdir = stack.enter_context(work_folder.located(place, console, progress))
            run.run(
                given.config,
                workdir,
                console,
                progress,
                accept_changed=given.flags.accept_changed_data,
                library_log=log,
            )
        guard.stop()
        if in_thread.hangs():
            exits.end()  # a tracker's library could keep the process from ending
    except Preempted:
        guard.leave()
    except (InputError, TrainingFailed) as error:
        if processes.count() > 1:
            exits.leave(str(error), together=True)
        exits.stop(str(error))
    except jax.errors.JaxRuntimeError as error:
        exits.leave_if_lost(error)
        raise


def _join(given: Given, stack: contextlib.ExitStack) -> LibraryLog | None:
    """Joins the run's processes; exits on failure.

    The log of several processes stays one: it may say which of them failed, and why.
    """
    try:
        given.join()
        log = LibraryLog() if processes.count() == 1 else None
        if log:
            stack.callback(log.close)
        processes.check_devices()
        return log
    except InputError as error:
        if processes.met():
            raise
        # An orderly exit would print the tracebacks of JAX's attempt.
        exits.leave(str(error))
