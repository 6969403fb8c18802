"""The flags of `lsrjax train` and `lsrjax doctor`: a config, its fields, a run."""

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from lsrjax import errors, paths
from lsrjax.cli.parsing import Parser
from lsrjax.config import fields
from lsrjax.config.other_names import field_of
from lsrjax.distributed import processes
from lsrjax.errors import InputError

_FIELD = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


class _OfRun(Parser):
    def _unknown(self, flag: str) -> str:
        bare = flag.lstrip("-").replace("-", "_")
        if field := field_of(bare, fields.fields(fields.get_default())):
            return f"{flag} is no flag of {self.prog}; set --config.{field}."
        return super()._unknown(flag)


def parser(program: str, description: str | None) -> Parser:
    """The flags of a run, for the subcommand `program`."""
    made = _OfRun(
        prog=f"lsrjax {program}",
        description=description,
        epilog="--config.x.y=VALUE sets a field of the config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add(
        "--config",
        metavar="FILE",
        help="the experiment: a Python file, or the name of one that comes with lsrjax:"
        f" {', '.join(fields.recipes())}",
    )
    add(
        "--workdir",
        metavar="DIR",
        help="where checkpoints and results go (runs/NAME of the config's file); a"
        " folder, or gs://BUCKET/PATH or s3://BUCKET/PATH",
    )
    add_processes(made)
    return made


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `processes.start` and `processes.apart`."""
    several = parser.add_argument_group(
        "several processes", "Under SLURM these come from the job."
    )
    add = several.add_argument
    add("--coordinator", metavar="HOST:PORT", help="of process 0, where all meet")
    add("--num_processes", type=int, metavar="N", help="processes of the run")
    add("--process_id", type=int, metavar="I", help="this one's number, from 0")
    add(
        "--tpu_pod",
        action="store_true",
        help="join the processes of the TPU pod that this program runs on",
    )


@dataclasses.dataclass
class Given:
    """A parsed command line.

    Attributes:
      config_path: the config's file; None without --config.
      config: with the fields of the command line set; None without --config or if it
        has errors.
      unknown: messages about unknown flags and arguments.
      wrong: messages about errors in the config or a flag's value.
    """

    flags: argparse.Namespace
    config_path: pathlib.Path | None = None
    config: ConfigDict | None = None
    unknown: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def workdir(self) -> str:
        """The run's folder, or its place in a bucket; see `paths.workdir`."""
        assert self.config_path  # the commands with a workdir need a config
        named = self.flags.workdir or f"runs/{self.config_path.stem}"
        return paths.workdir(named, "--workdir")

    def join(self) -> None:
        """Joins the run's processes with `processes.start`."""
        one = self.flags
        processes.start(
            one.coordinator, one.num_processes, one.process_id, tpu_pod=one.tpu_pod
        )


def parse(known: Parser, argv: Sequence[str]) -> Given:
    """Parses a command line with a `parser`; errors are returned, not raised."""
    values, rest = _take_fields(known, argv)
    try:
        flags, left = known.parse_known_args(rest)
    except InputError as error:
        return Given(argparse.Namespace(), wrong=[str(error)])
    given = Given(flags)
    given.unknown = known.unknown(left)
    if given.flags.config is not None:
        try:
            _read_config(given, values)
        except InputError as error:
            given.config_path = None
            given.wrong += error.args
    elif values:
        given.wrong.append("--config.… sets a field, but there is no --config FILE.")
    return given


def _take_fields(
    known: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The config fields that are set, and the other arguments.

    Joins a flag and its value into one argument, because argparse rejects values that
    look like a flag, such as -1.
    """
    takes_value = {
        name
        for name, action in known._option_string_actions.items()
        if action.nargs is None
    }
    values: list[tuple[str, str | None]] = []
    rest: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        match = _FIELD.fullmatch(argument)
        if match:
            no, field, value = match.groups()
            if no:
                value = "false"
            elif value is None and left and not left[0].startswith("--"):
                value = left.pop(0)
            values.append((field, value))
        elif argument in takes_value and left:
            rest.append(f"{argument}={left.pop(0)}")
        else:
            rest.append(argument)
    return values, rest


def _read_config(given: Given, values: list[tuple[str, str | None]]) -> None:
    path, arguments = fields.located(given.flags.config)
    config = fields.load(path, arguments)
    with errors.together() as each:
        for field, value in values:
            with each:
                fields.set_field(config, field, value, "--config")
    given.config_path, given.config = path, config
