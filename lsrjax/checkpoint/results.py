"""Reads and verifies the results of a finished run's evaluation."""

import json
import pathlib

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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = {RESULTS_FILE: str(error)}
    if found:
        raise InputError(
            f"The results in {workdir} are not as they were written:\n"
            f"{listing(found)}\nStart the run again, which evaluates it again."
        )
    _check_objects(path, "its content", values, below=2)
    return values


def _check_objects(path: pathlib.Path, name: str, value, below: int) -> None:
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: {name} is {value!r}, which has to be an object. Put back the file"
            " that the run wrote."
        )
    for key, one in value.items() if below else ():
        _check_objects(path, key, one, below - 1)
