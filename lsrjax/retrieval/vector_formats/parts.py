"""A folder of parts: files of vectors of ranges of texts, and their manifest.

The files are in `parts/`, for programs that read a whole folder. `manifest.json` comes
last: it has the `About` of the vectors and for each part, in the order of the texts,
its file, texts, bytes and BLAKE2b digest.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from lsrjax import json_files
from lsrjax.errors import InputError
from lsrjax.retrieval.vector_formats.jsonl import JsonlVectors
from lsrjax.retrieval.vector_formats.vectors import About, Block, Vectors

MANIFEST = "manifest.json"
PARTS = "parts"
_AGAIN = "Encode again with the same command: only damaged and missing parts are made."


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of a folder: its name, texts, bytes and digest."""

    file: str
    rows: int
    bytes: int
    digest: str

    def __post_init__(self):
        name = isinstance(self.file, str) and pathlib.PurePath(self.file).name
        if not name or name != self.file or name.startswith("."):
            raise ValueError(f"{self.file!r} names no file of the folder")
        if not all(type(n) is int and n >= 0 for n in (self.rows, self.bytes)):
            raise ValueError(f"{self.file}: rows or bytes are no numbers")

    def problem(self, folder: pathlib.Path, whole: bool = True) -> str:
        """What is wrong with the file on disk; empty: nothing.

        `whole`: compares the digest, not only the size.
        """
        path = folder / PARTS / self.file
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != self.bytes:
            return f"has {size:,} bytes, not {self.bytes:,}"
        if whole and digest_of(path) != self.digest:
            return "has other bytes than were written"
        return ""


def digest_of(path: pathlib.Path) -> str:
    """The BLAKE2b digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return digest.hexdigest()


class PartVectors(Vectors):
    """The vectors of a folder of parts, as one."""

    def __init__(
        self,
        folder: pathlib.Path,
        about: About,
        parts: list[Part],
        opener: Callable[[pathlib.Path], Vectors],
    ):
        """`opener` opens a part that says itself what it holds."""
        super().__init__(str(folder), about, sum(part.rows for part in parts))
        self.folder, self.parts, self._opener = folder, parts, opener

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        """As of `Vectors`; a block is of one part. Compares each part's digest."""
        for part in self.parts:
            path = self.folder / PARTS / part.file
            if problem := part.problem(self.folder):
                raise InputError(f"{path} {problem}. {_AGAIN}")
            vectors = (
                JsonlVectors(path, self.about, part.rows)
                if path.suffix == ".jsonl"
                else self._opener(path)
            )
            found = len(vectors), vectors.kind, vectors.columns
            if found != (part.rows, self.kind, self.columns):
                raise InputError(f"{path} is not the part that was written. {_AGAIN}")
            yield from vectors.blocks(rows)


def open_folder(
    folder: pathlib.Path, opener: Callable[[pathlib.Path], Vectors]
) -> PartVectors:
    """The vectors of a folder; InputError if they are incomplete or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder} has no {MANIFEST}: it is no folder of vectors, or not complete."
            f" {_AGAIN}"
        )
    found = json_files.read_json(path, _AGAIN, _manifest)
    if not isinstance(found, tuple):
        listed = ", ".join(str(folder / view) for view in found)
        raise InputError(
            f"{folder} has several views of the texts. Name one of them: {listed}."
        )
    about, parts = found
    for part in parts:
        if problem := part.problem(folder, whole=False):
            raise InputError(f"{folder / PARTS / part.file} {problem}. {_AGAIN}")
    return PartVectors(folder, about, parts, opener)


def _manifest(values: dict[str, Any]) -> tuple[About, list[Part]] | list[str]:
    if "views" in values:
        return [str(view) for view in values["views"]]
    return About.of(values), [Part(**part) for part in values["parts"]]
