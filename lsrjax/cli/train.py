"""Trains and evaluates what a config describes.

python -m lsrjax.main --config configs/demo.py [--workdir DIR] [--config.x.y=z …]
"""

import os
import pathlib
import sys
import time

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.text import Text

from lsrjax.cli import flags as command
from lsrjax.config import check_run
from lsrjax.distributed import preemption, processes, terminal, topology
from lsrjax.distributed.activity import Preempted
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.training import memory_plan, run

# So that --help shows them.
flags.adopt_module_key_flags(command)
# How long a process that ends with an error waits for others to end with theirs.
_TOGETHER_SECONDS = 5.0


def _main(config_path: pathlib.Path) -> None:
    # The libraries below narrate every checkpoint at INFO.
    logging.set_verbosity(logging.WARNING)
    guard = None if command.DRY_RUN.value else preemption.Guard().start()
    try:
        workdir = command.workdir(config_path)
        if command.DRY_RUN.value:
            _plan(config_path)
            return
        for flag in (command.DEVICES, command.DEVICE_GB, command.TOPOLOGY):
            if flag.value is not None:
                raise InputError(f"--{flag.name} has no effect without --dry_run.")
        _join()
        guard.several()
        console = Console(quiet=not processes.is_first())
        run.run(
            command.CONFIG.value,
            workdir,
            console,
            accept_changed=command.ACCEPT_CHANGED_DATA.value,
        )
        guard.stop()
    except Preempted:
        guard.leave()
    except (InputError, TrainingFailed) as error:
        if not command.DRY_RUN.value and processes.count() > 1:
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


def _join() -> None:
    """Joins the run's processes; where that fails, this one ends."""
    try:
        command.join()
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


def _plan(config_path: pathlib.Path) -> None:
    if command.DEVICES.value is not None and command.TOPOLOGY.value:
        raise InputError("--topology says how many devices there are; leave --devices.")
    if command.DEVICES.value is not None:
        memory_plan.pretend_devices(command.DEVICES.value)
    chips = topology.devices(command.TOPOLOGY.value) if command.TOPOLOGY.value else None
    processes.check_devices()
    check_run.validate(command.CONFIG.value)
    limit = (
        None if command.DEVICE_GB.value is None else int(command.DEVICE_GB.value * 1e9)
    )
    memory_plan.dry_run(
        command.CONFIG.value, Console(), limit, config_path.parent, chips=chips
    )


def _stop(message: str) -> None:
    _say(message)
    sys.exit(2)


def _say(message: str) -> None:
    console = Console(stderr=True)
    # As text, since a message may hold square brackets, which are markup.
    console.print(Text("Error: ", "bold red"), Text(message), sep="", soft_wrap=True)


def _parse(argv: list[str]) -> pathlib.Path:
    """Parses the flags; a mistake in them or in the config file ends the program.

    Returns:
      The config file.
    """
    try:
        for message in command.unknown_flags(argv).values():
            raise InputError(message)
        path = command.checked_config(argv)
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise InputError(
                f"Unknown arguments: {' '.join(rest)}. Set a field with --config.x.y=z."
            )
    except (InputError, flags.Error) as error:
        _stop(str(error))
    return path


def start() -> None:
    """The command, as a process of its own."""
    terminal.harden()
    app.run(_main, flags_parser=_parse)
