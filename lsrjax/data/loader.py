"""Batches: batch i is a pure function of (seed, i), so the position is the step."""

import concurrent.futures
import dataclasses
import functools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from lsrjax.data import shapes
from lsrjax.data.drawing import (
    Drawn,
    Encoded,
    GroupBatches,
    PairBatches,
    TextField,
    draw_language,
    rows_of,
    wording,
)

__all__ = [
    "Batches",
    "Drawn",
    "Encoded",
    "GroupBatches",
    "Order",
    "PairBatches",
    "TextField",
    "deal",
    "draw_language",
    "rows_of",
    "stream",
    "wording",
]

# What a draw is for: streams of random numbers that must not repeat one another.
_ORDER, _EXAMPLE, _DEAL = range(3)
# The shapes are fitted to the first batches: so many, or fewer of more examples.
_SAMPLED_BATCHES, _SAMPLED_EXAMPLES = 32, 4096
# Examples are dealt among so many batches, or fewer of more examples.
_DEALT_BATCHES, _DEALT_EXAMPLES = 32, 2048
# A batch has so many lanes, or fewer where they do not divide it.
_LANES = 8
# Fewer tokens in a part, on average, would leave matrix products waiting for the
# parameters: a chip does some 100 to 300 operations in the time that it reads a number.
_PART_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples make up a batch.

    The examples follow each other epoch after epoch, each epoch in its own random
    order; a batch may span two.

    Attributes:
      examples: their number.
      batch_size: examples in a batch.
      seed: of the order.
    """

    examples: int
    batch_size: int
    seed: int

    def __getitem__(self, batch: int) -> list[tuple[int, int]]:
        """(epoch, example) of each example of the batch."""
        positions = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.examples)
        members = []
        for epoch in np.unique(epochs).tolist():
            chosen = self._permutation(epoch)[places[epochs == epoch]]
            members += [(epoch, example) for example in chosen.tolist()]
        return members

    def window(self, batch: int) -> range:
        """The batches that share their examples out among them, this one included.

        They are of one epoch (that of their first examples), so that an epoch's last
        batches leave nothing of it to the next one.
        """
        epoch = batch * self.batch_size // self.examples
        first, stop = (
            -(-e * self.examples // self.batch_size) for e in (epoch, epoch + 1)
        )
        count = stop - first
        most = min(max(_DEALT_EXAMPLES // self.batch_size, 1), _DEALT_BATCHES)
        windows = -(-count // most)
        chosen = ((batch - first + 1) * windows - 1) // count
        start, stop = (first + c * count // windows for c in (chosen, chosen + 1))
        return range(start, stop)

    @functools.lru_cache(maxsize=4)  # noqa: B019  (one order per program)
    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, _ORDER, epoch))
        return rng.permutation(self.examples)


def deal(sizes_n: Sequence[int], batches: int, turn: int) -> np.ndarray:
    """Deals examples to batches so that their sizes are alike in every batch.

    They are dealt by size, there and back again.

    Args:
      sizes_n: of the examples.
      batches: divides their number.
      turn: the deal begins at this batch.

    Returns:
      The examples of each batch, [batches, n / batches].
    """
    dealt = np.argsort(sizes_n, kind="stable").reshape(-1, batches)
    dealt[1::2] = dealt[1::2, ::-1]
    return np.roll(dealt, turn, axis=1).T


class Batches:
    """Random access to batches: batch i is a pure function of (seed, i).

    A batch is divided over devices by examples. For each model there is what
    `lsrjax.data.shapes.cut` makes of each device's texts, laid end to end, and the
    targets: `{"student": …, "teacher": …, "targets": {name: array}}`.

    Batches of all short or all long texts would pad a lot or be of many shapes. So the
    examples of a window of batches are dealt to them by their tokens. Lane by lane,
    a fixed share of every batch: so a process that reads a part of each batch need not
    read all of the window, and a batch holds the same examples whatever it is divided
    over.
    """

    def __init__(
        self,
        source,
        order: Order,
        build: PairBatches | GroupBatches,
        *,
        devices: int = 1,
        rows: Sequence[int] | None = None,
        parts: int = 12,
        multiple: int = 4,
        agree: Callable[[int, int], int] = lambda batch, shape: shape,
    ):
        """Fits the shapes to the first batches.

        Args:
          source: the examples.
          order: which of them make up which batch.
          build: examples to token ids.
          devices: those that a batch is divided over.
          rows: which of them this process reads for; all by default.
          parts: of a shape, at most; of a few tokens, fewer are made.
          multiple: lengths are multiples of it.
          agree: given a batch's number and the shape that this process needs for it,
            the largest that any process needs.
        """
        self._source = source
        self._order = order
        self._build = build
        self._devices = devices
        self._rows = range(devices) if rows is None else rows
        self._agree = agree
        self._lanes = math.gcd(order.batch_size, _LANES)
        self._lock = threading.Lock()
        self._dealt: dict[tuple, concurrent.futures.Future] = {}
        self.shapes = self._fit(parts, multiple)

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
        batch = {
            name: _laid_end_to_end(
                [
                    shapes.cut(rows, self.shapes[chosen][name], encoded.pad_id)
                    for rows in texts[name]
                ]
            )
            for name, encoded in self._build.encoded.items()
        }
        targets = [example.targets for d in drawn for example in d]
        batch["targets"] = {
            name: np.stack([t[name] for t in targets]) for name in targets[0]
        }
        return batch

    def _draw(self, index: int, rows: Sequence[int]) -> list[list[Drawn]]:
        """The examples of a batch for some of its devices."""
        window = self._order.window(index)
        share = self._order.batch_size // self._devices
        width = self._order.batch_size // self._lanes

        def example(place: int) -> Drawn:
            lane, row = divmod(place, width)
            return self._lane(window, lane)[index - window.start][row]

        return [[example(r * share + i) for i in range(share)] for r in rows]

    def _lane(self, window: range, lane: int) -> list[list[Drawn]]:
        """A lane's examples for each batch of a window, made once for all threads."""
        with self._lock:
            made = self._dealt.get((window.start, lane))
            first = made is None
            if first:
                made = concurrent.futures.Future()
                self._dealt[window.start, lane] = made
                # Threads work on neighbouring batches: of two windows at most.
                while len(self._dealt) > 3 * self._lanes:
                    del self._dealt[next(iter(self._dealt))]
        if first:
            try:
                made.set_result(self._deal(window, lane))
            except BaseException as error:
                made.set_exception(error)
        return made.result()

    def _deal(self, window: range, lane: int) -> list[list[Drawn]]:
        order = self._order
        width = order.batch_size // self._lanes
        members = [
            member
            for batch in window
            for member in order[batch][lane * width : (lane + 1) * width]
        ]
        drawn = self._build.draw(
            [self._source[example] for _, example in members],
            [np.random.default_rng((order.seed, _EXAMPLE, *m)) for m in members],
        )
        # Lanes begin at batches far apart, so that none is the first for all of them.
        turn = lane * len(window) // self._lanes
        dealt = deal([example.tokens for example in drawn], len(window), turn)
        # In no order of size, so that the devices that share a lane are alike.
        rng = np.random.default_rng((order.seed, _DEAL, window.start, lane))
        dealt = rng.permuted(dealt, axis=1)
        return [[drawn[i] for i in batch] for batch in dealt.tolist()]

    def _fit(self, parts: int, multiple: int) -> list[dict[str, shapes.Shape]]:
        """Shapes by model, cheapest first."""
        sampled = _SAMPLED_EXAMPLES // self._order.batch_size
        samples = [
            drawn
            for index in range(min(max(sampled, 4), _SAMPLED_BATCHES))
            for drawn in self._draw(index, range(self._devices))
        ]
        tables = {}
        for name, encoded in self._build.encoded.items():
            lengths_Sn = np.array(
                [[len(r) for r in rows_of(d, encoded)] for d in samples]
            )
            tokens = lengths_Sn.sum() / len(samples)
            tables[name] = shapes.fit(
                lengths_Sn,
                encoded.max_length,
                parts=min(parts, max(int(tokens / _PART_TOKENS), 1)),
                multiple=multiple,
            )
        longest = max(map(len, tables.values()))
        # A shorter table repeats its last shape, which holds everything.
        return [
            {name: table[min(i, len(table) - 1)] for name, table in tables.items()}
            for i in range(longest)
        ]

    def _smallest(self, texts: dict[str, list]) -> int:
        """The first shape that holds every device's texts."""
        lengths = [
            (name, np.sort([len(row) for row in rows]))
            for name, devices in texts.items()
            for rows in devices
        ]
        return next(
            i
            for i, shape in enumerate(self.shapes)
            if all(shape[name].holds(sizes) for name, sizes in lengths)
        )


def _laid_end_to_end(devices: Sequence[dict]) -> dict:
    """What `cut` gives for each device, each array end to end."""
    return {
        "parts": tuple(
            {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            for parts in zip(*(d["parts"] for d in devices), strict=True)
        ),
        **{key: np.concatenate([d[key] for d in devices]) for key in ("place", "text")},
    }


def stream(
    batches: Batches, start: int, stop: int, *, threads: int, prefetch: int
) -> Iterator:
    """The batches from number `start` up to `stop`, made ahead in threads."""
    dataset = grain.MapDataset.source(range(start, stop)).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))
