"""Reads and verifies the results of a finished run's evaluation."""

import pathlib
from typing import Any

from lsrjax.checkpoint import digests
from lsrjax.checkpoint.set_damaged_aside import listing
from lsrjax.errors import InputError
from lsrjax.retrieval import results_file
from lsrjax.retrieval.results_file import RESULTS_FILE

CONFIG_FILE = "config.json"
DIGESTS_FILE = "results.digests.json"


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """The results of a run, or none; InputError if they changed since written."""
    found = {}
    # Earlier releases wrote no digests.
    if (workdir / RESULTS_FILE).is_file() and (workdir / DIGESTS_FILE).is_file():
        found = digests.unsealed(workdir, [RESULTS_FILE], workdir / DIGESTS_FILE)
    if found:
        raise InputError(
            f"The results in {workdir} are not as they were written:\n"
            f"{listing(found)}\nStart the run again, which evaluates it again."
        )
    return results_file.read(workdir / RESULTS_FILE)
