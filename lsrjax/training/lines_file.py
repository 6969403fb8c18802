"""Files of a stage with a line of JSON for each record of a step."""

import io
import json
import pathlib
from collections.abc import Callable, Mapping
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
        kept, damaged = _lines_up_to(path, first)
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


def _lines_up_to(path: pathlib.Path, step: int) -> tuple[list[str], int]:
    """The sound lines of a file up to a step, and the number of damaged ones."""
    if not path.is_file():
        return [], 0
    kept, damaged = [], 0
    *lines, _ = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            text = line.decode("utf-8")
            number = json.loads(text)["step"]
            if number > step:
                break
        # JSON that is not a step's record raises TypeError or KeyError.
        except (ValueError, TypeError, KeyError):
            damaged += 1
            continue
        kept.append(text + "\n")
    # An unfinished line was cut off when the run was killed; its step comes again.
    return kept, damaged


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The sound records of a file; none if there is no file."""
    lines, _ = _lines_up_to(path, 2**63)
    return [json.loads(line) for line in lines]
