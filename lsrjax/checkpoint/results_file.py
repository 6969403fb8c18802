"""Reads and verifies the results of a finished run's evaluation."""

import pathlib

from lsrjax import json_files
from lsrjax.checkpoint import digests
from lsrjax.checkpoint.set_damaged_aside import listing
from lsrjax.errors import InputError

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
DIGESTS_FILE = "results.digests.json"


def read(workdir: pathlib.Path) -> dict:
    """The results of a run, or none; InputError if they changed since written."""
    path = workdir / RESULTS_FILE
    if not path.is_file():
        return {}
    found = {}
    # Earlier releases wrote no digests.
    if (workdir / DIGESTS_FILE).is_file():
        found = digests.unsealed(workdir, [RESULTS_FILE], workdir / DIGESTS_FILE)
    if found:
        raise InputError(
            f"The results in {workdir} are not as they were written:\n"
            f"{listing(found)}\nStart the run again, which evaluates it again."
        )
    return json_files.read_json(path, "Put back the file that the run wrote.", _nested)


def _nested(values: dict) -> dict:
    for below in (values, *values.values()):
        for key, value in below.items():
            if not isinstance(value, dict):
                raise TypeError(f"{key} is {value!r}, which has to be an object")
    return values
