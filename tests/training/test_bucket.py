"""Work directories in object storage: what is copied, in what order, by whom."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorstore
from gcp_storage_emulator import server as storage
from programs import flip_bits
from rich.console import Console

from lsrjax.checkpoint import digests, set_damaged_aside
from lsrjax.cli import doctor_checks
from lsrjax.distributed import processes
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.training import bucket, work_folder

URL = "gs://box/runs/first"


class Objects:
    """A bucket in memory, that fails when told to; `done` is what was written."""

    def __init__(self):
        self.store = tensorstore.KvStore.open("memory://").result()
        self.done, self.left, self.before_write = [], None, None

    def list(self, inside):
        return self.store.list(inside)

    def read(self, key):
        return self.store.read(key)

    def write(self, key, value, if_equal=None):
        if self.left == 0:
            raise ValueError("UNAVAILABLE: no network [source locations='x']")
        if self.left:
            self.left -= 1
        if self.before_write:
            hook, self.before_write = self.before_write, None
            hook(key)
        self.done.append((key.removeprefix("runs/first/"), value))
        return self.store.write(key, value, if_equal=if_equal)


@pytest.fixture
def objects(monkeypatch, tmp_path):
    found = Objects()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket, "_opened", lambda url: found)
    monkeypatch.setattr(bucket, "_EVERY", 0.05)
    monkeypatch.setattr(bucket, "_BETWEEN_TRIES", 0.0)
    # One after the other, so that the order is that of the calls.
    monkeypatch.setattr(bucket, "_AT_ONCE", 1)
    return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A finished stage with steps 10, 20 and 30."""
    folder = tmp_path_factory.mktemp("run") / "train"
    return flip_bits.make(folder, dev={10: 0.7, 20: 0.4, 30: 0.5})


def names(url=URL):
    return sorted(bucket.Store(url).names())


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_comes_back_as_it_was(objects, stage):
    notes = []
    with bucket.copied(URL, notes.append) as folder:
        shutil.copytree(stage, folder / "train")
        (folder / "config.json").write_text("{}")
        wanted = files_of(folder)
    assert "lock" not in names()
    shutil.rmtree(folder)
    with bucket.copied(URL, notes.append) as again:
        assert files_of(again) == wanted
        assert set_damaged_aside.take_stock(again / "train", notes.append) == 30
        (again / "config.json").write_text("{1}")
        (again / "train/done.json").unlink()
    del wanted["train/done.json"]
    assert names() == sorted(wanted)
    assert bucket.Store(URL).read("config.json")[0] == b"{1}"
    assert [note for note in notes if "was copied to" in note] == [
        f"{URL} was copied to {folder}, where the run goes on."
    ]


def test_changes_are_copied_while_the_run_goes_on(objects):
    with bucket.copied(URL, print) as folder:
        (folder / "metrics.jsonl").write_text("1\n")
        wait_until(lambda: "metrics.jsonl" in names())
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("2\n")
        wait_until(lambda: bucket.Store(URL).read("metrics.jsonl")[0] == b"1\n2\n")
        (folder / "metrics.jsonl").unlink()
        wait_until(lambda: names() == ["lock"])


def test_what_is_unfinished_is_not_copied(objects, stage):
    with bucket.copied(URL, print) as folder:
        shutil.copytree(stage, folder / "train")
        digests.record_path(folder / "train", 20).unlink()
        (folder / "config.json.tmp").write_text("{")
        unfinished = folder / "train/checkpoints/30.orbax-checkpoint-tmp-7"
        unfinished.mkdir()
        (unfinished / "part").write_text("x")
    found = names()
    assert any(name.startswith("train/checkpoints/10/") for name in found)
    assert not any("/20/" in name or "tmp" in name for name in found)


def remove(stage, step):
    digests.record_path(stage, step).unlink()
    shutil.rmtree(stage / "checkpoints" / str(step))


@pytest.mark.parametrize("writes", [1, 7, 20, 40])
def test_a_copy_that_was_cut_off_is_an_older_state(objects, stage, writes, monkeypatch):
    """Of each step that has digests, all files are there."""
    monkeypatch.setattr(bucket, "_EVERY", 1e9)
    with bucket.copied(URL, print) as folder:
        shutil.copytree(stage, folder / "train")
        for step in (20, 30):
            remove(folder / "train", step)
        (folder / "train/done.json").unlink()
    with (
        pytest.raises(TrainingFailed, match="Not all of this run was copied"),
        bucket.copied(URL, print) as folder,
    ):
        # Steps 20 and 30 are new, and step 10 is gone.
        shutil.rmtree(folder / "train")
        shutil.copytree(stage, folder / "train")
        remove(folder / "train", 10)
        monkeypatch.setattr(bucket, "_LAST_TRIES", 1)
        objects.left = writes
    objects.left = None
    with bucket.copied(URL, print) as folder:
        steps = digests.recorded_steps(folder / "train")
        assert steps and set(steps) <= {10, 20, 30}
        for step in steps:
            assert digests.damage(folder / "train", step) == {}
        if (folder / "train/done.json").exists():
            assert steps[-1] == 30


def test_what_says_that_the_rest_is_there_comes_last_and_goes_first(
    objects, stage, monkeypatch
):
    monkeypatch.setattr(bucket, "_EVERY", 1e9)
    with bucket.copied(URL, print) as folder:
        shutil.copytree(stage, folder / "train")
    order = [name for name, value in objects.done if value is not None]
    first = order.index("train/digests/10.json")
    assert all("digests" in name or name == "train/done.json" for name in order[first:])
    assert order[-1] == "train/done.json"
    objects.done.clear()
    with bucket.copied(URL, print) as folder:
        shutil.rmtree(folder / "train")
    gone = [name for name, value in objects.done if value is None and name != "lock"]
    assert gone[0] == "train/done.json" and all("digests" in name for name in gone[1:4])


def holder(**values):
    own = {"host": "elsewhere", "pid": 7, "started": "2026", "key": "k"}
    return json.dumps(own | {"seen": time.time()} | values).encode()


@pytest.mark.parametrize(
    "lock",
    [holder(), holder(host=socket.gethostname(), pid=os.getppid())],
    ids=["another host", "this host"],
)
def test_another_run_keeps_the_place(objects, lock):
    bucket.Store(URL).write("lock", lock)
    with (
        pytest.raises(InputError, match=r"in use by another run \(host .*last sign of"),
        bucket.copied(URL, print),
    ):
        pass
    assert bucket.Store(URL).read("lock")[0] == lock


@pytest.mark.parametrize(
    "lock",
    [
        holder(seen=time.time() - 200),
        holder(host=socket.gethostname(), pid=2**22 + 1),
        holder(host=socket.gethostname(), pid=os.getpid()),
        b"{",
        b"[]",
    ],
    ids=["silent", "dead", "given up by this process", "cut", "no object"],
)
def test_a_dead_run_does_not(objects, lock):
    bucket.Store(URL).write("lock", lock)
    with bucket.copied(URL, print):
        assert json.loads(bucket.Store(URL).read("lock")[0])["pid"] == os.getpid()
    assert names() == []


def test_of_two_that_start_at_once_one_goes_on(objects):
    other = holder()
    objects.before_write = lambda key: objects.store.write(key, other).result()
    with (
        pytest.raises(InputError, match="another run has started at the same moment"),
        bucket.copied(URL, print),
    ):
        pass
    assert bucket.Store(URL).read("lock")[0] == other


def test_a_run_that_was_taken_for_dead_copies_no_more(objects):
    notes = []
    with (
        pytest.raises(TrainingFailed, match="another run has taken it over"),
        bucket.copied(URL, notes.append) as folder,
    ):
        bucket.Store(URL).write("lock", holder())
        wait_until(lambda: any("was taken over by another run" in n for n in notes))
        (folder / "a").write_text("b")
    assert names() == ["lock"]


def test_without_a_network_the_run_goes_on_and_copies_later(objects):
    notes = []
    with bucket.copied(URL, notes.append) as folder:
        objects.left = 0
        (folder / "a").write_text("b")
        wait_until(lambda: notes)
        (said,) = notes
        assert said.startswith(f"{URL} cannot be read or written: UNAVAILABLE: no net")
        assert "source locations" not in said and said.endswith("copy is tried again.")
        objects.left = None
        wait_until(lambda: "a" in names())
    assert names() == ["a"]


def test_an_error_of_the_run_is_told_rather_than_that_of_the_copy(objects):
    notes = []
    with pytest.raises(KeyError), bucket.copied(URL, notes.append) as folder:
        (folder / "a").write_text("b")
        objects.left = 0
        raise KeyError
    kept = re.search(rf"it is in (\S+)\. {URL} cannot be read", notes[-1])[1]
    assert pathlib.Path(kept, "a").read_text() == "b"
    objects.left = None
    with bucket.copied(URL, print):
        assert pathlib.Path(kept, "a").read_text() == "b"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x"])
def test_objects_stay_inside_of_the_folder(objects, name):
    bucket.Store(URL).write(name, b"x")
    with (
        pytest.raises(InputError, match="has an object .*remove it"),
        bucket.copied(URL, print),
    ):
        pass


def test_several_processes_are_told_what_to_do(objects, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with (
        pytest.raises(InputError, match=r"several processes .* Mount the bucket"),
        work_folder.located(URL, Console()),
    ):
        pass
    finding = doctor_checks.in_bucket(URL)
    assert finding.level == doctor_checks.ERROR and "Mount" in finding.text
    assert names() == []


def test_the_doctor_writes_to_the_bucket(objects):
    assert doctor_checks.in_bucket(URL).level == doctor_checks.OK
    assert names() == [] and len(objects.done) == 2
    objects.left = 0
    finding = doctor_checks.in_bucket(URL)
    assert finding.level == doctor_checks.ERROR and "no network" in finding.text


@pytest.fixture(scope="module")
def emulator():
    """The address of Google's storage, as an emulator has it, with a bucket `box`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    read = storage._read_data
    with pytest.MonkeyPatch.context() as patch:
        # It knows no empty objects.
        patch.setattr(storage, "_read_data", lambda *args: read(*args) or b"")
        server = storage.create_server(
            "localhost", port, in_memory=True, default_bucket="box"
        )
        server.start()
        yield {
            "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        }
        server.stop()


CONFIG = """
from lsrjax.config.fields import get_default
def get_config():
    c = get_default()
    c.tokenizer, c.data.source = "embedded:english", "debian"
    c.model.head = "splade"
    c.model.family, c.model.hidden_size, c.model.num_layers = "bert", 16, 1
    c.model.num_heads, c.model.intermediate_size = 2, 32
    c.data.query_length = c.data.document_length = 16
    c.data.query_languages = c.data.document_languages = {"en": 1}
    c.data.group_size, c.loss = 1, {"infonce": {}}
    c.batch_size, c.steps, c.log.every = 4, 2000, 50
    c.checkpoint.every = 50
    return c
"""
# With DIES, it is killed when a first checkpoint is copied.
PROGRAM = """
import os, signal
from lsrjax.training import bucket
send, bucket._EVERY = bucket._Copy.send, 0.05
def sent(copy):
    send(copy)
    if os.environ.get("DIES") and any("/digests/" in name for name in copy._there):
        os.kill(os.getpid(), signal.SIGKILL)
bucket._Copy.send = sent
from lsrjax.cli import train
train.start()
"""


@pytest.mark.slow
def test_killed_and_started_elsewhere_a_run_goes_on_from_the_bucket(tmp_path, emulator):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "run.py").write_text(PROGRAM)

    def started(workdir, cache, **variables):
        return subprocess.run(
            [sys.executable, "run.py", "--config", "config.py", "--workdir", workdir],
            cwd=tmp_path,
            env=os.environ
            | emulator
            | variables
            | {"XDG_CACHE_HOME": str(tmp_path / cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    with contextlib.ExitStack() as stack:
        for name, value in emulator.items():
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv(name, value)
        assert started(URL, "first", DIES="1").returncode == -signal.SIGKILL
        left = names()
        assert "lock" in left and "train/done.json" not in left
        shutil.rmtree(tmp_path / "first")
        said = started(URL, "second").stdout
        assert "where the run goes on" in said
        assert "is in gs://box/runs/first" in said
        assert "lock" not in names()
        folder = tmp_path / "back"
        with bucket.copied(URL, print) as found:
            shutil.copytree(found, folder)
    assert started("whole", "third").returncode == 0

    def losses(run):
        lines = (pathlib.Path(run) / "train/metrics.jsonl").read_text().splitlines()
        return [(line["step"], line["loss"]) for line in map(json.loads, lines)]

    assert losses(folder) == losses(tmp_path / "whole")
    assert losses(folder)[-1][0] == 2000
