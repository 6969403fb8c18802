"""Writes a page about a run, or about several to compare them: one HTML file.

    lsrjax report runs/demo
    lsrjax report runs/demo runs/other --out both.html
    lsrjax report runs/demo --png pictures

It has curves of the loss and its parts, lambdas, active terms, dev metrics, speed,
padding and memory; results by language and system; what a document costs; queries with
their terms and documents; and the fields of the configs that differ: from the defaults,
or between the runs. A RUN is a run's work directory, finished or not, or a folder of
lsrjax evaluate --out. The file needs no network, and holds no script. A run writes its
own at the end, report.html in its work directory.

--png also writes each table and chart as a picture, with Chromium or Chrome.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from lsrjax import paths
from lsrjax.cli import exits, pictures
from lsrjax.cli.parsing import Parser
from lsrjax.distributed import safe_output
from lsrjax.errors import InputError
from lsrjax.training.report import write


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    runs = [pathlib.Path(paths.local(run, "RUN")) for run in args.runs]
    if args.out:
        out = pathlib.Path(paths.local(args.out, "--out"))
    elif len(runs) > 1:
        raise InputError("Of several runs: name the file, --out FILE.html.")
    else:
        out = runs[0] / write.REPORT_FILE
    write.write(runs, out)
    print(f"Written to {out}")
    if args.png:
        folder = pathlib.Path(paths.local(args.png, "--png"))
        for path in pictures.write(runs, folder):
            print(f"Written to {path}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a work directory")
    add("--out", metavar="FILE", help="the page; of one run RUN/report.html")
    add("--png", metavar="FOLDER", help="also write each table and chart as a picture")
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    main()
