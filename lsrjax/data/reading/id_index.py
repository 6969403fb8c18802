"""Index from ids to the places of their texts, kept between runs for large files."""

import array
import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import logging

from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.errors import InputError
from lsrjax.paths import cache

_OFFSET_BITS = 44  # of a place: 16 TB a file; the bits above are the file's number
_KEPT = 2**26  # bytes of files for which an index is kept: a second's work
_ENDS = 2**16  # bytes hashed at either end of a file, to detect changes
_VERSION = 2  # of the kept files
_BROKEN = -(2**63)  # in place of a broken text's hash; no id has it


class Index:
    """Id to text over the files of one language; 16 bytes per text."""

    def __init__(self, files: Sequence):
        """Loads an index that was kept, or makes one.

        Args:
          files: each has its `name`; the `paths` it is read from; `ids()`, the place
            and id of each text (None: it is broken); `read(place)`, its id and text;
            `where(place)`, for messages; and `bad(places)`, the errors there.

        Raises:
          InputError: an id with two texts.
        """
        self._files = files
        kept = _kept_at(files)
        arrays = None if kept is None else _load(kept)
        if arrays is None:
            self._hashes, self._places = self._made()
            self._leave_out_repeated()
            if kept is not None:
                _save(kept, (self._hashes, self._places))
        else:
            self._hashes, self._places = arrays
        self.bad = self._broken()

    def __len__(self) -> int:
        return len(self._hashes) - len(self.bad)

    def get(self, key: str) -> str | None:
        """The text of an id, or None."""
        wanted = id_hash(key)
        place = int(np.searchsorted(self._hashes, np.int64(wanted)))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            found, text = self.read(int(self._places[place]))
            if found == key:
                return text
            place += 1
        return None

    def _made(self) -> tuple[np.ndarray, np.ndarray]:
        hashes, places = array.array("q"), array.array("q")
        for number, file in enumerate(self._files):
            for offset, key in file.ids():
                hashes.append(_BROKEN if key is None else id_hash(key))
                places.append(number << _OFFSET_BITS | offset)
        if not hashes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        order = np.argsort(np.frombuffer(hashes, np.int64), kind="stable")
        return (
            np.frombuffer(hashes, np.int64)[order],
            np.frombuffer(places, np.int64)[order],
        )

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of ids, and the places of their texts, in the order of the files."""
        known = self._hashes != _BROKEN
        hashes, places = self._hashes[known], self._places[known]
        order = np.argsort(places)
        return hashes[order], places[order]

    def read(self, place: int) -> tuple[str, str]:
        """Id and text at a place; BadRecord if broken."""
        number, offset = divmod(place, 1 << _OFFSET_BITS)
        return self._files[number].read(offset)

    def _broken(self) -> list[BadRecord]:
        # The sort is stable: places of equal hashes are in order.
        first, end = np.searchsorted(
            self._hashes, np.array([_BROKEN, _BROKEN + 1], np.int64)
        )
        numbers, offsets = np.divmod(self._places[first:end], 1 << _OFFSET_BITS)
        return [
            error
            for number, file in enumerate(self._files)
            for error in file.bad(offsets[numbers == number].tolist())
        ]

    def _leave_out_repeated(self) -> None:
        """Keeps the first of equal texts with the same id."""
        same = np.zeros(len(self._hashes), bool)
        same[1:] = self._hashes[1:] == self._hashes[:-1]
        same &= self._hashes != _BROKEN
        repeated = same.copy()
        first: dict[str, tuple[int, str | None]] = {}
        for place in np.flatnonzero(same).tolist():
            if not same[place - 1]:
                key, text = self._read_or_none(place - 1)
                first = {key: (place - 1, text)}
            key, text = self._read_or_none(place)
            before, known = first.setdefault(key, (place, text))
            if before == place:
                repeated[place] = False  # another id of the same hash
            elif text is None or text != known:
                both = [self._where(int(self._places[at])) for at in (before, place)]
                raise InputError(
                    f"{' and '.join(both)}: the id {key!r} occurs twice, with different"
                    " texts. Remove one of the two."
                )
        self._hashes, self._places = self._hashes[~repeated], self._places[~repeated]

    def _where(self, place: int) -> str:
        number, offset = divmod(place, 1 << _OFFSET_BITS)
        return self._files[number].where(offset)

    def _read_or_none(self, place: int) -> tuple[str, str | None]:
        """Id and text; no text if it is broken."""
        try:
            return self.read(int(self._places[place]))
        except BadRecord as error:
            return f"(of the broken text: {error})", None


def id_hash(key: str) -> int:
    """A 64-bit hash of an id, the same in every process (unlike `hash`)."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8)
    number = int.from_bytes(digest.digest(), "little", signed=True)
    return 0 if number == _BROKEN else number


def _kept_at(files: Sequence) -> pathlib.Path | None:
    """Where the index of files is kept; None for files too small to keep one.

    The name depends on path, size, time and both ends of each file, so it changes with
    the file.
    """
    paths = [pathlib.Path(path).absolute() for file in files for path in file.paths]
    stats = [path.stat() for path in paths]
    if sum(stat.st_size for stat in stats) < _KEPT:
        return None
    names = [file.name for file in files] + [str(path) for path in paths]
    state = [
        (stat.st_size, stat.st_mtime_ns, _ends(path, stat.st_size))
        for path, stat in zip(paths, stats, strict=True)
    ]
    name = f"{_digest([_VERSION, names])}-{_digest(state)}.index"
    return cache() / name


def _ends(path: pathlib.Path, size: int) -> str:
    with open(path, "rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return hashlib.blake2b(head + file.read()).hexdigest()


def _digest(value) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()


def _load(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The contents of `_save`; None if missing, or damaged, with a warning."""
    try:
        digest, contents = path.read_bytes().split(b"\n", 1)
    except OSError:
        return None
    except ValueError:
        digest, contents = b"", b""
    if digest != _digest_of(contents) or len(contents) % 16:
        logging.warning(
            "The kept index %s is damaged; it is made again from the files.", path
        )
        return None
    hashes, places = np.frombuffer(contents, "<i8").reshape(2, -1)
    return hashes, places


def _digest_of(contents: bytes) -> bytes:
    return hashlib.blake2b(contents, digest_size=16).hexdigest().encode()


def _save(path: pathlib.Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    """Keeps an index, replacing an older one of the same files.

    If the folder is not writable, the next run makes the index again. Processes that
    write at once write the same; each renames its own complete file.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix="writing-", delete=False
        ) as file:
            try:
                contents = np.stack(arrays).astype("<i8").tobytes()
                file.write(_digest_of(contents) + b"\n" + contents)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        for other in path.parent.glob(f"{path.name.split('-')[0]}-*"):
            if other != path:
                other.unlink(missing_ok=True)
