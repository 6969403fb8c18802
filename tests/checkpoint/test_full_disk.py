"""A run whose disk fills up, and one whose last checkpoint rots: how they end."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest
from programs import flip_bits
from rich.console import Console

from lsrjax.checkpoint import digests, saved_model, set_damaged_aside, train_states
from lsrjax.config.fields import get_default
from lsrjax.errors import TrainingFailed
from lsrjax.training import run, trackers


def tiny_config(data):
    """12 steps of a SPLADE that compiles fast, with checkpoints at 4, 8 and 12."""
    rows = [{"query": f"query {i}", "pos": [f"text {i}"], "neg": []} for i in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = get_default()
    c.model.head = "splade"
    c.model.family = "bert"
    c.model.hidden_size = 16
    c.model.num_layers = 1
    c.model.num_heads = 2
    c.model.intermediate_size = 16
    c.model.max_length = 8
    c.model.dropout = 0.1
    c.tokenizer = str(flip_bits.GOLDEN / "bert")
    c.data.source = "files"
    c.data.source.files = str(data)
    c.data.query_length = c.data.document_length = 8
    c.data.length_parts = 1
    c.data.group_size = 1
    c.loss = {"infonce": {}}
    c.batch_size = 4
    c.steps = 12
    c.checkpoint.every = 4
    c.log.every = 1
    return c


@pytest.fixture(scope="module")
def run_quietly(tmp_path_factory):
    """Runs it; returns what it printed."""
    data = tmp_path_factory.mktemp("data") / "groups.jsonl"

    def run_(workdir, **fields):
        config = tiny_config(data)
        for name, value in fields.items():
            config.checkpoint[name] = value
        console = Console(file=io.StringIO(), width=300)
        run.run(config, workdir, console)
        return console.file.getvalue()

    return run_


@pytest.fixture(scope="module")
def alone(tmp_path_factory, run_quietly):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run_quietly(workdir)
    return workdir


@pytest.fixture
def disk(tmp_path):
    """A file system of 50 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Takes the last byte of a file system."""
    with open(folder / "filler", "ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    assert shutil.disk_usage(folder).free == 0


def fill_after_save(workdir, step):
    """Fills the disk once a step is saved, which is written beside the training."""
    deadline = time.monotonic() + 600
    while not digests.record_path(workdir / "train", step).is_file():
        assert time.monotonic() < deadline, f"step {step} was never saved"
        time.sleep(0.01)
    fill(workdir.parent)


def at_steps(monkeypatch, actions):
    """Does something before a step is logged."""
    log = trackers.Tracker.log

    def logged(self, step, numbers):
        actions.get(step, lambda: None)()
        log(self, step, numbers)

    monkeypatch.setattr(trackers.Tracker, "log", logged)


def assert_same_run(found, wanted):
    """Parameters and losses, bit for bit."""
    a, b = (
        saved_model.load_model(workdir / "train").params for workdir in (found, wanted)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)
    rows = []
    for workdir in (found, wanted):
        lines = (workdir / "train/metrics.jsonl").read_text().splitlines()
        rows.append([(json.loads(x)["step"], json.loads(x)["loss"]) for x in lines])
    assert rows[0] == rows[1] and len(rows[0]) == 12


@pytest.mark.slow
def test_a_finished_run_whose_last_checkpoint_is_damaged_trains_on(
    alone, tmp_path, run_quietly
):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    files = digests.read(workdir / "train", 12).files
    path = (
        workdir
        / "train"
        / max(files, key=lambda name: (name[:5] == "check", files[name]))
    )
    flip_bits.strike(path, np.random.default_rng(0))
    said = run_quietly(workdir)
    assert "step 12 is damaged" in said and path.name in said
    assert "goes on at step 8 of 12" in said
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
    alone, disk, monkeypatch, run_quietly
):
    workdir = disk / "run"
    with monkeypatch.context() as patch:
        at_steps(patch, {6: lambda: fill_after_save(workdir, 4)})
        with pytest.raises(TrainingFailed) as error:
            run_quietly(workdir)
    found = re.search(
        r"Step 8 was not saved: it needs ([\d,]+) bytes", str(error.value)
    )
    assert int(found[1].replace(",", "")) > 2**20
    assert f"{workdir / 'train'} has 0 free" in str(error.value)
    assert not digests.damage(workdir / "train", 4)
    (disk / "filler").unlink()
    assert "goes on at step 4 of 12" in run_quietly(workdir)
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_a_run_may_train_on_over_a_full_disk(alone, disk, monkeypatch, run_quietly):
    workdir = disk / "run"
    room = (disk / "filler").unlink
    at_steps(monkeypatch, {6: lambda: fill_after_save(workdir, 4), 10: room})
    said = run_quietly(workdir, on_full_disk="go_on")
    assert "Step 8 was not saved: it needs" in said and "Training goes on" in said
    assert digests.recorded_steps(workdir / "train") == [4, 12]
    assert_same_run(workdir, alone)


def big(step):
    """About 14 MB that cannot be made smaller."""
    rng = np.random.default_rng(step)
    numbers = rng.integers(0, 2**32, size=3_500_000, dtype=np.uint32)
    return {"step": np.int32(step), "params": {"numbers": numbers}}


@pytest.mark.slow
def test_a_disk_that_fills_while_a_checkpoint_is_written_is_survived(disk, monkeypatch):
    notes = []
    checkpoints = train_states.Checkpoints(disk, keep=9, metric="-", note=notes.append)
    for step in (1, 2, 3):
        checkpoints.save(big(step), None, last=True)
    free = shutil.disk_usage(disk).free
    with pytest.raises(TrainingFailed, match=rf"it needs 15,.* has {free:,} free"):
        checkpoints.save(big(4), None)
    # Whatever another program takes after the look at the free bytes.
    monkeypatch.setattr(train_states, "needed_bytes", lambda state: 0)
    checkpoints.save(big(4), None)
    checkpoints.close()
    (said,) = notes
    assert "Step 4 was not saved: No space left on device" in said
    assert shutil.disk_usage(disk).free >= free - 2**16
    assert [set_damaged_aside.take_stock(disk, notes.append), len(notes)] == [3, 1]
    assert not any(digests.damage(disk, step) for step in (1, 2, 3))
    assert sorted(os.listdir(disk / "checkpoints")) == ["1", "2", "3"]
