"""Work directories in object storage: what is copied, in what order, by whom."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial

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
    said = [note for note in notes if "was copied to" in note]
    assert said == [f"{URL} was copied to {again}, where the run goes on."]


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


def holder(ahead=0.0, **values):
    """A lock of another run, whose last sign of life was `ahead` seconds from now."""
    own = {"host": "elsewhere", "pid": 7, "started": "2026", "key": "k"}
    return json.dumps(own | {"seen": time.time() + ahead} | values).encode()


def of_process(pid, *, space=None, start=None):
    """A lock of a process of this system, perhaps of another container or start."""
    own = bucket._process(os.getpid())
    boot, here, *_ = own.split(":") if own else ("", "")
    known = bucket._process(pid).split(":")[3:] or ["1"]
    process = ":".join([boot, space or here, str(pid), start or known[0]])
    made = partial(holder, pid=pid, process=process, host=socket.gethostname())
    return pytest.param(
        made, marks=pytest.mark.skipif(not own, reason="the system does not say")
    )


@pytest.mark.parametrize(
    "lock",
    [
        holder,
        partial(holder, ahead=100),
        of_process(os.getppid()),
        # Its number may be ours.
        of_process(os.getpid(), space="7"),
    ],
    ids=["another host", "a clock ahead", "this system", "another container"],
)
def test_another_run_keeps_the_place(objects, lock):
    lock = lock()
    bucket.Store(URL).write("lock", lock)
    with (
        pytest.raises(InputError, match=r"in use by another run \(host "),
        bucket.copied(URL, print),
    ):
        pass
    assert bucket.Store(URL).read("lock")[0] == lock


@pytest.mark.parametrize(
    "lock",
    [
        partial(holder, ahead=-200),
        partial(holder, ahead=1e6),
        partial(holder, seen="never"),
        of_process(2**22 + 1),
        of_process(os.getppid(), start="5"),
        of_process(os.getpid()),
        lambda: b"{",
        lambda: b"[]",
    ],
    ids=[
        *("silent", "a clock far ahead", "no time", "dead", "its number given again"),
        *("given up by this process", "cut", "no object"),
    ],
)
def test_a_dead_run_does_not(objects, lock):
    bucket.Store(URL).write("lock", lock())
    with bucket.copied(URL, print):
        assert json.loads(bucket.Store(URL).read("lock")[0])["pid"] == os.getpid()
    assert names() == []


def test_a_run_whose_clock_is_wrong_is_seen_to_live(objects, monkeypatch):
    def sleep(seconds):
        assert seconds == pytest.approx(2.5 * 0.05)
        objects.store.write("runs/first/lock", holder(seen=1.0)).result()

    bucket.Store(URL).write("lock", holder(seen=0.0))
    with monkeypatch.context() as patch:
        patch.setattr(bucket.time, "sleep", sleep)
        with pytest.raises(InputError, match="in use"), bucket.copied(URL, print):
            pass


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
        pytest.raises(TrainingFailed, match="Another run has taken its place"),
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
    assert f"it is in {folder}. {URL} cannot be read" in notes[-1]
    assert (folder / "a").read_text() == "b"
    objects.left = None
    # It is not this run's any more, and is not lost.
    with bucket.copied(URL, notes.append) as again:
        assert again != folder and (folder / "a").read_text() == "b"
    said = f"What an earlier run of {URL} did not copy is in {folder.parent}."
    assert said in notes
    with bucket.copied(URL, print):
        assert folder.exists() and not again.exists()


def test_a_folder_that_is_gone_or_unreadable_does_not_empty_the_bucket(
    objects, monkeypatch
):
    notes = []
    with (
        pytest.raises(TrainingFailed, match="was removed while"),
        bucket.copied(URL, notes.append) as folder,
    ):
        (folder / "in").mkdir()
        (folder / "in/a").write_text("b")
        wait_until(lambda: "in/a" in names())
        scandir = os.scandir

        def refused(path="."):
            if str(path).endswith("/in"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refused)
            wait_until(lambda: any("cannot be read" in note for note in notes))
        assert "in/a" in names()
        (folder / "b").write_text("c")
        wait_until(lambda: "b" in names())
        shutil.rmtree(folder)
        wait_until(lambda: any("was removed while" in note for note in notes))
        folder.mkdir()
    assert names() == ["b", "in/a"]


def test_a_first_checkpoint_that_was_cut_off_is_unfinished(objects, stage, monkeypatch):
    monkeypatch.setattr(bucket, "_EVERY", 1e9)
    with pytest.raises(TrainingFailed), bucket.copied(URL, print) as folder:
        shutil.copytree(stage, folder / "train")
        for step in (20, 30):
            remove(folder / "train", step)
        (folder / "train/done.json").unlink()
        objects.left = len([*bucket._Copy(None, folder)._files()])
    objects.left = None
    assert not any("digests" in name for name in names())
    notes = []
    with bucket.copied(URL, print) as folder:
        assert set_damaged_aside.take_stock(folder / "train", notes.append) is None
    assert "its writing was not finished" in notes[0]


def test_digests_that_come_while_the_folder_is_listed_wait(objects, stage, tmp_path):
    (tmp_path / "run").mkdir()
    copy = bucket._Copy(bucket.Store(URL), tmp_path / "run")
    shutil.copytree(stage, tmp_path / "run/train")
    record = digests.record_path(tmp_path / "run/train", 30)
    data, walk = record.read_bytes(), os.walk
    record.unlink()

    def late(*args, **options):
        record.write_bytes(data)
        return walk(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket.os, "walk", late)
        copy.send()
    assert "train/digests/30.json" not in names()
    assert not any("/30/" in name for name in names())
    copy.send()
    assert "train/digests/30.json" in names()


def test_a_step_that_is_removed_while_it_is_copied_takes_no_other_with_it(
    objects, stage, tmp_path
):
    """Of one that is kept, and copies that take longer than it is."""
    folder = tmp_path / "run"
    folder.mkdir()
    copy = bucket._Copy(bucket.Store(URL), folder)

    def only(step):
        shutil.rmtree(folder / "train", ignore_errors=True)
        shutil.copytree(stage, folder / "train")
        (folder / "train/done.json").unlink()
        for other in {10, 20, 30} - {step}:
            remove(folder / "train", other)

    only(10)
    copy.send()
    only(20)
    objects.before_write = lambda key: only(30)
    copy.send()
    with bucket.copied(URL, print) as back:
        assert set_damaged_aside.take_stock(back / "train", print) == 10
    objects.before_write = None
    copy.send()
    with bucket.copied(URL, print) as back:
        assert set_damaged_aside.take_stock(back / "train", print) == 30


def test_after_it_was_taken_over_a_copy_under_way_stops(objects):
    go, hit, write, notes = threading.Event(), threading.Event(), objects.write, []

    def slow(key, value, if_equal=None):
        if "/file" in key:
            hit.set()
            go.wait(10)
        return write(key, value, if_equal=if_equal)

    objects.write = slow
    with (
        pytest.raises(TrainingFailed),
        bucket.copied(URL, notes.append) as folder,
    ):
        for i in range(9):
            (folder / f"file{i}").write_text("mine")
        hit.wait(10)
        objects.store.write("runs/first/lock", holder()).result()
        wait_until(lambda: any("taken over" in note for note in notes))
        go.set()
    assert len(names()) <= 2  # the lock, and the one under way


def test_an_interrupted_end_leaves_no_thread(objects, monkeypatch):
    notes, join = [], threading.Thread.join

    def interrupted(self, *args):
        if self._target.__name__ == "_send":
            raise KeyboardInterrupt
        return join(self, *args)

    with pytest.raises(KeyboardInterrupt), bucket.copied(URL, notes.append) as folder:
        monkeypatch.setattr(threading.Thread, "join", interrupted)
        (folder / "a").write_text("b")
    monkeypatch.setattr(threading.Thread, "join", join)
    time.sleep(0.3)
    assert "lock" not in names() and not any("taken over" in note for note in notes)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("x")])
def test_whatever_fails_in_a_copy_the_error_of_the_run_is_told(
    objects, monkeypatch, error
):
    def failing(self):
        raise error

    with pytest.raises(KeyError, match="its own"), bucket.copied(URL, print):
        monkeypatch.setattr(bucket._Copy, "send", failing)
        raise KeyError("its own")
    assert names() == []


def test_a_disk_that_is_full_or_not_writable_is_named(objects, monkeypatch, tmp_path):
    bucket.Store(URL).write("a", b"x")

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", full)
        with (
            pytest.raises(InputError, match="No space left"),
            bucket.copied(URL, print),
        ):
            pass
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with (
            pytest.raises(InputError, match="XDG_CACHE_HOME"),
            bucket.copied(URL, print),
        ):
            pass
    with bucket.copied(URL, print) as folder:
        assert (folder / "a").read_bytes() == b"x"


def test_without_a_network_not_every_file_is_tried(objects, monkeypatch):
    monkeypatch.setattr(bucket, "_EVERY", 1e9)
    tried, write = [], objects.write

    def down(key, value, if_equal=None):
        if "/file" in key:
            tried.append(key)
            raise ValueError("UNAVAILABLE")
        return write(key, value, if_equal=if_equal)

    objects.write = down
    with pytest.raises(TrainingFailed), bucket.copied(URL, print) as folder:
        for i in range(100):
            (folder / f"file{i}").write_text("x")
    assert len(tried) < 20


def test_objects_that_consoles_make_for_folders_are_left_alone(objects):
    for name in ("", "train/"):
        objects.store.write(f"runs/first/{name}", b"").result()
    bucket.Store(URL).write("train/a", b"x")
    with bucket.copied(URL, print) as folder:
        assert files_of(folder) == {"train/a": b"x"}


def test_a_place_that_holds_other_runs_is_refused(objects):
    bucket.Store(URL).write("config.json", b"{}")
    with (
        pytest.raises(InputError, match="holds another run, first"),
        bucket.copied("gs://box/runs", print),
    ):
        pass


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
# It gets the signal SIGNAL when a first checkpoint is copied, long before its end.
PROGRAM = """
import os, time
from lsrjax.distributed.activity import Progress
from lsrjax.training import bucket
if "SIGNAL" in os.environ:
    forward = Progress.forward
    def slowly(progress, step=None):
        time.sleep(0.05)
        forward(progress, step)
    Progress.forward = slowly
send, bucket._EVERY = bucket._Copy.send, 0.05
def sent(copy):
    send(copy)
    number = os.environ.pop("SIGNAL", None)
    if number and any("train/digests/" in name for name in copy._there):
        os.kill(os.getpid(), int(number))
    elif number:
        os.environ["SIGNAL"] = number
bucket._Copy.send = sent
from lsrjax.cli import train
train.start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_and_started_elsewhere_a_run_goes_on_from_the_bucket(
    tmp_path, emulator, monkeypatch, whole, number
):
    for name, value in emulator.items():
        monkeypatch.setenv(name, value)
    url = f"{URL}/{number}"
    ended = started(tmp_path, url, "first", SIGNAL=str(int(number)))
    left = names(url)
    assert "train/done.json" not in left
    if number == signal.SIGKILL:
        assert ended.returncode == -signal.SIGKILL and "lock" in left
    else:
        # What it has saved to leave is there, too.
        assert ended.returncode == 75 and "lock" not in left, ended.stdout
        assert any(name.startswith("train/kept/") for name in left)
    shutil.rmtree(tmp_path / "first")
    said = started(tmp_path, url, "second").stdout
    assert "where the run goes on" in said and f"is in {url}." in said, said
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    with bucket.copied(url, print) as back:
        assert losses(back) == losses(whole)
    assert names(url) == sorted(files_of(back))


def started(folder, workdir, cache, **variables):
    (folder / "config.py").write_text(CONFIG)
    (folder / "run.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, "run.py", "--config", "config.py", "--workdir", str(workdir)],
        cwd=folder,
        env=os.environ | variables | {"XDG_CACHE_HOME": str(folder / cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert started(folder, folder / "run", "cache").returncode == 0
    return folder / "run"


def losses(run):
    lines = (run / "train/metrics.jsonl").read_text().splitlines()
    found = [(line["step"], line["loss"]) for line in map(json.loads, lines)]
    assert found[-1][0] == 2000
    return found
