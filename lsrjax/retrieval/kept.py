"""Files of unfinished work: each has its digest, and what it was made of.

A file that is damaged, or that was made of something else, is not used, and this is
said. So what comes out is what the work gives without them.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from lsrjax.distributed import trees
from lsrjax.retrieval.tasks.task import Task

_SHOWN = 3  # values that differ
_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Kept:
    """A folder of unfinished work.

    Attributes:
      folder: made when the first file is written.
      made_of: JSON values that all files depend on.
      say: is called with a line on each file that is not used.
    """

    folder: pathlib.Path
    made_of: Mapping[str, Any]
    say: Callable[[str], None]

    def of(self, **more: Any) -> "Kept":
        """The same folder, for files that depend on `more`."""
        return dataclasses.replace(self, made_of={**self.made_of, **more})

    def file(self, name: str) -> "KeptFile":
        """One of its files, which may not be there."""
        return KeptFile(self, self.folder / name)

    def remove(self) -> None:
        """Removes the folder: the work is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class KeptFile:
    """A file of unfinished work: a line about it, then its bytes."""

    kept: Kept
    path: pathlib.Path

    def read(self) -> bytes | None:
        """The bytes; None without the file, or if it cannot be used."""
        if not self.path.is_file():
            return None
        line, _, content = self.path.read_bytes().partition(b"\n")
        try:
            about = json.loads(line)
            intact = about["sha256"] == _digest(about["made_of"], content)
            there = dict(about["made_of"])
        except (ValueError, KeyError, TypeError):
            intact, there = False, {}
        if not intact:
            self.kept.say(f"{self.path} is damaged; what it held is made anew.")
            return None
        # As JSON, in which tuples are lists.
        asked = json.loads(json.dumps(self.kept.made_of))
        if lines := trees.differences(there, asked, ("there", "asked")):
            said = ";".join(lines[:_SHOWN]).strip()
            self.kept.say(f"{self.path} is of something else, and is made anew: {said}")
            return None
        return content

    def write(self, content: bytes) -> None:
        """Writes the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "sha256": _digest(self.kept.made_of, content),
            "made_of": self.kept.made_of,
        }
        # Another process may be doing the same work.
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            file.write(json.dumps(about).encode() + b"\n" + content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def _digest(made_of: Any, content: bytes) -> str:
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    digest.update(content)
    return digest.hexdigest()


def file_digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def texts_of(task: Task) -> str:
    """A digest of a task: its queries, its documents and its judgements."""
    digest = hashlib.sha256()
    for query in zip(task.queries, task.languages, strict=True):
        digest.update(f"{query!r}\n".encode())
    for more in (task.query_ids, task.document_ids, task.relevant, task.corpus):
        # Texts on demand are read faster in slices.
        for start in range(0, len(more), _AT_ONCE):
            digest.update(repr(list(more[start : start + _AT_ONCE])).encode())
        digest.update(b"\n")
    digest.update(json.dumps([task.name, task.own_ids, task.data]).encode())
    return digest.hexdigest()
