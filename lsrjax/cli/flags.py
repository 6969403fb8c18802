"""What `lsrjax.main` and `lsrjax.doctor` take on the command line."""

import difflib
import itertools
import pathlib
import re

from absl import flags
from ml_collections import config_flags

from lsrjax import paths
from lsrjax.config import fields
from lsrjax.config.other_names import not_a_field
from lsrjax.distributed import processes
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

DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Compile every stage's step and print what it takes; train nothing, read no data"
    " and no weights.",
)
DEVICES = flags.DEFINE_integer(
    "devices", None, "With --dry_run: plan for so many devices instead of those here."
)
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "With --dry_run: compile for chips that are not here, such as v5e:4x4 or h100:8;"
    " prints what they exchange and how the step scales.",
)
DEVICE_GB = flags.DEFINE_float(
    "device_gb", None, "With --dry_run: memory of a device instead of what it has."
)
ACCEPT_CHANGED_DATA = flags.DEFINE_bool(
    "accept_changed_data",
    False,
    "Go on although data files are not what they were when the run began; names them.",
)


def workdir(config_path: pathlib.Path) -> pathlib.Path:
    """The run's folder.

    Raises:
      InputError: it is not on this machine.
    """
    named = WORKDIR.value or f"runs/{config_path.stem}"
    return pathlib.Path(paths.local(named, "--workdir"))


def join() -> None:
    """Joins the run's processes, as `lsrjax.distributed.processes.start` does."""
    processes.start(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        tpu_pod=TPU_POD.value,
    )


def checked_config(argv: list[str]) -> pathlib.Path | None:
    """Reads the config file ahead of config_flags, whose errors hide what is wrong.

    Args:
      argv: the command line, the program first.

    Returns:
      The config file; None where help is asked for.

    Raises:
      InputError: an unknown field, or a file that gives no config.
    """
    joined = "\n".join(argv[1:])
    match = re.search(r"^--?config[=\n](.*)$", joined, re.MULTILINE)
    if not match:
        if re.search(r"^--?help", joined, re.MULTILINE):
            return None
        raise InputError("No config file; give one, as in --config configs/demo.py")
    name, _, argument = match[1].partition(":")
    path = pathlib.Path(name)
    known = list(fields.fields(fields.load(path, [argument] if argument else [])))
    for field in re.findall(r"^--?config\.([^=\n]*)", joined, re.MULTILINE):
        if not any(f == field or f.startswith(f"{field}.") for f in known):
            raise InputError(not_a_field(field, known, "--config"))
    return path


def unknown_flags(argv: list[str]) -> dict[str, str]:
    """The flags of a command line, the program first, that there are not.

    Returns:
      What to say of each, by the flag.
    """
    unknown, is_value = [], False
    for argument, following in itertools.pairwise([*argv[1:], ""]):
        if is_value:
            is_value = False
            continue
        if argument == "--":
            break
        if not re.match(r"--?[A-Za-z]", argument):
            continue
        name, given, _ = argument.lstrip("-").partition("=")
        plain = name if name in flags.FLAGS else name.removeprefix("no")
        if re.match(r"(no)?config\.", name):
            # A field that is a bool may be given without a value.
            is_value = not given and not following.startswith("--")
        elif plain in flags.FLAGS:
            is_value = not given and not flags.FLAGS[plain].boolean
        # Those of help are there only once absl has started the program.
        elif not name.startswith("help"):
            unknown.append(argument.partition("=")[0])
    return {flag: _unknown(flag) for flag in unknown}


def _unknown(flag: str) -> str:
    names = [name for name in flags.FLAGS if name not in ("?", "h")]
    near = difflib.get_close_matches(flag.lstrip("-"), names, n=1)
    meant = f" Did you mean --{near[0]}?" if near else " --help lists what there is."
    return f"{flag} is no flag of this program.{meant}"
