"""`lsrjax.main`, with a record of what it is trained on and what comes out.

python recorded_main.py RECORD SNAPSHOT_STEP FLAGS…

Process N of the run writes RECORD.N, a JSON line for each
- batch that is made: `{"batch", "shape", "texts"}`, its number, the shape it took and
  the texts that the student encodes, as ids;
- step: `{"step", "numbers"}`, not rounded;
- and in the end `{"compiled", "shapes"}`, the training steps that were compiled, and
  the shapes in the table.

With a SNAPSHOT_STEP that is not 0, once a later step is logged while that step's
checkpoint is there, the work directory is copied beside itself, to
`<workdir>.snapshot`: what a kill at this moment would leave.
"""

import atexit
import json
import pathlib
import re
import runpy
import shutil
import sys
import threading
import time

import jax

from lsrjax.data.batching import loader
from lsrjax.training import trackers

_LOCK = threading.Lock()
_TABLES = []


def record(path: str, values: dict) -> None:
    with _LOCK, open(f"{path}.{jax.process_index()}", "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def texts_of(batch: dict) -> list[list[int]]:
    """Token ids of the texts without padding, sorted."""
    return sorted(
        row[mask > 0].tolist()
        for part in batch["student"]["parts"]
        for row, mask in zip(part["ids"], part["mask"], strict=True)
    )


def record_batches(path: str) -> None:
    make = loader.Batches.__getitem__

    def made(self, index):
        batch = make(self, index)
        parts = ["{}x{}".format(*p["ids"].shape) for p in batch["student"]["parts"]]
        values = {"batch": index, "shape": parts, "texts": texts_of(batch)}
        record(path, values)
        _TABLES.append(len(self.shapes))
        return batch

    loader.Batches.__getitem__ = made


def record_steps(path: str, snapshot_step: int, workdir: pathlib.Path) -> None:
    def recorded(log):
        def logged(self, step, numbers):
            record(path, {"step": step, "numbers": dict(numbers)})
            log(self, step, numbers)
            if snapshot_step and step == snapshot_step + 2 and not jax.process_index():
                snapshot(workdir, snapshot_step)

        return logged

    for kind in (trackers.Tracker, trackers.Silent):
        kind.log = recorded(kind.log)


def snapshot(workdir: pathlib.Path, step: int) -> None:
    # Checkpoints are written beside the training, and count with their digests.
    while not list(workdir.glob(f"*/digests/{step}.json")):
        time.sleep(0.01)
    shutil.copytree(workdir, workdir.with_name(workdir.name + ".snapshot"))


def count_compiled(path: str) -> None:
    compiled = []

    def count(event, seconds, fun_name="", **_):
        # The step is an object, which has no name as functions have.
        if event.endswith("backend_compile_duration") and "unnamed" in fun_name:
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)

    def end():
        values = {"compiled": len(compiled), "shapes": max(_TABLES, default=0)}
        record(path, values)

    atexit.register(end)


if __name__ == "__main__":
    path, snapshot_step, *flags = sys.argv[1:]
    workdir = pathlib.Path(re.search(r"--workdir\n(.*)", "\n".join(flags))[1])
    record_batches(path)
    record_steps(path, int(snapshot_step), workdir)
    count_compiled(path)
    sys.argv[1:] = flags
    runpy.run_module("lsrjax.main", run_name="__main__")
