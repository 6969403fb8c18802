"""Kills a short run of two stages at random moments and looks at what comes of it.

python kill_runs.py KILLS FOLDER [SEED]

One run is left alone; others of the same config are killed with SIGKILL, at moments
drawn evenly over the time that one takes, and started again until they end. Each that
ends has to be the one left alone: parameters of both stages bit for bit, losses and dev
metrics of all steps. Prints the counts as JSON after every run: `{"kills", "runs",
"lost", "differ"}`; and ends with 1 if a run was lost or differs.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

from forked import ended, spawn

# isort: split
import jax
import numpy as np

from lsrjax.checkpoint import saved_model

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "two_stages.py"
STAGES = ("first", "second")
NUMBERS = ("step", "loss", "grad_norm", "dev_nDCG@10")


def kill_after(child: int, seconds: float) -> bool:
    """Kills a process unless it ends before; whether it was killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return True


def differences(found: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    """What two finished runs do not have in common; nothing if they are the same."""
    lines = []
    for stage in STAGES:
        a, b = (saved_model.load_model(run / stage).params for run in (found, wanted))
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
        ):
            if np.asarray(x).tobytes() != np.asarray(y).tobytes():
                lines.append(f"{found}, {stage}: {jax.tree_util.keystr(path)}")
        a, b = (_numbers(run / stage) for run in (found, wanted))
        if a != b:
            lines.append(f"{found}, {stage}: metrics.jsonl")
    return lines


def _numbers(stage: pathlib.Path) -> list[list]:
    lines = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [[line.get(name) for name in NUMBERS] for line in lines]


def killed_run(workdir: pathlib.Path, moments, kills: int) -> tuple[int, int]:
    """Starts a run until it ends; how often it was killed, and its exit status."""
    count = 0
    while True:
        child = spawn(CONFIG, workdir)
        killed = count < kills and kill_after(child, next(moments))
        code = ended(child)
        # One that had ended in the moment of the kill was not killed.
        count += killed and code == -signal.SIGKILL
        if code != -signal.SIGKILL:
            return count, code


def main(kills: int, folder: pathlib.Path, seed: int) -> dict:
    """The counts."""
    folder.mkdir(parents=True, exist_ok=True)
    alone, compiled = folder / "alone", folder / "alone" / "compiled"
    assert ended(spawn(CONFIG, alone)) == 0, alone.with_suffix(".out").read_text()
    # With what is compiled read back, as in the runs that are killed.
    again = folder / "again"
    shutil.copytree(compiled, again / "compiled")
    began = time.monotonic()
    assert ended(spawn(CONFIG, again)) == 0, again.with_suffix(".out").read_text()
    span = time.monotonic() - began
    draw = random.Random(seed)
    moments = iter(lambda: draw.uniform(0, span), None)
    runs, lost, count = [again], [], 0
    while count < kills:
        workdir = folder / f"run{len(runs) + len(lost)}"
        shutil.copytree(compiled, workdir / "compiled")
        killed, code = killed_run(workdir, moments, kills - count)
        count += killed
        (lost if code else runs).append(workdir)
        told = {"kills": count, "runs": len(runs), "lost": len(lost)}
        print(json.dumps(told), flush=True)
    # Nothing here has used a device so far, as forks must not have.
    differ = [line for run in runs for line in differences(run, alone)]
    return {**told, "differ": differ}


if __name__ == "__main__":
    found = main(int(sys.argv[1]), pathlib.Path(sys.argv[2]), int([*sys.argv, 0][3]))
    print(json.dumps(found), flush=True)
    sys.exit(bool(found["lost"] or found["differ"]))
