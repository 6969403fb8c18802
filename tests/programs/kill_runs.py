"""Kills a short run at chosen or at random moments and looks at what comes of it.

python kill_runs.py random KILLS FOLDER [SEED]
python kill_runs.py chosen FOLDER

One run is left alone; others of the same config are killed with SIGKILL, at moments
drawn evenly over the time that one takes or one after the other in each of `CHOSEN`,
and started again until they end. Each that ends has to be the one left alone:
parameters of all stages bit for bit, losses and dev metrics of all steps, results; and
to be found finished when it is started again. Prints the counts as JSON after every
run: `{"kills", "runs", "lost", "differ"}`; and ends with 1 if a run was lost or
differs.
"""

import functools
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

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
NUMBERS = ("step", "loss", "grad_norm", "dev_nDCG@10")


def steps_logged(workdir: pathlib.Path, stage: str) -> int:
    path = workdir / stage / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


# When to kill the tiny demo: one condition after the other, each in a process of its
# own. Between them lie training, a stage's preparation, and the evaluation.
CHOSEN = {
    "before the teacher's first checkpoint": lambda w: steps_logged(w, "teacher") >= 2,
    "in the teacher": lambda w: steps_logged(w, "teacher") >= 6,
    "while align starts": lambda w: (w / "align" / "model.json").is_file(),
    "while negatives are mined": lambda w: (w / "distill" / "model.json").is_file(),
    "while evaluating": lambda w: (w / "distill" / "done.json").is_file(),
}


def over(child: int) -> bool:
    """Whether a process has ended; it is still to be waited for."""
    return bool(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def kill_when(child: int, condition, seconds: float) -> bool:
    """Kills a process once a condition holds, unless it ends before.

    Returns:
      Whether it was killed.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if over(child):
            return False
        assert time.monotonic() < deadline, "the run never came to the kill point"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return True


def kill_after(child: int, seconds: float) -> bool:
    """Kills a process unless it ends before; whether it was killed."""
    until = time.monotonic() + seconds
    return kill_when(child, lambda: time.monotonic() >= until, seconds + 60)


def differences(found: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    """What two finished runs do not have in common; nothing if they are the same."""
    lines = []
    for stage in sorted(path.parent.name for path in wanted.glob("*/done.json")):
        a, b = (saved_model.load_model(run / stage).params for run in (found, wanted))
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
        ):
            if np.asarray(x).tobytes() != np.asarray(y).tobytes():
                lines.append(f"{found}, {stage}: {jax.tree_util.keystr(path)}")
        a, b = (_numbers(run / stage) for run in (found, wanted))
        if a != b:
            lines.append(f"{found}, {stage}: metrics.jsonl")
    a, b = (
        [path.read_bytes() for path in run.glob("results.json")]
        for run in (found, wanted)
    )
    return lines + [f"{found}: results.json"] * (a != b)


def _numbers(stage: pathlib.Path) -> list[list]:
    lines = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [[line.get(name) for name in NUMBERS] for line in lines]


def killed_run(start, moments, kills: int) -> tuple[int, int]:
    """Starts a run until it ends; how often it was killed, and its exit status."""
    count = 0
    while True:
        child = start()
        killed = count < kills and kill_after(child, next(moments))
        code = ended(child)
        # One that had ended in the moment of the kill was not killed.
        count += killed and code == -signal.SIGKILL
        if code != -signal.SIGKILL:
            return count, code


def left_alone(config: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A run to its end; with `compiled`, which the others read back."""
    folder.mkdir(parents=True, exist_ok=True)
    alone = folder / "alone"
    assert ended(spawn(config, alone)) == 0, alone.with_suffix(".out").read_text()
    return alone


def at_random(kills: int, folder: pathlib.Path, seed: int) -> dict:
    """The counts of runs of two stages."""
    config = CONFIGS / "two_stages.py"
    alone = left_alone(config, folder)
    # With what is compiled read back, as in the runs that are killed.
    again = folder / "again"
    shutil.copytree(alone / "compiled", again / "compiled")
    began = time.monotonic()
    assert ended(spawn(config, again)) == 0, again.with_suffix(".out").read_text()
    span = time.monotonic() - began
    draw = random.Random(seed)
    moments = iter(lambda: draw.uniform(0, span), None)
    runs, lost, count = [again], [], 0
    while count < kills:
        workdir = folder / f"run{len(runs) + len(lost)}"
        shutil.copytree(alone / "compiled", workdir / "compiled")
        start = functools.partial(spawn, config, workdir)
        killed, code = killed_run(start, moments, kills - count)
        count += killed
        (lost if code else runs).append(workdir)
        told = {"kills": count, "runs": len(runs), "lost": len(lost)}
        print(json.dumps(told), flush=True)
    # Nothing here has used a device so far, as forks must not have.
    differ = [line for run in runs for line in differences(run, alone)]
    return {**told, "differ": differ}


def at_chosen(folder: pathlib.Path) -> dict:
    """The counts of one run of the tiny demo, and whether it is found finished."""
    config = CONFIGS / "tiny_demo.py"
    alone, killed = left_alone(config, folder), folder / "killed"
    shutil.copytree(alone / "compiled", killed / "compiled")
    count = 0
    for name, holds in CHOSEN.items():
        child = spawn(config, killed)
        if not kill_when(child, lambda holds=holds: holds(killed), 300):
            said = killed.with_suffix(".out").read_text()
            raise SystemExit(f"the run ended before the kill point, {name}:\n{said}")
        count += ended(child) == -signal.SIGKILL
    code = ended(spawn(config, killed))
    before = killed.with_suffix(".out").read_text()
    finished = ended(spawn(config, killed))
    said = killed.with_suffix(".out").read_text().removeprefix(before)
    told = {"kills": count, "runs": 2, "lost": int(code != 0)}
    found = finished == 0 and "is finished" in said and "bm25" in said
    differ = [] if code else differences(killed, alone)
    return {**told, "differ": differ + ([] if found else [f"again: {said}"])}


if __name__ == "__main__":
    if sys.argv[1] == "chosen":
        found = at_chosen(pathlib.Path(sys.argv[2]))
    else:
        kills, folder, *seed = sys.argv[2:]
        found = at_random(int(kills), pathlib.Path(folder), int([*seed, 0][0]))
    print(json.dumps(found), flush=True)
    sys.exit(bool(found["lost"] or found["differ"]))
