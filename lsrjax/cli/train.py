"""Trains and evaluates what a config describes.

lsrjax train --config configs/demo.py [--workdir DIR] [--config.x.y=VALUE …]
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import jax
from absl import logging
from rich.console import Console
from rich.text import Text

from lsrjax.cli import flags
from lsrjax.cli.flags import Given
from lsrjax.config import check_run
from lsrjax.distributed import preemption, processes, terminal, topology
from lsrjax.distributed.activity import Preempted
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.training import memory_plan, run

# How long a process that ends with an error waits for others to end with theirs.
_TOGETHER_SECONDS = 5.0


def _main(given: Given) -> None:
    # The libraries below narrate every checkpoint at INFO.
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    dry_run = given.flags.dry_run
    guard = None if dry_run else preemption.Guard().start()
    try:
        workdir = given.workdir()
        if dry_run:
            _plan(given)
            return
        _join(given)
        guard.several()
        console = Console(quiet=not processes.is_first())
        run.run(
            given.config,
            workdir,
            console,
            accept_changed=given.flags.accept_changed_data,
        )
        guard.stop()
    except Preempted:
        guard.leave()
    except (InputError, TrainingFailed) as error:
        if not dry_run and processes.count() > 1:
            _leave(str(error), together=True)
        _stop(str(error))
    except jax.errors.JaxRuntimeError as error:
        if processes.count() > 1 and processes.is_lost_process(error):
            _leave(
                f"Process {jax.process_index()} of {processes.count()} lost another:"
                f" {str(error).splitlines()[0]}\nThe output of the one that ended first"
                " says why. The checkpoints are whole; start all processes again to go"
                " on from the last one."
            )
        raise


def _join(given: Given) -> None:
    """Joins the run's processes; where that fails, this one ends."""
    try:
        given.join()
        processes.check_devices()
    except InputError as error:
        if processes.met():
            raise
        # What is left of JAX's attempt would be told in tracebacks.
        _leave(str(error))


def _leave(message: str, together: bool = False) -> None:
    """Ends this process.

    An orderly end would wait for the other processes, which wait for this one.

    Args:
      message: is said first.
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


def _plan(given: Given) -> None:
    said = given.flags
    if said.devices is not None and said.topology:
        raise InputError("--topology says how many devices there are; leave --devices.")
    if said.devices is not None:
        memory_plan.pretend_devices(said.devices)
    chips = topology.devices(said.topology) if said.topology else None
    processes.check_devices()
    check_run.validate(given.config)
    limit = None if said.device_gb is None else int(said.device_gb * 1e9)
    folder = given.config_path.parent
    memory_plan.dry_run(given.config, Console(), limit, folder, chips=chips)


def _stop(message: str) -> NoReturn:
    _say(message)
    sys.exit(2)


def _say(message: str) -> None:
    console = Console(stderr=True)
    # As text, since a message may hold square brackets, which are markup.
    console.print(Text("Error: ", "bold red"), Text(message), sep="", soft_wrap=True)


def _parse(argv: Sequence[str]) -> Given:
    """Parses the command line; a mistake in it or in the config ends the program."""
    parser = flags.parser("train", __doc__)
    parser.add_argument(
        "--accept_changed_data",
        action="store_true",
        help="go on although data files are not what they were when the run began;"
        " names them",
    )
    group = parser.add_argument_group("a plan instead of a run")
    add = group.add_argument
    add(
        "--dry_run",
        action="store_true",
        help="compile every stage's step and print what it takes; train nothing, read"
        " no data and no weights",
    )
    plan = [
        add("--devices", type=int, metavar="N", help="plan for N devices"),
        add(
            "--topology",
            metavar="CHIPS",
            help="compile for chips that are not here, such as v5e:4x4 or h100:8; print"
            " what they exchange and how the step scales",
        ),
        add("--device_gb", type=float, metavar="GB", help="memory of a device"),
    ]
    given = flags.parse(parser, argv)
    for message in (*given.unknown, *given.wrong):
        _stop(message)
    if given.config is None:
        _stop("No config file; give one, as in --config configs/demo.py")
    for flag in plan:
        if getattr(given.flags, flag.dest) is not None and not given.flags.dry_run:
            _stop(f"--{flag.dest} has no effect without --dry_run.")
    return given


def start() -> None:
    """The command, as a process of its own."""
    terminal.harden()
    _main(_parse(sys.argv[1:]))
