"""The batches that a stage skips because their steps were bad."""

import operator
import pathlib

from lsrjax import json_files
from lsrjax.data.batching import loader
from lsrjax.distributed import processes

FILE = "left_out.json"


def left_out(folder: pathlib.Path) -> list[int]:
    """The numbers of the batches that a stage skips."""
    path = folder / FILE
    if not path.is_file():
        return []
    advice = (
        "It has the numbers of the batches that the stage is trained without, as"
        ' {"batches": [7]}; the log names them. Put them back, or start over with'
        " another --workdir."
    )
    return json_files.read_json(
        path, advice, lambda found: sorted(map(operator.index, found["batches"]))
    )


def leave_out(folder: pathlib.Path, step: int) -> list[int]:
    """Makes the stage skip the batch of a step (from 1); returns all it skips."""
    known = left_out(folder)
    # All processes have read the file before one writes it.
    processes.wait_for_all(f"left out at {step}, after {len(known)}")
    batches = sorted([*known, loader.batch_of(step - 1, known)])
    if processes.is_first():
        json_files.write_json(folder / FILE, {"batches": batches})
    processes.wait_for_all(f"left out: {batches}")
    return batches
