"""Trains and evaluates what a config describes.

python -m lsrjax.main --config configs/demo.py [--workdir DIR] [--config.x.y=z …]
"""

import os
import pathlib
import re
import runpy
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.text import Text

from lsrjax import config, hosts, plan, preemption, run
from lsrjax.errors import InputError
from lsrjax.loop import TrainingFailed
from lsrjax.progress import Preempted

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a Python file; --config.x.y=z sets a field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and results go; runs/<config name> if empty."
)
# Under SLURM the next three come from the job, on a TPU pod from the pod.
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where processes find each other."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This one's number, from 0.")
_TPU_POD = flags.DEFINE_bool(
    "tpu_pod", False, "Join the processes of the TPU pod this program runs on."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Compile every stage's step and print what it takes; train nothing, read no data"
    " and no weights.",
)
_DEVICES = flags.DEFINE_integer(
    "devices", None, "With --dry_run: plan for so many devices instead of those here."
)
_DEVICE_GB = flags.DEFINE_float(
    "device_gb", None, "With --dry_run: memory of a device instead of what it has."
)


def _main(config_path: pathlib.Path) -> None:
    # The libraries below narrate every checkpoint at INFO.
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config_path.stem}")
    guard = None if _DRY_RUN.value else preemption.Guard().start()
    try:
        if _DRY_RUN.value:
            _plan(workdir)
            return
        for flag in (_DEVICES, _DEVICE_GB):
            if flag.value is not None:
                raise InputError(f"--{flag.name} has no effect without --dry_run.")
        hosts.start(
            _COORDINATOR.value,
            _NUM_PROCESSES.value,
            _PROCESS_ID.value,
            tpu_pod=_TPU_POD.value,
        )
        guard.several()
        run.run(_CONFIG.value, workdir, Console(quiet=not hosts.is_first()))
        guard.stop()
    except Preempted:
        guard.leave()
    except (InputError, TrainingFailed) as error:
        if not _DRY_RUN.value and hosts.count() > 1:
            _leave(str(error))
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


def _leave(message: str) -> None:
    """Ends this process at once.

    An orderly end would wait for the other processes, which wait for this one.
    """
    _say(message)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _plan(workdir: pathlib.Path) -> None:
    if _DEVICES.value is not None:
        plan.pretend_devices(_DEVICES.value)
    config.validate(_CONFIG.value)
    limit = None if _DEVICE_GB.value is None else int(_DEVICE_GB.value * 1e9)
    plan.dry_run(_CONFIG.value, Console(), limit)


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
        path = _checked_config(argv)
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise InputError(
                f"Unknown arguments: {' '.join(rest)}. Set a field with --config.x.y=z."
            )
    except (InputError, flags.Error) as error:
        _stop(str(error))
    return path


def _checked_config(argv: list[str]) -> pathlib.Path | None:
    """Reads the config file ahead of config_flags, whose errors hide what is wrong."""
    joined = "\n".join(argv[1:])
    match = re.search(r"^--?config[=\n](.*)$", joined, re.MULTILINE)
    if not match:
        if re.search(r"^--?help", joined, re.MULTILINE):
            return None
        raise InputError("No config file; give one, as in --config configs/demo.py")
    name, _, argument = match[1].partition(":")
    path = pathlib.Path(name)
    known = list(config.fields(_load(path, [argument] if argument else [])))
    for field in re.findall(r"^--?config\.([^=\n]*)", joined, re.MULTILINE):
        if not any(f == field or f.startswith(f"{field}.") for f in known):
            raise InputError(config.not_a_field(field, known, "--config"))
    return path


def _load(path: pathlib.Path, arguments: list[str]) -> ConfigDict:
    if not path.is_file():
        raise InputError(f"No config file {path} (from {pathlib.Path.cwd()}).")
    try:
        names = runpy.run_path(str(path))
        if "get_config" not in names:
            raise InputError(f"{path} has no function get_config().")
        found = names["get_config"](*arguments)
    except InputError:
        raise
    except Exception as error:
        lines = [
            line
            for line in traceback.extract_tb(error.__traceback__)
            if line.filename == str(path)
        ]
        text = traceback.format_list(lines) + traceback.format_exception_only(error)
        raise InputError(
            f"{path} could not be run:\n{''.join(text).rstrip()}"
        ) from error
    if not isinstance(found, ConfigDict):
        raise InputError(
            f"get_config() of {path} returns {type(found).__name__}, not a ConfigDict."
        )
    return found


if __name__ == "__main__":
    app.run(_main, flags_parser=_parse)
