"""Batches of data sets with different numbers of documents a query, in turns."""

import copy
import functools
import sys
from collections.abc import Callable, Sequence

from lsrjax.data.batching.length_shapes import Shape
from lsrjax.data.batching.loader import Batches
from lsrjax.data.batching.mixing import MixedOrder


class Turns:
    """Random access to batches, as `Batches`, each with its data set's group size.

    A batch is of one data set. Sets of one group size share their shapes, so that a
    step is compiled for each shape of each group size.
    """

    def __init__(
        self,
        order: MixedOrder,
        group_sizes: Sequence[int],
        make: Callable[[int, Callable[[int], bool]], Batches],
    ):
        """Makes the batches of each group size.

        Args:
          order: of batches of one set each.
          group_sizes: of the sets.
          make: of a group size, and whether a batch has it.
        """
        self._order, self._group_sizes = order, group_sizes
        self._batches = {
            size: make(size, functools.partial(self._has, size))
            for size in sorted(set(group_sizes))
        }

    def _has(self, size: int, batch: int) -> bool:
        return self._size(batch) == size

    def _size(self, batch: int) -> int:
        return self._group_sizes[self._order.set_of_batch(batch)]

    def __len__(self) -> int:
        return sys.maxsize  # without end

    def __getitem__(self, index: int) -> dict:
        """Batch `index`."""
        return self._batches[self._size(index)][index]

    def examples(self, index: int) -> list[int]:
        """The examples of a batch, of all processes."""
        return self._batches[self._size(index)].examples(index)

    @property
    def shapes(self) -> list[dict[str, Shape]]:
        """Those of all group sizes; the last ones have the most documents."""
        return [shape for one in self._batches.values() for shape in one.shapes]

    @property
    def source(self):
        """The source whose examples are numbered."""
        return next(iter(self._batches.values())).source

    @property
    def by_language(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Texts and tokens of the first batches of all group sizes; see `Batches`."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for one in self._batches.values():
            for name, languages in one.by_language.items():
                own = found.setdefault(name, {})
                for language, (texts, tokens) in languages.items():
                    before = own.get(language, (0, 0))
                    own[language] = before[0] + texts, before[1] + tokens
        return found

    @property
    def left_together(self) -> int:
        """Examples so far that share a text with their batch."""
        return sum(one.left_together for one in self._batches.values())

    def on(self, source) -> "Turns":
        """The same examples of another source; see `Batches.on`."""
        other = copy.copy(self)
        other._batches = {size: one.on(source) for size, one in self._batches.items()}
        return other
