"""Inspects checkpoints: lsrjax checkpoint ls|verify|diff DIR.

ls      steps of a stage or run, their sizes and dev metrics, and whether they are sound
verify  reads every byte of every step; status 1 and the files if any is damaged
diff    which arrays differ between two checkpoints; status 1 if any does
"""

import argparse
import contextlib
import pathlib
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from lsrjax.checkpoint import digests
from lsrjax.checkpoint.names_on_disk import CHECKPOINTS, committed_steps
from lsrjax.checkpoint.saved_model import host_arrays, stage_folders
from lsrjax.checkpoint.set_damaged_aside import listing
from lsrjax.cli import exits
from lsrjax.cli.parsing import Parser
from lsrjax.distributed import safe_output, trees
from lsrjax.errors import InputError


@exits.on_input_error()
def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax checkpoint",
        description="Looks at the checkpoints of a stage or of a run's stages.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, description, *folders):
        added = commands.add_parser(name, help=description, description=description)
        for folder, text in folders:
            added.add_argument(folder, type=pathlib.Path, help=text)
        added.set_defaults(run=run)
        return added

    where = ("DIR", "folder of a stage, or of a run with stages")
    step = "a checkpoint: STAGE/checkpoints/STEP, or STAGE for its last one"
    command(
        "ls",
        _ls,
        "List the steps: bytes, dev metrics, sound or damaged, which is the last and"
        " which the best. Reads every byte.",
        where,
    )
    verify = command(
        "verify",
        _verify,
        "Read every byte of every step and compare with the digests. Status 1 if a step"
        " is damaged or has no digests; the files are named.",
        where,
    )
    verify.add_argument(
        "--adopt",
        action="store_true",
        help="take the digests of steps that have none, as they are: for checkpoints"
        " that you trust, made by an lsrjax that wrote no digests",
    )
    command(
        "diff",
        _diff,
        "Compare the arrays of two checkpoints: shapes, types, the largest absolute"
        " difference of each. Status 1 if any differs.",
        ("A", step),
        ("B", step),
    )
    return parser


def _stages(folder: pathlib.Path) -> list[pathlib.Path]:
    # A damaged stage may lack its model.json.
    if (folder / CHECKPOINTS).is_dir():
        return [folder]
    found = {path.parent for path in folder.glob(f"*/{CHECKPOINTS}") if path.is_dir()}
    found |= set(stage_folders(folder))
    if not found:
        raise InputError(f"{folder} is neither a stage with checkpoints nor a run.")
    return sorted(found)


def _steps(folder: pathlib.Path) -> list[int]:
    return sorted({*committed_steps(folder), *digests.recorded_steps(folder)})


def _state(folder: pathlib.Path, step: int) -> tuple[str, dict[str, str]]:
    """A step's condition in a word, and its damaged files."""
    if step not in digests.recorded_steps(folder):
        return "no digests", {}
    found = digests.damage(folder, step)
    return ("damaged" if found else "sound"), found


def _ls(options) -> int:
    # Avoids cut columns if the output is not a terminal.
    width = None if sys.stdout.isatty() else 200
    table = Table("stage", "step", "bytes", "dev", "state", "", box=None)
    for column in (1, 2):
        table.columns[column].justify = "right"
    for folder in _stages(options.DIR):
        steps, dev = _steps(folder), {}
        rows = []
        for step in steps:
            size, shown = _size(folder / CHECKPOINTS / str(step)), ""
            with contextlib.suppress(digests.DamagedRecordError):
                dev[step] = digests.read(folder, step).dev
                shown = "  ".join(f"{k} {v:.4g}" for k, v in dev[step].items())
            rows.append((step, size, shown, _state(folder, step)[0]))
        # All steps of a stage are evaluated by the same metric.
        values = {step: max(found.values()) for step, found in dev.items() if found}
        best = max(values, key=lambda s: (values[s], s), default=None)
        for step, size, shown, state in rows:
            marks = ["last"] * (step == steps[-1]) + ["best"] * (step == best)
            row = folder.name, f"{step:,}", f"{size:,}", shown, state, ", ".join(marks)
            table.add_row(*row)
    Console(width=width, highlight=False).print(table)
    return 0


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _verify(options) -> int:
    bad = False
    for folder in _stages(options.DIR):
        for step in _steps(folder):
            state, found = _state(folder, step)
            if state == "no digests" and options.adopt:
                digests.write(folder, step, None)
                state = "digests taken of what is there"
            print(f"{folder}, step {step}: {state}")
            if found:
                print(listing(found))
            bad = bad or state in ("no digests", "damaged")
    return int(bad)


def _diff(options) -> int:
    a, b = (_arrays(path) for path in (options.A, options.B))
    lines = []
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            lines.append(f"{name}: only in {options.A if name in a else options.B}")
        elif line := _difference(a[name], b[name]):
            lines.append(f"{name}: {line}")
    print("\n".join(lines))
    same = len(a.keys() & b.keys()) - sum(": only in " not in line for line in lines)
    print(f"{len(lines):,} arrays differ, {same:,} are equal.")
    return int(bool(lines))


def _difference(a: np.ndarray, b: np.ndarray) -> str:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
    if a.tobytes() == b.tobytes():
        return ""
    # float64 holds all types, also bfloat16 and unsigned, which lack a difference.
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    count = int(np.count_nonzero(gap)) + int(np.count_nonzero(np.isnan(gap)))
    return f"{count:,} of {a.size:,} numbers, by {np.max(gap):.6g} at most"


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.name.isdecimal() or not path.is_dir():
        steps = committed_steps(path)
        if not steps:
            raise InputError(
                f"{path} holds no checkpoint. Give STAGE/checkpoints/STEP."
            )
        path = path / CHECKPOINTS / str(steps[-1])
    arrays = trees.named(host_arrays(path))
    return {name: np.asarray(leaf) for name, leaf in arrays.items()}


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    sys.exit(main())
