"""Files of a stage with a line of JSON for each record of a step."""

import io
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lsrjax import json_files


class LinesFile:
    """A file that is appended to; a full disk costs no line if it gets room again."""

    def __init__(self, path: pathlib.Path, first: int, note: Callable[[str], None]):
        """Opens it, and drops the lines of steps after `first`, left by a killed run.

        `note` reports damaged lines, and errors of the disk.
        """
        self._note = note
        self._unwritten = b""
        kept, damaged = [], 0
        for line in _lines(path):
            if line is None:
                damaged += 1
            elif line[1]["step"] > first:
                break
            else:
                kept.append(line[0])
        if damaged:
            note(f"  {path}: {damaged:,} damaged lines are left out.")
        json_files.write_whole(path, "".join(kept))
        # Unbuffered, so that bytes that a full disk refuses are known and kept.
        self._file: io.FileIO = path.open("ab", buffering=0)

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record, which has a "step"."""
        self._write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Closes it, with a last try to write what is left."""
        self._write()
        if self._unwritten:
            lines = self._unwritten.count(b"\n")
            self._note(f"{self._file.name} lacks its last {lines:,} lines.")
        self._file.close()

    def _write(self, text: str = "") -> None:
        """Appends to the file; after a disk error, retries at the next call."""
        said = bool(self._unwritten)
        self._unwritten += text.encode("utf-8")
        try:
            while self._unwritten:
                written = self._file.write(self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            if not said:
                self._note(
                    f"{self._file.name} cannot be written ({error.strerror}); its lines"
                    " are kept until it can."
                )


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The sound records of a file; none if there is no file."""
    return (line[1] for line in _lines(path) if line)


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]] | None]:
    """Each line with its record; None for a damaged line."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            # It was cut off when the run was killed; its step comes again.
            if not line.endswith(b"\n"):
                return
            try:
                text = line.decode("utf-8")
                record = json.loads(text)
            except ValueError:
                record = None
            sound = isinstance(record, dict) and isinstance(record.get("step"), int)
            yield (text, record) if sound else None
