"""Signals runs in one phase after the other, and compares them with one left alone.

python signalled.py FOLDER ROUNDS [SEED]

Prints a JSON line for each process that was signalled: `{"round", "phase", "delay",
"code", "seconds", "step"}`, with the seconds from the signal to its end; and in the end
`{"rounds", "same"}`, how many of the rounds ended with the metrics and, bit for bit,
the parameters of the run that was left alone.

A round is one run that is signalled in each phase and started again. Its processes are
forks of this one, which has imported everything and used no device.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import threading
import time

from forked import ended, spawn

# isort: split
import jax
import numpy as np

from lsrjax.distributed import activity

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "survived.py"
FLAGS = ["--config.evaluate.test=debian", "--config.evaluate.split=dev"]
# In which phase to signal, counted from the process's start, and at most how many
# seconds later; in an order in which each of them comes.
PHASES = (
    (activity.PREPARING, 1, 1.0),
    (activity.COMPILING, 1, 1.0),
    (activity.STEPPING, 2, 0.1),
    (activity.SAVING, 1, 0.05),
    (activity.EVALUATING, 1, 0.05),
    (activity.SAVING, 1, 0.05),
    (activity.DATA, 2, 0.05),
    (activity.RESULTS, 1, 2.0),
)


def signal_in(phase: str, count: int, delay: float, mark: pathlib.Path) -> None:
    """Sends this process SIGTERM once it is in a phase for the `count`-th time."""
    entered = [0]
    at = activity.Progress.at

    def kill():
        mark.write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def counted(self, name):
        with at(self, name):
            entered[0] += name == phase
            if name == phase and entered[0] == count:
                entered[0] += 1
                threading.Timer(delay, kill).start()
            yield

    activity.Progress.at = counted


def start(workdir: pathlib.Path, prepare=lambda: None) -> tuple[int, float]:
    """Runs `lsrjax.main` in a fork; its exit status, and when it ended."""
    return ended(spawn(CONFIG, workdir, prepare, FLAGS)), time.time()


def results(workdir: pathlib.Path):
    """What must not depend on how often a run was stopped."""
    from lsrjax.checkpoint import saved_model

    lines = (workdir / "train" / "metrics.jsonl").read_text().splitlines()
    named = ("step", "loss", "grad_norm", "dev_nDCG@10")
    numbers = [{n: json.loads(line).get(n) for n in named} for line in lines]
    table = (workdir / "results.json").read_bytes()
    return (numbers, table), saved_model.load_model(workdir / "train").params


def same(found, wanted) -> bool:
    """Whether metrics and parameters are equal, bit for bit."""
    from lsrjax.distributed.trees import path_name

    leaves = [
        {
            path_name(path): np.asarray(leaf).tobytes()
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        for _, params in (found, wanted)
    ]
    return found[0] == wanted[0] and leaves[0] == leaves[1]


def main(folder: pathlib.Path, rounds: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    code, _ = start(folder / "alone")
    assert code == 0, (folder / "alone.out").read_text()
    runs = []
    for number in range(rounds):
        workdir, mark = folder / f"round{number}", folder / "mark"
        workdir.mkdir()
        for phase, count, most in PHASES:
            # What was compiled is read back, but where the compiler is to be stopped.
            cache = workdir / "compiled"
            shutil.rmtree(cache, ignore_errors=True)
            if phase != activity.COMPILING:
                shutil.copytree(folder / "alone" / "compiled", cache)
            mark.unlink(missing_ok=True)
            delay = draw.uniform(0, most)
            how = phase, count, delay, mark
            code, ended = start(workdir, lambda how=how: signal_in(*how))
            told = {"round": number, "phase": phase, "delay": round(delay, 3)}
            sent = float(mark.read_text()) if mark.is_file() else float("nan")
            told |= {"code": code, "seconds": round(ended - sent, 2)}
            print(json.dumps(told), flush=True)
        code, _ = start(workdir)
        assert code == 0, workdir.with_suffix(".out").read_text()
        runs.append(workdir)
    wanted = results(folder / "alone")
    equal = sum(same(results(workdir), wanted) for workdir in runs)
    print(json.dumps({"rounds": rounds, "same": equal}), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int([*sys.argv, 0][3]))
