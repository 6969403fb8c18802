"""A checkpoint is used only as it was written; what fails is said and left behind."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from programs import flip_bits

from lsrjax.checkpoint import (
    digests,
    lock,
    saved_model,
    set_damaged_aside,
    train_states,
)
from lsrjax.cli import checkpoint as command
from lsrjax.errors import InputError, TrainingFailed

state = flip_bits.state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished stage with steps 10, 20 and 30, the best of which is the first."""
    folder = tmp_path_factory.mktemp("run") / "stage"
    return flip_bits.make(folder, dev={10: 0.7, 20: 0.4, 30: 0.5})


@pytest.fixture
def stage(made, tmp_path):
    """A copy to damage."""
    subprocess.run(["cp", "-r", str(made), str(tmp_path)], check=True)
    return tmp_path / "stage"


@pytest.fixture
def opened(tmp_path):
    """Opens checkpoints whose notes are kept, and closes them after the test."""
    opened = []

    def open_(folder=tmp_path, **options):
        notes = []
        options = {"keep": 2, "metric": "R@5", "note": notes.append} | options
        opened.append(train_states.Checkpoints(folder, **options))
        return opened[-1], notes

    yield open_
    for checkpoints in opened:
        checkpoints.close()


def stock(folder):
    notes = []
    return set_damaged_aside.take_stock(folder, notes.append), "\n".join(notes)


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def restored(folder, step):
    checkpoints = train_states.Checkpoints(folder, keep=2, metric="R@5")
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(step)
    )
    found = checkpoints.restore(abstract, step)
    checkpoints.close()
    return found


def array_file(folder, step):
    """The largest file of a step."""
    files = [p for p in (folder / f"checkpoints/{step}").rglob("*") if p.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_a_sound_stage_is_left_as_it_is(stage):
    before = {p: p.stat().st_mtime_ns for p in stage.rglob("*")}
    assert stock(stage) == (30, "")
    assert {p: p.stat().st_mtime_ns for p in stage.rglob("*")} == before
    assert not digests.damage(stage, 30)
    assert "model.json" in digests.read(stage, 30).files


def test_every_struck_file_is_found_and_the_step_before_is_restored():
    counts = flip_bits.count(30, seed=1, restore_every=10)
    assert counts["found"] + counts["found and restored"] == 30
    assert counts["found and restored"] == 3 and counts["flipped"] > 10


@pytest.mark.slow
def test_every_file_of_a_checkpoint_may_be_struck():
    counts = flip_bits.count(250, seed=2, restore_every=50)
    assert counts["found"] + counts["found and restored"] == 250
    assert counts["files struck"] == counts["files"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "cut to"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "grown to"),
        (flip, "other content than was written"),
        (
            lambda path: path.with_name("more").write_text(""),
            "more: not there when it was saved",
        ),
    ],
    ids=["missing", "cut", "grown", "flipped", "extra"],
)
def test_damage_is_named_and_set_aside_and_the_step_before_used(stage, harm, said):
    path = array_file(stage, 30)
    harm(path)
    newest, notes = stock(stage)
    assert newest == 20
    assert "step 30 is damaged" in notes and said in notes
    assert path.parent.relative_to(stage).as_posix() in notes
    assert (stage / "damaged/30").is_dir() and "goes on from step 20" in notes
    assert set_damaged_aside.finished_steps(stage) is None
    for a, b in zip(
        jax.tree.leaves(restored(stage, 20)), jax.tree.leaves(state(20)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    # Said once; then it is out of the way.
    assert stock(stage) == (20, "")


def test_a_file_that_cannot_be_read_is_damage(stage, monkeypatch):
    bad = array_file(stage, 30)
    real = digests._digest

    def digest(path):
        if path == bad:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(digests, "_digest", digest)
    newest, notes = stock(stage)
    assert newest == 20 and "unreadable (Input/output error)" in notes


def test_without_any_sound_step_a_stage_starts_from_the_beginning(stage):
    for step in (10, 20, 30):
        flip(array_file(stage, step))
    newest, notes = stock(stage)
    assert newest is None and "starts from the beginning" in notes
    assert {"10", "20", "30"} <= {p.name for p in (stage / "damaged").iterdir()}


@pytest.mark.parametrize("name", [False, 5, None])
def test_digests_of_what_is_no_file_are_damaged(tmp_path, name):
    path = digests.record_path(tmp_path, 7)
    path.parent.mkdir()
    files = [["model.json", 3, "00"], [name, 4, "01"]]
    path.write_text(json.dumps({"step": 7, "dev": {}, "files": files, "digest": ""}))
    with pytest.raises(digests.DamagedRecordError):
        digests.read(tmp_path, 7)


def test_a_step_killed_before_its_digests_is_set_aside(stage):
    digests.record_path(stage, 30).unlink()
    newest, notes = stock(stage)
    assert newest == 20 and "step 30 has no digests" in notes
    assert steps_in(stage) == [10, 20] and (stage / "damaged/30").is_dir()
    # Its last step is gone, so the stage is not finished, whatever its file says.
    assert set_damaged_aside.finished_steps(stage) is None


def test_the_same_step_may_be_set_aside_twice(stage):
    for _ in range(2):
        flip(array_file(stage, 30))
        assert stock(stage)[0] == 20
        checkpoints = train_states.Checkpoints(stage, keep=3, metric="R@5")
        checkpoints.save(state(30), None, last=True)
        checkpoints.close()
    assert stock(stage) == (30, "")
    assert {"30", "30-2"} <= {p.name for p in (stage / "damaged").iterdir()}


def test_a_damaged_tokenizer_is_made_again_but_not_another_one(stage):
    flip(stage / "tokenizer/tokenizer.json", place=100)
    newest, notes = stock(stage)
    assert newest == 30 and "tokenizer/tokenizer.json" in notes
    assert set_damaged_aside.finished_steps(stage) is None
    golden = flip_bits.GOLDEN
    saved_model.write_model_files(stage, flip_bits.SPEC, golden / "xlmr", None)
    with pytest.raises(InputError, match=r"(?s)trained with:.*tokenizer\.json"):
        restored(stage, 30)
    subprocess.run(["rm", "-r", str(stage / "tokenizer")], check=True)
    saved_model.write_model_files(stage, flip_bits.SPEC, golden / "bert", None)
    restored(stage, 30)
    assert saved_model.load_model(stage).spec == flip_bits.SPEC


@pytest.mark.parametrize("name", ["arrays", "model.json", "tokenizer/tokenizer.json"])
def test_a_damaged_model_is_not_loaded(stage, name):
    path = array_file(stage, 30) if name == "arrays" else stage / name
    flip(path, place=20)
    with pytest.raises(
        InputError, match=r"(?s)step 30, is damaged.*Start its run"
    ) as e:
        saved_model.load_model(stage)
    assert path.relative_to(stage).as_posix() in str(e.value)


def test_checkpoints_that_never_had_digests_are_told_what_to_do(stage, capsys):
    subprocess.run(["rm", "-r", str(stage / "digests")], check=True)
    for use in (saved_model.load_model, stock):
        with pytest.raises(InputError, match="verify --adopt"):
            use(stage)
    assert steps_in(stage) == [10, 20, 30]
    assert command.main(["verify", str(stage)]) == 1
    assert command.main(["verify", "--adopt", str(stage)]) == 0
    assert stock(stage) == (30, "")
    assert digests.read(stage, 10).dev == {"R@5": 0.7}
    flip(array_file(stage, 30))
    assert stock(stage)[0] == 20


def test_the_best_survives_the_damage_of_later_steps(stage, opened):
    flip(array_file(stage, 30))
    assert stock(stage)[0] == 20
    checkpoints, _ = opened(stage, keep=1)
    for step in (40, 50):
        checkpoints.save(state(step), {"R@5": 0.6})
    checkpoints.close()
    assert steps_in(stage) == [10, 50] == digests.recorded_steps(stage)


class Broken:
    """Orbax's writer, which fails from the background while `error` is set."""

    def __init__(self, monkeypatch):
        self.error = None
        real = ocp.StandardCheckpointHandler.async_save
        broken = self

        async def async_save(self, *args, **kwargs):
            futures = await real(self, *args, **kwargs)
            return [broken, *futures]

        monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", async_save)

    def result(self, timeout=None):
        if self.error:
            raise self.error


def test_a_save_that_fails_is_said_at_the_next_step_and_the_next_one_works(
    tmp_path, opened, monkeypatch
):
    broken = Broken(monkeypatch)
    checkpoints, notes = opened(keep=1)
    checkpoints.save(state(10), None)
    checkpoints.poll()
    checkpoints._settle()
    broken.error = OSError(28, "No space left on device")
    checkpoints.save(state(20), None)
    checkpoints._settler.join()  # as a step of training would take longer
    assert notes == []
    checkpoints.poll()
    (said,) = notes
    assert "Step 20 was not saved" in said and "No space left on device" in said
    assert steps_in(tmp_path) == [10] and checkpoints.latest_step() == 10
    assert not digests.damage(tmp_path, 10)
    broken.error = None
    checkpoints.save(state(30), None, last=True)
    assert steps_in(tmp_path) == [30] and len(notes) == 1


def test_the_last_save_has_to_succeed(tmp_path, opened, monkeypatch):
    broken = Broken(monkeypatch)
    checkpoints, _ = opened()
    checkpoints.save(state(10), None)
    checkpoints._settle()  # or the background's save of step 10 meets the error
    broken.error = PermissionError(13, "Permission denied")
    with pytest.raises(TrainingFailed, match=r"Step 20 was not saved.*Permission"):
        checkpoints.save(state(20), None, last=True)
    assert stock(tmp_path) == (10, "")
    # The same step once more, as a run that is about to be ended may ask for.
    broken.error = None
    checkpoints.save(state(20), None, last=True)
    checkpoints.save(state(20), None, last=True)
    assert stock(tmp_path) == (20, "")


def test_digests_that_cannot_be_written_make_a_save_fail(tmp_path, opened, monkeypatch):
    checkpoints, notes = opened()
    checkpoints.save(state(10), None)
    checkpoints._settle()

    def write(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digests, "write", write)
    checkpoints.save(state(20), None)
    checkpoints.close()
    assert len(notes) == 1 and "Step 20 was not saved" in notes[0]
    assert steps_in(tmp_path) == [10] and stock(tmp_path) == (10, "")


class Disk:
    """Says how much is free."""

    def __init__(self, monkeypatch, free):
        self.free = free
        monkeypatch.setattr(train_states.shutil, "disk_usage", lambda path: self)


@pytest.mark.parametrize("policy", ["stop", "go_on"])
def test_a_full_disk_is_foreseen(tmp_path, opened, monkeypatch, policy):
    checkpoints, notes = opened(on_full_disk=policy)
    checkpoints.save(state(10), None)
    checkpoints._settle()
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state(20)))
    disk = Disk(monkeypatch, arrays)
    said = rf"needs [\d,]+ bytes, and {tmp_path} has {arrays:,} free"
    if policy == "stop":
        with pytest.raises(TrainingFailed, match=f"{said}.*on_full_disk=go_on"):
            checkpoints.save(state(20), None)
    else:
        checkpoints.save(state(20), None)
        assert len(notes) == 1
        assert re.search(said, notes[0])
    with pytest.raises(TrainingFailed, match=said):
        checkpoints.save(state(30), None, last=True)
    assert steps_in(tmp_path) == [10] and stock(tmp_path) == (10, "")
    disk.free = 10**9
    checkpoints.save(state(30), None, last=True)
    assert steps_in(tmp_path) == [10, 30]


def test_a_folder_that_is_removed_is_no_full_disk(tmp_path, opened):
    checkpoints, _ = opened(tmp_path / "run" / "stage")
    checkpoints.save(state(10), None)
    checkpoints._settle()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(TrainingFailed, match=r"Step 20 .*was\s+removed") as error:
        checkpoints.save(state(20), None)
    assert "free" not in str(error.value)
    # Half of it, without what belongs to it, would look like a run.
    assert not (tmp_path / "run").exists()


def test_what_a_checkpoint_needs_is_not_more_than_was_foreseen(made):
    for step in flip_bits.STEPS:
        size = command._size(made / f"checkpoints/{step}")
        assert digests.read(made, step).size == size
        assert size < train_states.needed_bytes(state(step))


HOLD = """
import pathlib, sys
from lsrjax.checkpoint import lock
with lock.one_run(pathlib.Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_in_one_work_directory_are_refused(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    try:
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match="another run") as error,
            lock.one_run(tmp_path, print),
        ):
            pass
        values = json.loads((tmp_path / "lock").read_text())
        assert values["pid"] == process.pid
        for value in values.values():
            assert str(value) in str(error.value)
    finally:
        process.kill()
        process.communicate()
    # The lock of a killed run is nobody's.
    with lock.one_run(tmp_path, print):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    notes = []
    with lock.one_run(tmp_path, notes.append):
        assert "knows no locks" in notes[0]


def test_the_steps_are_listed(stage, capsys):
    flip(array_file(stage, 20))
    digests.record_path(stage, 30).unlink()
    assert command.main(["ls", str(stage.parent)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    size = f"{command._size(stage / 'checkpoints/10'):,}"
    assert lines[0] == ["stage", "10", size, "R@5", "0.7", "sound", "best"]
    assert lines[1][-1] == "damaged" and lines[2][-3:] == ["no", "digests", "last"]


def test_verify_names_the_files_by_its_status_and_changes_nothing(stage, capsys):
    assert command.main(["verify", str(stage)]) == 0
    assert capsys.readouterr().out.count(": sound") == 3
    path = array_file(stage, 20)
    flip(path)
    assert command.main(["verify", str(stage.parent)]) == 1
    said = capsys.readouterr().out
    assert "step 20: damaged" in said and said.count(": sound") == 2
    assert f"{path.relative_to(stage)}: other content" in said
    assert steps_in(stage) == [10, 20, 30]


def test_two_checkpoints_are_compared_array_by_array(tmp_path, capsys):
    first, second = state(10), state(10)
    second["params"]["encoder"]["embeddings"]["norm"]["scale"][3] += 0.5
    second["params"]["head"]["more"] = np.ones(3, np.float32)
    second["params"]["head"]["mlm"]["bias"] = np.ones(7, np.float32)
    for name, value in (("a", first), ("b", second)):
        checkpoints = train_states.Checkpoints(tmp_path / name, keep=1, metric="R@5")
        checkpoints.save(value, None, last=True)
        checkpoints.close()
    a, b = tmp_path / "a", tmp_path / "b"
    assert command.main(["diff", str(a), str(a / "checkpoints/10")]) == 0
    assert "0 arrays differ, " in capsys.readouterr().out
    assert command.main(["diff", str(a), str(b)]) == 1
    said = capsys.readouterr().out
    assert "embeddings/norm/scale: 1 of 8 numbers, by 0.5 at most" in said
    assert f"params/head/more: only in {b}" in said
    assert "params/head/mlm/bias: float32 (307,) and float32 (7,)" in said
    assert "3 arrays differ" in said


def test_the_command_says_what_it_is_for_and_refuses_other_folders(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert {"ls", "verify", "diff"} <= set(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as stopped:
        command.main(["ls", str(tmp_path)])
    assert stopped.value.code == 2
    assert "neither a stage" in capsys.readouterr().err


def test_the_digests_of_another_step_are_damage(tmp_path):
    for step in (10, 20):
        folder = tmp_path / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "x").write_text("the same")
        digests.write(tmp_path, step, {})
    assert digests.damage(tmp_path, 20) == {}
    one, other = (digests.record_path(tmp_path, step) for step in (10, 20))
    other.write_bytes(one.read_bytes())
    assert digests.damage(tmp_path, 10) == {}
    assert digests.damage(tmp_path, 20) == {
        "digests/20.json": "other content than was written"
    }


def test_files_that_came_after_the_seal_are_named(tmp_path):
    sealed = tmp_path / "sealed.json"
    (tmp_path / "a").write_text("a")
    digests.seal(tmp_path, ["a"], sealed)
    (tmp_path / "b").write_text("b")
    assert digests.unsealed(tmp_path, ["a"], sealed) == {}
    found = digests.unsealed(tmp_path, ["a", "b"], sealed)
    assert found == {"b": "not there when the digests were taken"}
