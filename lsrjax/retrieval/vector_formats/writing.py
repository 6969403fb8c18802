"""Files of vectors, written text by text, that get their names only when complete.

Texts are written to a folder `<file>.partial`, so that a program that was stopped
resumes after the last ones, and a file with the final name is complete.
"""

import dataclasses
import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from lsrjax import json_files
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.retrieval.vector_formats import jsonl
from lsrjax.retrieval.vector_formats.lines import Lines
from lsrjax.retrieval.vector_formats.table import Format
from lsrjax.retrieval.vector_formats.vectors import About, Matrix

_STATE = "state.json"


@dataclasses.dataclass(frozen=True)
class Target:
    """A file of one view.

    Attributes:
      about: what it says that it holds.
      append: of `Format.appender`.
    """

    path: pathlib.Path
    format: Format
    about: About
    append: Callable[[Matrix, Sequence[str], int], Mapping[str, bytes]]

    @classmethod
    def of(
        cls, path: pathlib.Path, form: Format, about: About, whole: bool = False
    ) -> "Target":
        """A file in a format; `whole`: its weights are whole numbers."""
        return cls(path, form, about, form.appender(about, whole))


class VectorFiles:
    """Texts being written, each to the file of each of its views."""

    def __init__(
        self,
        folder: pathlib.Path,
        targets: Mapping[str, Target],
        made_of: Mapping[str, Any],
        *,
        first: int = 0,
        beside: bool = True,
    ):
        """Begins new files, or resumes unfinished ones.

        Args:
          folder: for what is written until all is complete.
          targets: the file of each view.
          made_of: JSON values that the vectors depend on; unfinished files with others
            are refused.
          first: number of the first text among all, for formats that number them.
          beside: writes the `About` of lines beside them.

        Raises:
          InputError: a file exists, or was begun with other values.
        """
        for target in targets.values():
            if target.path.exists():
                raise InputError(
                    f"{target.path} exists. Remove it, or name another --out."
                )
        self._folder, self._targets = folder, dict(targets)
        self._made_of = made_of
        self._first, self._beside = first, beside
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        self._files: dict[tuple[str, str], BinaryIO] = {}
        try:
            self.rows, sizes = self._begun()
            for view, target in self._targets.items():
                inside = folder / view if view else folder
                inside.mkdir(parents=True, exist_ok=True)
                for piece in target.format.pieces(target.about.kind):
                    size = sizes.get(f"{view}/{piece}", 0)
                    self._files[view, piece] = self._opened(inside / piece, size)
        except BaseException:
            self._close()
            raise

    def add(self, matrices: Mapping[str, Matrix], ids: Sequence[str]) -> None:
        """Adds the vectors of texts, by view, and makes them survive a stop."""
        for view, matrix in matrices.items():
            found = self._targets[view].append(matrix, ids, self._first + self.rows)
            for piece, contents in found.items():
                self._files[view, piece].write(contents)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(ids)
        sizes = {
            f"{v}/{piece}": file.tell() for (v, piece), file in self._files.items()
        }
        state = {"made_of": self._made_of, "rows": self.rows, "bytes": sizes}
        json_files.write_json(self._folder / _STATE, state)

    def finish(self) -> None:
        """Gives the files their names, in bounded memory plus 8 bytes a text."""
        self._close()
        for view, target in self._targets.items():
            inside = self._folder / view if view else self._folder
            made = target.format.assembled(inside, target.about)
            _sync(made)
            if self._beside and isinstance(target.format, Lines):
                more = {"rows": self.rows, "bytes": made.stat().st_size}
                text = target.about.json(**more)
                json_files.write_whole(jsonl.about_path(target.path), text + "\n")
            made.replace(target.path)
        # First, so that what a stop leaves of the folder counts as nothing.
        (self._folder / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self._folder)

    def close(self) -> None:
        """Closes the files; keeps the texts so far, removes the folder if empty."""
        self._close()
        if not self.rows:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _close(self) -> None:
        for file in (*self._files.values(), self._lock):
            file.close()

    def _opened(self, path: pathlib.Path, size: int) -> BinaryIO:
        """A file to append to, after its first `size` bytes."""
        file = open(path, "ab")  # noqa: SIM115  (closed by `close`)
        # Texts written after the last recorded state are written again.
        if file.tell() >= size:
            file.truncate(size)
            return file
        file.close()
        raise InputError(
            f"{path} has lost bytes: {size:,} were written. Remove {self._folder}; its"
            " texts are encoded again."
        )

    def _begun(self) -> tuple[int, dict[str, int]]:
        """Number of recorded texts, and the bytes of each file that contain them."""
        path = self._folder / _STATE
        if not path.is_file():
            return 0, {}
        advice = f"Remove {self._folder}; its texts are encoded again."
        made_of, rows, sizes = json_files.read_json(
            path,
            advice,
            lambda v: (dict(v["made_of"]), int(v["rows"]), dict(v["bytes"])),
        )
        trees.check_same(made_of, self._made_of, f"{self._folder} was begun")
        return rows, sizes


def _locked(folder: pathlib.Path) -> BinaryIO:
    """Refuses a second process at the same files; the lock ends with the process."""
    lock = open(folder / "lock", "wb")  # noqa: SIM115  (closed by `close`)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InputError(
            f"{folder}: another process is writing there. Processes that share the work"
            " need --num_processes and --process_id, each its own."
        ) from error
    except OSError:  # a file system without locks
        pass
    return lock


def _sync(path: pathlib.Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
