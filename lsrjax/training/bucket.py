"""Work directories in object storage: a folder of this machine, and its copy there.

A run works in a folder of its own. What changes in it is copied to the bucket while the
run goes on, in an order in which a copy that was cut off is at worst an older state:
the files of a checkpoint before its digests, without which it does not count, and what
marks a stage as finished last. A start copies everything back, on whatever machine.
Compiled programs stay behind: another machine's processor may not know their
instructions.

TensorStore, which orbax needs anyway, has the clients; it finds credentials where the
vendors' tools have them.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import tensorstore

from lsrjax import paths
from lsrjax.checkpoint import digests
from lsrjax.checkpoint.lock import LOCK_FILE, holder, signature
from lsrjax.checkpoint.names_on_disk import CHECKPOINTS, DONE_FILE
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.retrieval.results_file import RESULTS_FILE

_DRIVERS = {"gs": "gcs", "s3": "s3"}
# Seconds between two looks for changes, and signs of life of the run.
_EVERY = 20.0
# A run that has given none for so long, and gives none while it is watched, is dead.
_DEAD_AFTER, _WATCHED = 180.0, 2.5
# Of the last copy, before the run ends without it; seconds between them.
_LAST_TRIES, _BETWEEN_TRIES = 3, 5.0
_AT_ONCE = 4
# Beside a folder of which all was copied.
_COPIED = "copied"
# Of unfinished files and folders, and what another machine cannot use.
_LEFT_OUT = re.compile(r"\.tmp(/|$)|\.orbax-checkpoint-tmp|^compiled/")
_STEP = re.compile(rf"(.+/{CHECKPOINTS})/(\d+)/.*")
# The keys of the locks that this process holds.
_HELD: set[object] = set()
# Of a request, after errors that may pass.
_RETRIES = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "4s"}


@contextlib.contextmanager
def copied(
    url: str, note: Callable[[str], None], progress: Progress | None = None
) -> Iterator[pathlib.Path]:
    """A folder with what is in a bucket, which goes on to have what is in the folder.

    Args:
      url: a place in a bucket, see `paths.workdir`.
      note: receives reports of what cannot be copied.
      progress: who ends the process calls its `last` before.

    Raises:
      InputError: the bucket cannot be read or written, or another run holds the place.
      TrainingFailed: at the end, not all of the folder could be copied.
    """
    store = Store(url)
    lock = _Lock(store, note)
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        try:
            folder = _new_folder(url, lock.key, note)
            copy = _Copy(store, folder)
            if copy.fetch():
                note(f"{url} was copied to {folder}, where the run goes on.")
        except OSError as error:
            raise InputError(
                f"{url} cannot be copied to this machine ({error}). Make room, or set"
                " XDG_CACHE_HOME to a folder on another disk."
            ) from error
        sender = _Sender(copy, lock, note)
        if progress:
            progress.last = sender.finish
        try:
            yield folder
        except BaseException:
            if problem := sender.finish():
                note(problem)
            raise
        if problem := sender.finish():
            raise TrainingFailed(problem)
        note(f"All of {folder} is in {url}.")


def probe(url: str) -> None:
    """Writes an object and removes it; `InputError` if that cannot be done."""
    store = Store(url)
    name = f".probe.{uuid.uuid4().hex}"
    store.write(name, b"probe")
    store.write(name, None)


def _new_folder(url: str, key: str, note: Callable[[str], None]) -> pathlib.Path:
    """A folder of this run's own; removes those of earlier ones that were copied."""
    digest = hashlib.blake2b(url.encode("utf-8"), digest_size=8).hexdigest()
    base = paths.cache() / "buckets" / digest
    name = re.sub(r"[^\w.-]+", "-", url.rstrip("/").rsplit("/", 1)[-1])
    for earlier in base.iterdir() if base.is_dir() else ():
        if (earlier / _COPIED).exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            note(f"What an earlier run of {url} did not copy is in {earlier}.")
    folder = base / key[:8] / name
    folder.mkdir(parents=True)
    return folder


def _opened(url: str) -> tensorstore.KvStore:
    """The bucket of a place."""
    scheme, bucket, _ = paths.parts_of(url)
    driver = _DRIVERS[scheme]
    spec: dict[str, Any] = {"driver": driver, "bucket": bucket}
    spec[f"{driver}_request_retries"] = _RETRIES
    if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        spec["endpoint"] = endpoint
    return tensorstore.KvStore.open(spec).result()


class Store:
    """The objects at a place, by their names below it; errors are `InputError`s."""

    def __init__(self, url: str):
        """Opens a place; nothing need be there."""
        self.url = url
        self._prefix = f"{paths.parts_of(url)[2]}/"
        with self._told():
            self._store = _opened(url)

    def names(self) -> list[str]:
        """The names of all objects."""
        start = self._prefix
        # 0 is the character after /.
        inside = tensorstore.KvStore.KeyRange(start, f"{start[:-1]}0")
        with self._told():
            keys = [key.decode("utf-8") for key in self._store.list(inside).result()]
        # Emulators may list the whole bucket.
        return [key.removeprefix(start) for key in keys if key.startswith(start)]

    def read(self, name: str) -> tuple[bytes | None, bytes | None]:
        """The content, or None without such an object, and the generation.

        Servers that do not say the generation of an object, as some emulators, have
        None for it.
        """
        with self._told():
            found = self._store.read(self._prefix + name).result()
        there = found.state == "value"
        generation = found.stamp.generation
        said = generation if generation.strip(b"\0") else None
        return found.value if there else None, said

    def write(
        self, name: str, data: bytes | None, *, generation: bytes | None = None
    ) -> None:
        """Writes an object, or removes it; with a generation, only if it is that."""
        with self._told():
            key = self._prefix + name
            self._store.write(key, data, if_equal=generation).result()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            first = str(error).split(" [")[0].partition("\n")[0]
            raise InputError(
                f"{self.url} cannot be read or written: {first}. Does the bucket exist,"
                " and may you write to it? Credentials are found as by the vendor's"
                " tools (gcloud auth application-default login; AWS_…)."
            ) from error


class _Lock:
    """One run at a time: an object with signs of life.

    Attributes:
      key: of this run.
    """

    def __init__(self, store: Store, note: Callable[[str], None]):
        self._store, self.key = store, uuid.uuid4().hex
        self._mine = signature() | {"process": _process(os.getpid()), "key": self.key}
        data, generation = store.read(LOCK_FILE)
        if data is not None and (alive := self._living(data, note)):
            raise InputError(
                f"{store.url} is in use by another run ({alive}). Wait for it or end"
                " it, or use another --workdir. If it was killed, it is taken for dead"
                f" {_DEAD_AFTER:.0f} s after its last sign of life; then start again."
            )
        store.write(LOCK_FILE, self._text(), generation=generation)
        if _values(store.read(LOCK_FILE)[0]).get("key") != self.key:
            raise InputError(
                f"{store.url}: another run has started at the same moment. Start again,"
                " or use another --workdir."
            )
        _HELD.add(self.key)

    def beat(self) -> bool:
        """Gives a sign of life; whether no other run has taken the place."""
        data, generation = self._store.read(LOCK_FILE)
        if _values(data).get("key") != self.key:
            return False
        self._store.write(LOCK_FILE, self._text(), generation=generation)
        return True

    def release(self) -> None:
        """Lets others in."""
        _HELD.discard(self.key)
        with contextlib.suppress(InputError):
            data, generation = self._store.read(LOCK_FILE)
            if _values(data).get("key") == self.key:
                self._store.write(LOCK_FILE, None, generation=generation)

    def _text(self) -> bytes:
        return json.dumps(self._mine | {"seen": time.time()}).encode("utf-8")

    def _living(self, data: bytes, note: Callable[[str], None]) -> str:
        """Who holds it and is alive; otherwise empty."""
        values = _values(data)
        pid, process = values.get("pid"), str(values.get("process"))
        if not values:  # cut off
            return ""
        who = holder(values)
        if _same_system(process, self._mine["process"]):
            if pid == os.getpid():
                return who if values.get("key") in _HELD else ""
            return who if isinstance(pid, int) and _process(pid) == process else ""
        seen = values.get("seen")
        silent = time.time() - seen if isinstance(seen, int | float) else _DEAD_AFTER
        # Clocks differ: a sign of life in the future says as little as an old one.
        if abs(silent) < _DEAD_AFTER:
            return f"{who}, last sign of life {silent:.0f} s ago"
        note(
            f"{self._store.url} is held by a run that seems to be dead ({who}): it is"
            f" watched for {_WATCHED * _EVERY:.0f} s."
        )
        time.sleep(_WATCHED * _EVERY)
        again = self._store.read(LOCK_FILE)[0]
        return "" if again == data else who


def _values(data: bytes | None) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        values = json.loads(data or b"{}")
        if isinstance(values, dict):
            return values
    return {}


def _process(pid: int) -> str:
    """What tells a process from all others: system, container, number and start.

    Empty if there is no such process, or this system does not say.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.stat("/proc/self/ns/pid").st_ino
        # The name, in parentheses, may contain anything; the 20th field after it.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return f"{boot}:{space}:{pid}:{fields.split()[19]}"
    except (OSError, IndexError):
        return ""


def _same_system(one: str, other: str) -> bool:
    return bool(one) and one.split(":")[:2] == other.split(":")[:2]


class _Copy:
    """A folder and its copy.

    Attributes:
      stopped: set once another run has the place; then nothing more is written.
    """

    def __init__(self, store: Store, folder: pathlib.Path):
        self.store, self.folder, self.stopped = store, folder, threading.Event()
        # Held open: the number of a removed folder is soon another's.
        self._opened = os.open(folder, os.O_RDONLY)
        # Of each object: size and time of the file that it is a copy of.
        self._there: dict[str, tuple[int, int]] = {}

    def fetch(self) -> bool:
        """Copies all objects into the folder; whether there are any."""
        names = [
            name
            for name in self.store.names()
            # Consoles make objects for folders.
            if name and name != LOCK_FILE and not name.endswith("/")
        ]
        for name in names:
            inside = self.folder / name
            if self.folder not in pathlib.Path(os.path.abspath(inside)).parents:
                raise InputError(f"{self.store.url} has an object {name!r}: remove it.")
            if re.fullmatch(rf"[^/]+/(config\.json|{LOCK_FILE})", name):
                raise InputError(
                    f"{self.store.url} holds another run, {name.split('/')[0]}. Use a"
                    " --workdir of its own for each run."
                )
        _each(self._fetch, names)
        # An empty folder of digests says that the steps without are unfinished.
        for path in [*self.folder.rglob(CHECKPOINTS)]:
            (path.parent / digests.DIGESTS).mkdir(exist_ok=True)
        return bool(names)

    def send(self) -> None:
        """Copies what has changed, and removes what is gone."""
        files = self._files()
        whole = True
        for rank in range(3):
            whole &= all(_each(self._send, [f for f in files if _rank(f) == rank]))
        if not whole:
            # A step was removed meanwhile: what takes its place has to be there first.
            return
        gone = [name for name in self._there if name not in files]
        # First what says that the others are there.
        for rank in (2, 1, 0):
            _each(self._remove, [name for name in gone if _rank(name) == rank])

    def _files(self) -> set[str]:
        """The names of the finished files."""
        # Looked up first: of a step that has digests, all files are found after.
        recorded = {
            (path.parent.parent / CHECKPOINTS / path.stem)
            .relative_to(self.folder)
            .as_posix()
            for path in self.folder.rglob(f"{digests.DIGESTS}/*.json")
        }
        found = set()
        for at, _, names in os.walk(self.folder, onerror=self._unreadable):
            inside = pathlib.Path(at).relative_to(self.folder)
            found |= {(inside / name).as_posix() for name in names}
        # Where the folder is gone, or another's, its copy stays.
        if not self._is_there():
            raise InputError(f"{self.folder} was removed while the run was under way.")
        return {name for name in found if self._is_finished(name, recorded)}

    def close(self) -> None:
        """Lets go of the folder."""
        os.close(self._opened)

    def _is_there(self) -> bool:
        """Whether the folder is where it was, and is the same."""
        try:
            return self.folder.stat().st_ino == os.fstat(self._opened).st_ino
        except FileNotFoundError:
            return False

    @staticmethod
    def _is_finished(name: str, recorded: set[str]) -> bool:
        if name == LOCK_FILE or _LEFT_OUT.search(name):
            return False
        if match := _STEP.fullmatch(name):
            return f"{match[1]}/{match[2]}" in recorded
        parts = name.rsplit("/", 2)
        if len(parts) == 3 and parts[1] == digests.DIGESTS and name.endswith(".json"):
            return f"{parts[0]}/{CHECKPOINTS}/{parts[2][:-5]}" in recorded
        return True

    def _unreadable(self, error: OSError) -> None:
        # What is gone was removed meanwhile.
        if not isinstance(error, FileNotFoundError):
            raise InputError(f"{self.folder} cannot be read ({error}).") from error

    def _fetch(self, name: str) -> None:
        path = self.folder / name
        data, _ = self.store.read(name)
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._there[name] = _state_of(path)

    def _send(self, name: str) -> bool:
        """Copies a file unless it is there; whether it still exists."""
        path = self.folder / name
        try:
            state = _state_of(path)
            if self._there.get(name) == state:
                return True
            data = path.read_bytes()
        except FileNotFoundError:
            return False
        if not self.stopped.is_set():
            self.store.write(name, data)
            self._there[name] = state
        return True

    def _remove(self, name: str) -> None:
        if not self.stopped.is_set():
            self.store.write(name, None)
            del self._there[name]


def _rank(name: str) -> int:
    """Its place in the order: 0 before what says that it is complete."""
    parts = name.split("/")
    if parts[-1] in (DONE_FILE, RESULTS_FILE):
        return 2
    return int(digests.DIGESTS in parts)


def _state_of(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _each(function: Callable[[str], Any], names: list[str]) -> list:
    """Calls a function of each; after an error, of no further ones."""
    failed = threading.Event()

    def one(name: str) -> Any:
        if failed.is_set():
            return None
        try:
            return function(name)
        except BaseException:
            failed.set()
            raise

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        calls = [pool.submit(one, name) for name in names]
    # Those behind the one that failed were not made.
    for call in calls:
        if error := call.exception():
            raise error
    return [call.result() for call in calls]


class _Sender:
    """Copies what changes, and gives signs of life, in threads."""

    def __init__(self, copy: _Copy, lock: _Lock, note: Callable[[str], None]):
        self._copy, self._lock, self._note = copy, lock, note
        self._last, self._end = threading.Event(), threading.Event()
        self._finishing = threading.Lock()
        self._problem: str | None = None
        # Apart, since copying a large checkpoint may take minutes.
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._send, self._live)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> str:
        """Copies the rest and lets others in; returns why not all was, if so.

        Any thread may call it, and again: it is done once.
        """
        with self._finishing:
            if self._problem is None:
                self._problem = self._finished()
            return self._problem

    def _finished(self) -> str:
        sending, living = self._threads
        try:
            self._last.set()
            sending.join()
            return self._last_copy()
        finally:
            self._end.set()
            self._copy.stopped.set()
            living.join()
            self._copy.close()
            self._lock.release()

    def _last_copy(self) -> str:
        why = "Another run has taken its place."
        for _ in range(_LAST_TRIES):
            try:
                self._beat()
                if self._copy.stopped.is_set():
                    break
                self._copy.send()
                (self._copy.folder.parent / _COPIED).touch()
                return ""
            except Exception as error:
                why = str(error)
                time.sleep(_BETWEEN_TRIES)
        return f"Not all of this run was copied; it is in {self._copy.folder}. {why}"

    def _send(self) -> None:
        said = False
        while not self._last.wait(_EVERY) and not self._copy.stopped.is_set():
            try:
                self._copy.send()
                said = False
            except Exception as error:
                if not said:
                    self._note(f"{error} The run goes on; the copy is tried again.")
                said = True

    def _live(self) -> None:
        while not self._end.wait(_EVERY) and not self._copy.stopped.is_set():
            with contextlib.suppress(InputError):
                self._beat()

    def _beat(self) -> None:
        if not self._lock.beat() and not self._copy.stopped.is_set():
            self._copy.stopped.set()
            self._note(
                f"{self._copy.store.url} was taken over by another run, which took"
                " this one for dead. Nothing more is copied there."
            )
