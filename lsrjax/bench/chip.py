"""`chip`: an accelerator's ceilings, and how close each piece of lsrjax comes."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

from lsrjax.bench.sizes import positive
from lsrjax.convert.read import presets

# Name of a piece -> its time limit in seconds.
LIMITS = {
    "machine": 60,
    "kernels": 90,
    "head": 90,
    "encoder": 90,
    "step splade-v3": 120,
    "step milco stage 1": 150,
    "step milco stage 2": 150,
    "torch encoder": 90,
    "torch step splade-v3": 120,
    "encode bfloat16": 100,
    "encode float32": 100,
    "kernel for Hopper": 60,
    "torch step splade-v3, compiled": 120,
}

_DESCRIPTION = """\
Measures, each in a process of its own that is ended when its time is up: the machine's
ceilings (a matrix product, a copy); whether every kernel equals its definition; the
head at its presets; the encoder alone; whole training steps, with the time to trace, to
compile and to the first result; the same encoder and step in PyTorch where it has the
device; encoding against SparseEncoder. On a CPU the sizes are tiny.
"""


def add_command(commands) -> None:
    """Adds `chip` to the program's commands."""
    parser = commands.add_parser(
        "chip",
        help="all pieces on one accelerator, each within a time limit",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=LIMITS,
        default=tuple(LIMITS),
        metavar="PIECE",
        help=f"pieces to measure: {', '.join(LIMITS)} (default: all)",
    )
    parser.add_argument(
        "--json", type=pathlib.Path, help="file for the figures, written as they come"
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=400,
        help="start no further piece after this time (default: 400)",
    )
    parser.add_argument(
        "--preset",
        choices=presets.PRESETS,
        metavar="ID",
        help="a checkpoint whose shape --dry_run knows; the encoder and the step of"
        " SPLADE, here and in PyTorch, have its shape in place of BERT base's",
    )
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures all pieces, or, in a subprocess, one."""
    if args.piece:
        from lsrjax.bench import chip_pieces

        args.json.write_text(
            json.dumps(chip_pieces.measure_piece(args.piece, args.preset))
        )
        return
    console = Console()
    found: dict[str, dict] = {}
    started = time.monotonic()
    for name in args.only:
        left = args.seconds - (time.monotonic() - started)
        if left <= 0:
            found[name] = {"not measured": f"after {args.seconds} s"}
        else:
            found[name] = _in_a_process(name, args.preset, min(LIMITS[name], left))
        console.print(_table(name, found[name]))
        if args.json:
            args.json.write_text(json.dumps(found, indent=1))


def _in_a_process(name: str, preset: str | None, limit: float) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "figures.json")
        command = [sys.executable, "-m", "lsrjax.bench", "chip", "--piece", name]
        command += ["--preset", preset] if preset else []
        started = time.monotonic()
        try:
            done = subprocess.run(
                [*command, "--json", str(out)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return {"not measured": f"not done after {limit:.0f} s"}
        seconds = round(time.monotonic() - started, 1)
        if done.returncode or not out.exists():
            last = done.stderr.strip().splitlines()[-8:]
            return {"not measured": "\n".join(last), "seconds": seconds}
        return json.loads(out.read_text()) | {"seconds in all": seconds}


def _table(name: str, figures: dict) -> Table:
    table = Table(title=name, title_justify="left", show_header=False)
    for key, value in figures.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        table.add_row(key, shown)
    return table
