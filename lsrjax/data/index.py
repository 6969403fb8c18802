"""Where the text of an id is, in memory or in a file that is kept between runs."""

import array
import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from lsrjax.errors import InputError

_OFFSET_BITS = 44  # of a place: 16 TB a file; the bits above are the file's number
_KEPT = 2**26  # bytes of files from which on an index is kept: about a second's work
_ENDS = 2**16  # bytes at either end of a file that tell whether it has changed
_VERSION = 1  # of what is kept
_BROKEN = -(2**63)  # stands for the id of a text that is broken; no id has this hash


class Index:
    """Id to text over the files of one language; 16 bytes a text."""

    def __init__(self, files: Sequence):
        """Takes an index that was kept, or makes one.

        Args:
          files: each with its `name`, the `paths` it is read from, `ids()`, the place
            and id of each text (None: what is there is broken), `read(place)`, the id
            and text there, and `bad(places)`, what is wrong there.

        Raises:
          InputError: an id that occurs twice.
        """
        self._files = files
        kept = _kept_at(files)
        arrays = None if kept is None else _load(kept)
        if arrays is None:
            arrays = self._made()
            self._hashes, self._places = arrays
            self._check_unique()
            if kept is not None:
                _save(kept, arrays)
                arrays = _load(kept) or arrays  # mapped: pages that may go again
        self._hashes, self._places = arrays
        self.bad = self._broken()

    def __len__(self) -> int:
        return len(self._hashes) - len(self.bad)

    def get(self, key: str) -> str | None:
        """The text of an id, or None."""
        wanted = id_hash(key)
        place = int(np.searchsorted(self._hashes, np.int64(wanted)))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            found, text = self._read(place)
            if found == key:
                return text
            place += 1
        return None

    def _made(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of ids in order, and where each one's text is."""
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

    def _read(self, place: int) -> tuple[str, str]:
        number, offset = divmod(int(self._places[place]), 1 << _OFFSET_BITS)
        return self._files[number].read(offset)

    def _broken(self) -> list[Exception]:
        """What is wrong with the texts that are broken, file by file."""
        ends = np.searchsorted(self._hashes, np.int64([_BROKEN, _BROKEN + 1]))
        # The order of hashes is stable: places of one hash are in order.
        numbers, offsets = np.divmod(self._places[slice(*ends)], 1 << _OFFSET_BITS)
        return [
            error
            for number, file in enumerate(self._files)
            for error in file.bad(offsets[numbers == number].tolist())
        ]

    def _check_unique(self) -> None:
        (same,) = np.nonzero(self._hashes[1:] == self._hashes[:-1])
        for place in same[self._hashes[same] != _BROKEN].tolist():
            key, _ = self._read(place)
            if key == self._read(place + 1)[0]:
                numbers = self._places[place : place + 2] >> _OFFSET_BITS
                names = " and ".join(
                    dict.fromkeys(self._files[n].name for n in numbers.tolist())
                )
                raise InputError(
                    f"{names}: the id {key!r} occurs twice. Remove one of the two."
                )


def id_hash(key: str) -> int:
    """64 bits of an id, the same in every process (`hash` of a string is not)."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8)
    number = int.from_bytes(digest.digest(), "little", signed=True)
    return 0 if number == _BROKEN else number


def _kept_at(files: Sequence) -> pathlib.Path | None:
    """Where the index of files is kept; None for files too small to keep one.

    The name tells path, size, time and both ends of each file: that of a file that has
    changed is another.
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
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    name = f"{_digest([_VERSION, names])}-{_digest(state)}.npy"
    return pathlib.Path(cache) / "lsrjax" / name


def _ends(path: pathlib.Path, size: int) -> str:
    with open(path, "rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return hashlib.blake2b(head + file.read()).hexdigest()


def _digest(value) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()


def _load(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray] | None:
    """What `_save` has written, mapped into memory; None if it is not there whole."""
    try:
        kept = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    whole = kept.dtype == np.int64 and kept.ndim == 2 and len(kept) == 2
    return (kept[0], kept[1]) if whole else None


def _save(path: pathlib.Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    """Keeps an index, in the place of an older one of the same files.

    Where nothing can be written, the next run makes it again. Processes that write at
    once write the same; each renames a file of its own, whole.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix="writing-", delete=False
        ) as file:
            try:
                np.save(file, np.stack(arrays))
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        for other in path.parent.glob(f"{path.name.split('-')[0]}-*.npy"):
            if other != path:
                other.unlink(missing_ok=True)
