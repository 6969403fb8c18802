"""What `lsrjax.main` and `lsrjax.doctor` take on the command line."""

import pathlib
import re
import runpy
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from lsrjax import config, hosts, paths
from lsrjax.errors import InputError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a Python file; --config.x.y=z sets a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and results go; runs/<config name> if empty."
)
# Under SLURM the next three come from the job, on a TPU pod from the pod.
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where processes find each other."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "This one's number, from 0.")
TPU_POD = flags.DEFINE_bool(
    "tpu_pod", False, "Join the processes of the TPU pod this program runs on."
)


def workdir(config_path: pathlib.Path) -> pathlib.Path:
    """The run's folder.

    Raises:
      InputError: it is not on this machine.
    """
    named = WORKDIR.value or f"runs/{config_path.stem}"
    return pathlib.Path(paths.local(named, "--workdir"))


def join() -> None:
    """Joins the run's processes, as `lsrjax.hosts.start` does."""
    hosts.start(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        tpu_pod=TPU_POD.value,
    )


def checked_config(argv: list[str]) -> pathlib.Path | None:
    """Reads the config file ahead of config_flags, whose errors hide what is wrong."""
    joined = "\n".join(argv[1:])
    match = re.search(r"^--?config[=\n](.*)$", joined, re.MULTILINE)
    if not match:
        if re.search(r"^--?help", joined, re.MULTILINE):
            return None
        raise InputError("No config file; give one, as in --config configs/demo.py")
    name, _, argument = match[1].partition(":")
    path = pathlib.Path(name)
    known = list(config.fields(load(path, [argument] if argument else [])))
    for field in re.findall(r"^--?config\.([^=\n]*)", joined, re.MULTILINE):
        if not any(f == field or f.startswith(f"{field}.") for f in known):
            raise InputError(config.not_a_field(field, known, "--config"))
    return path


def load(path: pathlib.Path, arguments: Sequence[str] = ()) -> ConfigDict:
    """Runs a config file.

    Raises:
      InputError: it is missing, fails, or gives no config.
    """
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
