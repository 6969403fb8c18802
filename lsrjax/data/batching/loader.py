"""Batches: batch i is a pure function of (seed, i), so the position is the step."""

import concurrent.futures
import copy
import dataclasses
import itertools
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import grain
import numpy as np

from lsrjax.data.batching import length_shapes
from lsrjax.data.batching.drawing import Build, Drawn, languages_of, rows_of
from lsrjax.data.batching.mixing import MixedOrder
from lsrjax.data.batching.orders import DEAL, EXAMPLE, Order, dealt_batches

# The shapes are fitted to the first 32 batches, or 4,096 examples.
_SAMPLED_BATCHES, _SAMPLED_EXAMPLES = 32, 4096
# Lanes of a batch, fewer if they do not divide it.
_LANES = 8
# With fewer tokens per part, on average, matrix products would wait for the parameters:
# a chip does 100 to 300 operations in the time in which it reads a number.
_PART_TOKENS = 128


def deal(
    sizes_n: Sequence[int],
    batches: int,
    turn: int,
    parts_n: Sequence[int] | None = None,
) -> np.ndarray:
    """Deals examples to batches so that their sizes are alike in every batch.

    They are dealt by size, back and forth over the batches, separately for each part: a
    batch keeps its number of examples of each part.

    Args:
      sizes_n: of the examples, batch after batch.
      batches: divides their number.
      turn: the deal begins at this batch.
      parts_n: of the examples; one part by default.

    Returns:
      The examples of each batch, [batches, n / batches].
    """
    size_n = np.asarray(sizes_n)
    n = len(size_n)
    part_n = np.zeros(n, int) if parts_n is None else np.asarray(parts_n)
    dealt = np.empty(n, int)
    for part in np.unique(part_n):
        here = np.flatnonzero(part_n == part)
        batch = here * batches // n
        row = np.arange(len(here)) - np.searchsorted(batch, batch)
        # Batches with fewer examples of the part get sizes farther apart.
        depth = (row + 0.5) / np.bincount(batch)[batch]
        turned = (batch - turn) % batches
        places = here[np.lexsort((np.where(row % 2, -turned, turned), depth))]
        dealt[places] = here[np.argsort(size_n[here], kind="stable")]
    return dealt.reshape(batches, -1)


def set_apart(
    dealt: np.ndarray, keys_n: Sequence[frozenset], parts_n: Sequence[int]
) -> tuple[np.ndarray, int]:
    """Moves examples that share a key into different batches.

    One of them is swapped with an example of another batch, of the same part and as
    close in size as possible, such that neither shares a key in its new batch.

    Args:
      dealt: the examples of each batch, [batches, width], from `deal`.

    Returns:
      The examples of each batch, and how many of them still share a key with an earlier
      one in their batch, because no such swap exists.
    """
    dealt = dealt.copy()
    batches, width = dealt.shape
    held = [Counter(key for i in batch for key in keys_n[i]) for batch in dealt]

    def fits(new, old, batch) -> bool:
        """Whether `new` shares no key in a batch without `old`."""
        return all(held[batch][key] == (key in keys_n[old]) for key in keys_n[new])

    def move(batch, place) -> bool:
        own = dealt[batch, place]
        if all(held[batch][key] == 1 for key in keys_n[own]):
            return False
        near = sorted(range(width), key=lambda other: abs(other - place))
        for b, p in ((b, p) for p in near for b in range(batches) if b != batch):
            other = dealt[b, p]
            alike = parts_n[own] == parts_n[other]
            if alike and fits(own, other, b) and fits(other, own, batch):
                for where, new, old in ((batch, other, own), (b, own, other)):
                    held[where].subtract(keys_n[old])
                    held[where].update(keys_n[new])
                dealt[batch, place], dealt[b, p] = other, own
                return True
        return False

    # A swap may make room for another one, and none adds a repetition.
    while any([move(*place) for place in np.ndindex(batches, width)]):
        pass
    return dealt, sum(_repeated([keys_n[i] for i in batch]) for batch in dealt)


def _repeated(keys: Sequence[frozenset]) -> int:
    """How many examples share a key with an earlier one."""
    seen: set = set()
    count = 0
    for own in keys:
        count += not seen.isdisjoint(own)
        seen |= own
    return count


class Batches:
    """Random access to batches: batch i is a pure function of (seed, i).

    A batch is divided over devices by examples. It contains, for all texts that are
    encoded together (`build.encoded`), the result of `length_shapes.cut` for each
    device, end to end, and the targets: `{"student": …, "teacher": …, "targets": {name:
    array}}`, and `"queries"` if they are encoded separately.

    Batches of all short or all long texts would need much padding or many shapes. So
    the examples of a window of batches are dealt to them by their tokens, separately
    for each lane, a fixed share of every batch: so a process that reads a part of each
    batch need not read the whole window, and a batch contains the same examples on any
    number of devices.

    With `apart`, no two examples of a batch share a query or a positive text, as far
    as swaps within the window allow (`set_apart`). The batch is then one lane: every
    process reads all of it.

    If `build` repeats its examples (in each language), a batch contains `batch_size` of
    them once, then all of them again.

    Attributes:
      source: of the examples, as the order numbers them.
      by_language: texts and tokens of the first batches, by text and language.
    """

    def __init__(
        self,
        source,
        order: Order | MixedOrder,
        build: Build,
        *,
        apart: bool = False,
        sets: bool = False,
        devices: int = 1,
        rows: Sequence[int] | None = None,
        parts: int = 12,
        multiple: int = 4,
        chunk: int = 0,
        agree: Callable[[int, int], int] = lambda batch, shape: shape,
        own: Callable[[int], bool] = lambda batch: True,
    ):
        """Fits the shapes to the first batches.

        Args:
          sets: adds the target `set`, [B] int32, the number of each example's.
          devices: that a batch is divided over.
          rows: of the devices, those this process reads for; all by default.
          parts: of a shape, at most; fewer if they would have few tokens.
          multiple: lengths are multiples of it.
          chunk: texts that a device encodes at a time; 0: all.
          agree: given a batch's number and the shape that this process needs for it,
            the largest that any process needs.
          own: whether a batch is asked for here, by its number.
        """
        self.source = order.of(source)
        self._order = order
        self._build = build
        self._devices = devices
        self._rows = range(devices) if rows is None else rows
        self._agree = agree
        self._apart = apart
        self._sets = sets
        self._lanes = 1 if apart else math.gcd(order.batch_size, _LANES)
        self._lock = threading.Lock()
        self._dealt: dict[tuple, concurrent.futures.Future] = {}
        # By the window's first batch; threads may deal a window twice.
        self._left: dict[int, int] = {}
        self.shapes = self._fit(parts, multiple, chunk, own)

    def on(self, source) -> "Batches":
        """The same examples of another source, as when their negatives were mined anew.

        Shapes stay as they are, so that nothing is compiled again.
        """
        other = copy.copy(self)
        other.source = self._order.of(source)
        other._lock, other._dealt = threading.Lock(), {}
        return other

    def __len__(self) -> int:
        return sys.maxsize  # without end

    def __getitem__(self, index: int) -> dict:
        """Batch `index`."""
        drawn = self._draw(index, self._rows)
        texts = {
            name: [rows_of(d, encoded) for d in drawn]
            for name, encoded in self._build.encoded.items()
        }
        chosen = self._agree(index, self._smallest(texts))
        first, counts = 0, {}
        for model, own in texts.items():
            for name, rows in own[0].items():
                counts[model, name] = first, len(rows)
                first += self._devices * len(rows)
        batch = {}
        for model, encoded in self._build.encoded.items():
            shape = self.shapes[chosen][model]
            cuts = [
                length_shapes.cut(
                    own,
                    shape,
                    encoded.pad_id,
                    first={
                        name: start + row * count
                        for name in own
                        for start, count in [counts[model, name]]
                    },
                    languages=languages_of(of_row, encoded),
                )
                for row, own, of_row in zip(
                    self._rows, texts[model], drawn, strict=True
                )
            ]
            batch[model] = length_shapes.end_to_end(cuts)
        targets = [example.targets for d in drawn for example in d]
        batch["targets"] = {
            name: np.stack([t[name] for t in targets]) for name in targets[0]
        }
        return batch

    def examples(self, index: int) -> list[int]:
        """The examples of a batch, of all processes."""
        drawn = self._draw(index, range(self._devices))
        return [one.example for device in drawn for one in device]

    @property
    def left_together(self) -> int:
        """Examples so far that share a text with their batch, with `apart`."""
        return sum(self._left.copy().values())

    def _draw(self, index: int, rows: Sequence[int]) -> list[list[Drawn]]:
        window = self._order.window(index)
        count = self._order.batch_size
        share = count * self._build.repeats // self._devices
        width = count // self._lanes
        batch = window.index(index)

        def example(place: int) -> Drawn:
            repeat, place = divmod(place, count)
            lane, row = divmod(place, width)
            return self._lane(window, lane)[batch][row][repeat]

        return [[example(r * share + i) for i in range(share)] for r in rows]

    def _lane(self, window: Sequence[int], lane: int) -> list[list[list[Drawn]]]:
        """A lane's examples for each batch of a window, made once for all threads."""
        with self._lock:
            known = self._dealt.get((window, lane))
            made = known or concurrent.futures.Future()
            if not known:
                self._dealt[window, lane] = made
                # Threads work on neighbouring batches: within two windows, or those of
                # two blocks.
                most = 3 * self._lanes * dealt_batches(self._order.batch_size)
                held = sum(len(batches) for batches, _ in self._dealt)
                while held > most:
                    oldest = next(iter(self._dealt))
                    held -= len(oldest[0])
                    del self._dealt[oldest]
        if not known:
            try:
                made.set_result(self._deal(window, lane))
            except BaseException as error:
                made.set_exception(error)
        return made.result()

    def _deal(self, window: Sequence[int], lane: int) -> list[list[list[Drawn]]]:
        order = self._order
        width = order.batch_size // self._lanes
        members = [
            member
            for batch in window
            for member in order[batch][lane * width : (lane + 1) * width]
        ]
        drawn = self._build.draw(
            [self.source[example] for _, example in members],
            [np.random.default_rng((order.seed, EXAMPLE, *m)) for m in members],
        )
        repeats = [
            [self._numbered(one, example) for one in drawn[i :: len(members)]]
            for i, (_, example) in enumerate(members)
        ]
        parts = [order.part_of(example) for _, example in members]
        sizes = [sum(example.tokens for example in same) for same in repeats]
        # Lanes start at batches far apart, so that no batch is the first for all.
        turn = lane * len(window) // self._lanes
        dealt = deal(sizes, len(window), turn, parts)
        if self._apart:
            keys = [example.keys for example in drawn[: len(members)]]
            dealt, self._left[window[0]] = set_apart(dealt, keys, parts)
        # Shuffled, so that the devices of a lane get similar sizes.
        rng = np.random.default_rng((order.seed, DEAL, window[0], lane))
        dealt = rng.permuted(dealt, axis=1)
        return [[repeats[i] for i in batch] for batch in dealt.tolist()]

    def _numbered(self, drawn: Drawn, example: int) -> Drawn:
        targets = drawn.targets
        if self._sets:
            own = np.array(self._order.set_of(example), np.int32)
            targets = targets | {"set": own}
        return dataclasses.replace(drawn, example=example, targets=targets)

    def _fit(
        self, parts: int, multiple: int, chunk: int, own: Callable[[int], bool]
    ) -> list[dict[str, length_shapes.Shape]]:
        sampled = _SAMPLED_EXAMPLES // self._order.batch_size
        samples = [
            drawn
            for index in itertools.islice(
                filter(own, itertools.count()), min(max(sampled, 4), _SAMPLED_BATCHES)
            )
            for drawn in self._draw(index, range(self._devices))
        ]
        self.by_language = _by_language(one for device in samples for one in device)
        tables = {}
        for name, encoded in self._build.encoded.items():
            lengths_Sn = np.array(
                [
                    [len(r) for own in rows_of(d, encoded).values() for r in own]
                    for d in samples
                ]
            )
            tokens = lengths_Sn.sum() / len(samples)
            tables[name] = length_shapes.fit(
                lengths_Sn,
                encoded.max_length,
                parts=min(parts, max(int(tokens / _PART_TOKENS), 1)),
                multiple=multiple,
                chunks=-(-lengths_Sn.shape[1] // chunk) if chunk else 1,
            )
        longest = max(map(len, tables.values()))
        # A shorter table repeats its last shape, which fits everything.
        return [
            {name: table[min(i, len(table) - 1)] for name, table in tables.items()}
            for i in range(longest)
        ]

    def _smallest(self, texts: dict[str, list[dict]]) -> int:
        lengths = [
            (name, np.sort([len(row) for own in rows.values() for row in own]))
            for name, devices in texts.items()
            for rows in devices
        ]
        return next(
            i
            for i, shape in enumerate(self.shapes)
            if all(shape[name].holds(sizes) for name, sizes in lengths)
        )


def _by_language(drawn: Iterable[Drawn]) -> dict[str, dict[str, tuple[int, int]]]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for one in drawn:
        for name, languages in one.languages.items():
            own = found.setdefault(name, {})
            for language, row in zip(languages, one.texts[name], strict=True):
                texts, tokens = own.get(language, (0, 0))
                own[language] = texts + 1, tokens + len(row)
    return found


def batch_of(step: int, left_out: Collection[int] = ()) -> int:
    """The batch of a step: the `step`-th of those that are not left out."""
    for batch in sorted(left_out):
        step += batch <= step
    return step


def stream(
    batches: Batches,
    start: int,
    stop: int,
    *,
    threads: int,
    prefetch: int,
    left_out: Collection[int] = (),
) -> Iterator:
    """The batches of the steps from `start` up to `stop`, prefetched in threads."""
    numbers: Sequence[int] = range(start, stop)
    if left_out:
        numbers = [batch_of(step, left_out) for step in numbers]
    dataset = grain.MapDataset.source(numbers).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))
