"""`lsrjax train --dry_run`: what a run's steps take, without data and weights."""

import argparse
from collections.abc import Iterator

from rich.console import Console

from lsrjax.cli.flags import Given
from lsrjax.config import check_run
from lsrjax.distributed import processes, topology
from lsrjax.errors import InputError
from lsrjax.training import memory_plan


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --dry_run, and the flags that only it reads."""
    add = parser.add_argument_group("a plan instead of a run").add_argument
    add(
        "--dry_run",
        action="store_true",
        help="compile every stage's step and print what it takes; train nothing, read"
        " no data and no weights",
    )
    add("--devices", type=int, metavar="N", help="plan for N devices")
    add(
        "--topology",
        metavar="CHIPS",
        help="compile for chips that are not here, such as v5e:4x4 or h100:8; print"
        " what they exchange and how the step scales",
    )
    add("--device_gb", type=float, metavar="GB", help="memory of a device")


def without_effect(said: argparse.Namespace) -> Iterator[str]:
    """Names the flags that have no effect, since --dry_run is missing."""
    for name in ("devices", "topology", "device_gb"):
        if getattr(said, name) is not None and not said.dry_run:
            yield f"--{name} has no effect without --dry_run."


def plan(given: Given) -> None:
    """Prints the plan.

    Raises:
      InputError: a config that cannot be run, or flags that exclude each other.
    """
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
