"""Writes reports."""

import pathlib
from collections.abc import Callable, Sequence

from lsrjax import json_files
from lsrjax.training.report import page, records

REPORT_FILE = "report.html"


def write(folders: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Writes the report of some runs, whole or not at all.

    Raises:
      InputError: a folder is of no run, or one of its files is damaged.
    """
    json_files.write_whole(out, page.page(records.read(folders)))


def at_the_end(workdir: pathlib.Path, note: Callable[[str], None]) -> None:
    """Writes the report of a run into its folder; whatever is wrong is only noted."""
    out = workdir / REPORT_FILE
    try:
        write([workdir], out)
        note(f"Report: {out}")
    except Exception as error:  # the run itself is complete
        note(f"{out} could not be written: {error}")
