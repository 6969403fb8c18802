"""Trains and evaluates what a config describes.

python -m lsrjax.main --config configs/demo.py [--workdir DIR] [--config.x.y=z …]
"""

import os
import pathlib
import signal
import sys
import time

if __name__ == "__main__":
    # Until a guard takes it, Ctrl-C ends the program without a traceback; the imports
    # below take seconds.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.text import Text

from lsrjax import (
    command,
    config_run,
    hosts,
    plan,
    preemption,
    run,
    terminal,
    topology,
)
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.progress import Preempted

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
        console = Console(quiet=not hosts.is_first())
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
        if not command.DRY_RUN.value and hosts.count() > 1:
            _leave(str(error), together=True)
        _stop(str(error))
    except jax.errors.JaxRuntimeError as error:
        if hosts.count() > 1 and hosts.is_lost_process(error):
            _leave(
                f"Process {jax.process_index()} of {hosts.count()} lost another one:"
                f" {str(error).splitlines()[0]}\nThe output of the one that ended first"
                " says why. The checkpoints are whole; start all processes again to go"
                " on from the last one."
            )
        raise


def _join() -> None:
    """Joins the run's processes; where that fails, this one ends."""
    try:
        command.join()
        hosts.check_devices()
    except InputError as error:
        if hosts.met():
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
        hosts.meet("error", _TOGETHER_SECONDS)
        if hosts.is_first():
            time.sleep(1.0)
    os._exit(2)


def _plan(config_path: pathlib.Path) -> None:
    if command.DEVICES.value is not None and command.TOPOLOGY.value:
        raise InputError("--topology says how many devices there are; leave --devices.")
    if command.DEVICES.value is not None:
        plan.pretend_devices(command.DEVICES.value)
    chips = topology.devices(command.TOPOLOGY.value) if command.TOPOLOGY.value else None
    hosts.check_devices()
    config_run.validate(command.CONFIG.value)
    limit = (
        None if command.DEVICE_GB.value is None else int(command.DEVICE_GB.value * 1e9)
    )
    plan.dry_run(
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


if __name__ == "__main__":
    terminal.harden()
    app.run(_main, flags_parser=_parse)
