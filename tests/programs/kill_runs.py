"""Kills a short run at random moments and looks at what comes of it.

python kill_runs.py KILLS FOLDER [SEED]

A run of all stages of `configs/tiny_demo.py` is left alone; others of the same config
are killed with SIGKILL, at moments drawn evenly over the time that it took, and started
again until they end. Each that ends has to be the one left alone: parameters of all
stages bit for bit, losses and dev metrics of all steps, results. Prints the counts
and ends with 1 if a run was lost or differs.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from lsrjax import checkpoint

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "tiny_demo.py"
STAGES = ("teacher", "align", "distill")
NUMBERS = ("step", "loss", "grad_norm", "dev_nDCG@10")
# A run that ends by itself ends long before.
PATIENCE = 900


def start(workdir: pathlib.Path, cache: pathlib.Path, *flags: str) -> subprocess.Popen:
    """Starts the run, or starts it again; what it compiles is shared by all."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lsrjax.main", "--config", str(CONFIG)]
        + ["--workdir", str(workdir), *flags],
        env=os.environ | kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def to_its_end(workdir: pathlib.Path, cache: pathlib.Path) -> str:
    """Lets the run end by itself; what it printed."""
    process = start(workdir, cache)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    return output


def kill_after(process: subprocess.Popen, seconds: float) -> bool:
    """Kills a process unless it ends before; whether it was killed.

    Raises:
      AssertionError: it ended with an error.
    """
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, output
    return False


def differences(found: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    """What two finished runs do not have in common; nothing if they are the same."""
    lines = []
    for stage in STAGES:
        a, b = (checkpoint.load_model(run / stage).params for run in (found, wanted))
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
        ):
            if not np.array_equal(x, y):
                lines.append(f"{stage}: {jax.tree_util.keystr(path)}")
        a, b = (_numbers(run / stage) for run in (found, wanted))
        if a != b:
            lines.append(f"{stage}: metrics.jsonl")
    a, b = ((run / "results.json").read_text() for run in (found, wanted))
    return lines + ["results.json"] * (a != b)


def _numbers(stage: pathlib.Path) -> list[list]:
    lines = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [[line.get(name) for name in NUMBERS] for line in lines]


def campaign(folder: pathlib.Path, alone: pathlib.Path, cache, kills: int, seed: int):
    """Kills runs until there were so many kills.

    Args:
      folder: where the runs go.
      alone: the finished run that was left alone.
      cache: of what is compiled.
      kills: in all.
      seed: of the moments.

    Returns:
      `{"kills", "runs", "differ"}`: how often a run was killed, how many runs came to
      their end, and the differences of those that are not as the one left alone.
    """
    moments = random.Random(seed)
    probe = folder / "probe"
    began = time.monotonic()
    to_its_end(probe, cache)
    span = time.monotonic() - began
    count = {"kills": 0, "runs": 1, "differ": differences(probe, alone)}
    while count["kills"] < kills:
        workdir = folder / f"run{count['runs']}"
        while count["kills"] < kills:
            killed = kill_after(start(workdir, cache), moments.uniform(0, span))
            count["kills"] += killed
            if not killed:
                break
        to_its_end(workdir, cache)
        count["runs"] += 1
        count["differ"] += differences(workdir, alone)
        print(json.dumps(count), flush=True)
    return count


if __name__ == "__main__":
    kills, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    to_its_end(folder / "alone", folder / "cache")
    found = campaign(folder, folder / "alone", folder / "cache", kills, seed)
    sys.exit(bool(found["differ"]))
