"""Formats of arrays: made of raw pieces once all texts are encoded."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from lsrjax.retrieval.vector_formats import npz
from lsrjax.retrieval.vector_formats.vectors import KINDS, About, Matrix


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A format of arrays.

    Attributes:
      reads: the programs that read it.
      assemble: makes a file of the `npz.pieces` in a folder.
      suffix: of a file's name.
    """

    reads: str
    assemble: Callable[[pathlib.Path, pathlib.Path, About], None]
    suffix: str
    kinds: tuple[str, ...] = KINDS
    quantize: float = 0

    def pieces(self, kind: str) -> tuple[str, ...]:
        """The files that texts are appended to."""
        return npz.pieces(kind)

    def appender(
        self, about: About, whole: bool
    ) -> Callable[[Matrix, Sequence[str], int], Mapping[str, bytes]]:
        """As of `Lines`."""
        return lambda matrix, ids, first: npz.appended(matrix, ids, about.kind)

    def assembled(self, folder: pathlib.Path, about: About) -> pathlib.Path:
        """As of `Lines`."""
        made = folder / "whole"
        self.assemble(folder, made, about)
        return made
