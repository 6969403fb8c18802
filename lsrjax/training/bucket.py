"""Work directories in object storage: a folder of this machine, and its copy there.

A run works in a folder of its own. What changes in it is copied to the bucket while the
run goes on, in an order in which a copy that was cut off is at worst an older state:
the files of a checkpoint before its digests, without which it does not count, and what
marks a stage as finished last. A start copies everything back, on whatever machine.

TensorStore, which orbax needs anyway, has the clients; it finds credentials where the
vendors' tools have them.
"""

import concurrent.futures
import contextlib
import datetime
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import tensorstore

from lsrjax import paths
from lsrjax.checkpoint import digests
from lsrjax.checkpoint.lock import LOCK_FILE
from lsrjax.checkpoint.names_on_disk import CHECKPOINTS, DONE_FILE
from lsrjax.checkpoint.results_file import RESULTS_FILE
from lsrjax.errors import InputError, TrainingFailed

_DRIVERS = {"gs": "gcs", "s3": "s3"}
# Seconds between two looks for changes, and signs of life of the run.
_EVERY = 20.0
# A run that has given none for so long is dead.
_DEAD_AFTER = 180.0
# Of the last copy, before the run ends without it; seconds between them.
_LAST_TRIES, _BETWEEN_TRIES = 5, 5.0
_AT_ONCE = 8
# Of unfinished files and folders.
_UNFINISHED = re.compile(r"\.tmp(/|$)|\.orbax-checkpoint-tmp")
# The keys of the locks that this process holds.
_HELD: set[object] = set()
# Of a request, after errors that may pass.
_RETRIES = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "4s"}


@contextlib.contextmanager
def copied(url: str, note: Callable[[str], None]) -> Iterator[pathlib.Path]:
    """A folder with what is in a bucket, which goes on to have what is in the folder.

    Args:
      url: a place in a bucket, see `paths.workdir`.
      note: receives reports of what cannot be copied.

    Raises:
      InputError: the bucket cannot be read or written, or another run holds the place.
      TrainingFailed: at the end, not all of the folder could be copied.
    """
    store = Store(url)
    lock = _Lock(store)
    folder = _folder_of(url)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        copy = _Copy(store, folder)
        if copy.fetch():
            note(f"{url} was copied to {folder}, where the run goes on.")
        sender, problem = _Sender(copy, lock, note), ""
        try:
            yield folder
        finally:
            if problem := sender.finish():
                note(problem)
        if problem:
            raise TrainingFailed(problem)
        note(f"All of {folder} is in {url}.")
    finally:
        lock.release()


def probe(url: str) -> None:
    """Writes an object and removes it; `InputError` if that cannot be done."""
    store = Store(url)
    name = f".probe.{uuid.uuid4().hex}"
    store.write(name, b"probe")
    store.write(name, None)


def _folder_of(url: str) -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    digest = hashlib.blake2b(url.encode("utf-8"), digest_size=8).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", url.rstrip("/").rsplit("/", 1)[-1]) or "run"
    return pathlib.Path(cache, "lsrjax", "buckets", digest, name)


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
    """One run at a time: an object with a sign of life."""

    def __init__(self, store: Store):
        self._store = store
        self._mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
            "key": uuid.uuid4().hex,
        }
        data, generation = store.read(LOCK_FILE)
        if data is not None and (holder := self._living(data)):
            raise InputError(
                f"{store.url} is in use by another run ({holder}). Wait for it or end"
                " it, or use another --workdir. If it was killed, it is taken for dead"
                f" {_DEAD_AFTER:.0f} s after its last sign of life; then start again."
            )
        _HELD.add(self._mine["key"])
        store.write(LOCK_FILE, self._text(), generation=generation)
        if not self.holds():
            raise InputError(
                f"{store.url}: another run has started at the same moment. Start again,"
                " or use another --workdir."
            )

    def holds(self) -> bool:
        """Whether no other run has taken it."""
        return self._values(self._store.read(LOCK_FILE)[0]).get("key") == self._key

    def beat(self) -> None:
        """Gives a sign of life."""
        self._store.write(LOCK_FILE, self._text())

    def release(self) -> None:
        """Lets others in."""
        _HELD.discard(self._mine["key"])
        with contextlib.suppress(InputError):
            if self.holds():
                self._store.write(LOCK_FILE, None)

    @property
    def _key(self) -> object:
        return self._mine["key"]

    def _text(self) -> bytes:
        return json.dumps(self._mine | {"seen": time.time()}).encode("utf-8")

    def _living(self, data: bytes) -> str:
        """Who holds it and is alive; otherwise empty."""
        values = self._values(data)
        seen = values.get("seen")
        silent = time.time() - seen if isinstance(seen, int | float) else math.inf
        here, pid = values.get("host") == self._mine["host"], values.get("pid")
        left = values.get("key") not in _HELD if pid == os.getpid() else not _runs(pid)
        if silent > _DEAD_AFTER or (here and left):
            return ""
        return (
            f"host {values.get('host')}, process {pid}, started"
            f" {values.get('started')}, last sign of life {silent:.0f} s ago"
        )

    @staticmethod
    def _values(data: bytes | None) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            values = json.loads(data or b"{}")
            if isinstance(values, dict):
                return values
        return {}


def _runs(pid: object) -> bool:
    """Whether there is such a process on this machine."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


class _Copy:
    """A folder and its copy."""

    def __init__(self, store: Store, folder: pathlib.Path):
        self.store, self.folder = store, folder
        # Of each object: size and time of the file that it is a copy of.
        self._there: dict[str, tuple[int, int]] = {}

    def fetch(self) -> bool:
        """Copies all objects into the folder; whether there are any."""
        names = [name for name in self.store.names() if name != LOCK_FILE]

        def one(name: str) -> None:
            path = self.folder / name
            if self.folder not in pathlib.Path(os.path.abspath(path)).parents:
                raise InputError(f"{self.store.url} has an object {name!r}: remove it.")
            data, _ = self.store.read(name)
            if data is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                self._there[name] = _state_of(path)

        _each(one, names)
        return bool(names)

    def send(self) -> None:
        """Copies what has changed, and removes what is gone."""
        files = self._files()
        for rank in range(3):
            _each(self._send, [name for name in files if _rank(name) == rank])
        gone = [name for name in self._there if name not in files]
        # First what says that the others are there.
        for rank in (2, 1, 0):
            _each(self._remove, [name for name in gone if _rank(name) == rank])

    def _files(self) -> list[str]:
        """The names of the finished files."""
        found = []
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if name == LOCK_FILE or _UNFINISHED.search(name) or not path.is_file():
                continue
            if match := re.fullmatch(rf"([^/]+)/{CHECKPOINTS}/(\d+)/.*", name):
                # Without digests, a checkpoint is not complete.
                record = digests.record_path(self.folder / match[1], int(match[2]))
                if not record.is_file():
                    continue
            found.append(name)
        return found

    def _send(self, name: str) -> None:
        path = self.folder / name
        try:
            state = _state_of(path)
            if self._there.get(name) == state:
                return
            data = path.read_bytes()
        except FileNotFoundError:  # gone since
            return
        self.store.write(name, data)
        self._there[name] = state

    def _remove(self, name: str) -> None:
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


def _each(function: Callable[[str], None], names: list[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in [pool.submit(function, name) for name in names]:
            done.result()


class _Sender:
    """Copies what changes, and gives signs of life, in threads."""

    def __init__(self, copy: _Copy, lock: _Lock, note: Callable[[str], None]):
        self._copy, self._lock, self._note = copy, lock, note
        self._lost = self._said = False
        self._last, self._end = threading.Event(), threading.Event()
        # Apart, since copying a large checkpoint may take minutes.
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._send, self._live)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> str:
        """Copies the rest; returns why that is not possible, if so."""
        sending, living = self._threads
        self._last.set()
        sending.join()
        try:
            return self._try_to_end()
        finally:
            self._end.set()
            living.join()

    def _try_to_end(self) -> str:
        why = "another run has taken it over."
        for _ in range(_LAST_TRIES):
            try:
                self._beat()
                if self._lost:
                    break
                self._copy.send()
                return ""
            except InputError as error:
                why = str(error)
                time.sleep(_BETWEEN_TRIES)
        # The next start makes a new folder of this name.
        where = self._copy.folder.with_name(
            f"{self._copy.folder.name}.{time.time_ns()}"
        )
        self._copy.folder.rename(where)
        return f"Not all of this run was copied; it is in {where}. {why}"

    def _send(self) -> None:
        while not self._last.wait(_EVERY) and not self._lost:
            try:
                self._copy.send()
                self._said = False
            except Exception as error:
                if not self._said:
                    self._note(f"{error} The run goes on; the copy is tried again.")
                self._said = True

    def _live(self) -> None:
        while not self._end.wait(_EVERY) and not self._lost:
            with contextlib.suppress(InputError):
                self._beat()

    def _beat(self) -> None:
        if self._lock.holds():
            self._lock.beat()
        elif not self._lost:
            self._lost = True
            self._note(
                f"{self._copy.store.url} was taken over by another run, which took"
                " this one for dead. Nothing more is copied there."
            )
