"""Encodes the texts of a corpus into files of vectors, one part after the other.

Reading and tokenizing the next texts and writing the last ones run beside the devices.
A part is a range of texts, made by one process and the same whichever one it is, so any
number of processes share the parts without speaking to each other.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.errors import InputError
from lsrjax.retrieval.encode_texts import Prepared, TextEncoder
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.vector_formats.vectors import SPARSE, Matrix
from lsrjax.retrieval.vector_formats.writing import VectorFiles

# Texts are sorted by length within 64 batches: little padding, bounded memory.
WINDOW_BATCHES = 64
_REPORT_SECONDS = 10.0
# What is read ahead of the devices, and written behind them: windows of each.
_AHEAD = 2
T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How texts become vectors.

    Attributes:
      length: most tokens of a text.
      window: texts that are sorted by length together.
      prune: the budget of terms of a text; None: all.
      quantize: weights of terms are multiplied by it and rounded; 0: they are not.
      stated: each text is encoded in its own language.
    """

    encoder: TextEncoder
    params: dict
    role: str
    length: int
    window: int
    prune: Pruning | None = None
    quantize: float = 0
    stated: bool = False

    @functools.cached_property
    def files(self) -> dict[str, tuple[str, list[str]]]:
        """The files that vectors go to: the kind and the views of each, by its name.

        Views of terms lie side by side in one file if there are no others; a single
        file has no name. Otherwise each view has its file.
        """
        kinds = self.encoder.kinds()
        if all(kind == SPARSE for kind in kinds.values()):
            return {"": (SPARSE, [*kinds])}
        if len(kinds) == 1:
            return {"": (next(iter(kinds.values())), [*kinds])}
        return {view: (kind, [view]) for view, kind in kinds.items()}

    def prepare(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        languages: Sequence[str] | None = None,
    ) -> Prepared:
        """The part of the work that needs no device."""
        spoken = languages if self.stated else None
        how = (self.length, self.role, ids, self.window, spoken)
        return self.encoder.prepare(texts, *how)

    def compute(self, prepared: Prepared) -> dict[str, Matrix]:
        """The views of texts."""
        return self.encoder.encode_prepared(self.params, prepared)

    def finished(self, views: Mapping[str, Matrix]) -> dict[str, Matrix]:
        """The vectors of each file, pruned and quantised."""
        return {
            name: self._terms([views[view] for view in own])
            if kind == SPARSE
            else views[own[0]]
            for name, (kind, own) in self.files.items()
        }

    def _terms(self, matrices: Sequence[Any]) -> sparse.csr_matrix:
        matrix = sparse.hstack(matrices, format="csr", dtype=np.float32)
        if self.prune:
            matrix = self.prune.apply(matrix)
        if self.quantize:
            matrix.data = np.rint(matrix.data * np.float32(self.quantize))
            if len(matrix.data) and abs(matrix.data).max() >= 2**24:
                raise InputError(
                    f"--quantize {self.quantize:g} makes weights of 2^24 and more,"
                    " which are not exact. Choose a smaller factor."
                )
            matrix.eliminate_zeros()
        matrix.sort_indices()
        return matrix


@dataclasses.dataclass(frozen=True)
class Work:
    """A range of texts for some files.

    `done` is called when the files are complete; None: more follows for them.
    """

    files: VectorFiles
    first: int
    end: int
    done: Callable[[], None] | None


def work_of(
    files: VectorFiles, first: int, end: int, step: int, done: Callable[[], None]
) -> Iterator[Work]:
    """The texts from `first` to `end` that the files lack, `step` at a time."""
    start = first + files.rows
    while end - start > step:
        yield Work(files, start, start + step, None)
        start += step
    yield Work(files, start, end, done)


def encode_parts(
    encoding: Encoding,
    texts: NumberedTexts,
    work: Iterable[Work],
) -> None:
    """Does the work in order: reads and writes in threads beside the devices."""
    progress = _Progress()

    def read(one: Work) -> tuple[Work, Prepared]:
        return one, encoding.prepare(*texts.stated(one.first, one.end))

    def write(one: Work, prepared: Prepared, views: Mapping[str, Matrix]) -> None:
        assert prepared.names is not None
        if prepared.names:
            one.files.add(encoding.finished(views), prepared.names)
        if one.done:
            one.files.finish()
            one.done()

    with (
        concurrent.futures.ThreadPoolExecutor(1) as reader,
        concurrent.futures.ThreadPoolExecutor(1) as writer,
    ):
        written: collections.deque[concurrent.futures.Future] = collections.deque()
        for one, prepared in _ahead(reader, read, work):
            views = encoding.compute(prepared)
            if len(written) == _AHEAD:
                written.popleft().result()
            written.append(writer.submit(write, one, prepared, views))
            progress.add(one.end - one.first)
        for future in written:
            future.result()


def _ahead(
    pool: concurrent.futures.Executor, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """The results of a function in order, some computed ahead."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Progress:
    def __init__(self):
        self._started = self._said = time.monotonic()
        self._texts = 0

    def add(self, texts: int) -> None:
        self._texts += texts
        if (at := time.monotonic()) - self._said > _REPORT_SECONDS:
            self._said = at
            speed = self._texts / (at - self._started)
            print(f"{self._texts:,} texts, {speed:,.0f} a second", flush=True)
