"""The order of one data set's examples: a pure function of (seed, position)."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

# The purposes of draws: separate streams of random numbers.
ORDER, EXAMPLE, DEAL, MIX, TOPICS, REPLACE = range(6)
# Examples are dealt among at most 32 batches, or 2,048 examples.
_DEALT_BATCHES, _DEALT_EXAMPLES = 32, 2048


def dealt_batches(batch_size: int) -> int:
    """The most batches whose examples are dealt together."""
    return min(max(_DEALT_EXAMPLES // batch_size, 1), _DEALT_BATCHES)


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples make up a batch.

    Epoch follows epoch, each in its own random order; a batch may span two. Data sets
    that are mixed differ in `part`.
    """

    examples: int
    batch_size: int
    seed: int
    part: int = 0

    def __post_init__(self):
        # A cache per order: many orders must not evict each other's entries.
        permutation = functools.lru_cache(maxsize=2)(self._permutation)
        object.__setattr__(self, "_permutation", permutation)

    def __getitem__(self, batch: int) -> list[tuple[int, int]]:
        """(epoch, example) of each example of the batch."""
        start = batch * self.batch_size
        epochs, examples = self.at(np.arange(start, start + self.batch_size))
        return list(zip(epochs.tolist(), examples.tolist(), strict=True))

    def of(self, source):
        """The source whose examples it numbers."""
        return source

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epoch of each position, and its example."""
        epochs, places = np.divmod(positions, self.examples)
        examples = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            examples[here] = self._permutation(epoch)[places[here]]
        return epochs, examples

    def epoch(self, batch: int) -> int:
        """The epoch of the first example of the batch."""
        return batch * self.batch_size // self.examples

    def window(self, batch: int) -> Sequence[int]:
        """The batches whose examples are dealt together, this one included.

        They belong to one epoch (that of their first examples), so that no example of
        an epoch moves into the next one.
        """
        epoch = self.epoch(batch)
        first, stop = (
            -(-e * self.examples // self.batch_size) for e in (epoch, epoch + 1)
        )
        count = stop - first
        windows = -(-count // dealt_batches(self.batch_size))
        chosen = ((batch - first + 1) * windows - 1) // count
        start, stop = (first + c * count // windows for c in (chosen, chosen + 1))
        return range(start, stop)

    def set_of(self, example: int) -> int:
        """The number of the set that an example belongs to."""
        return self.part

    def part_of(self, example: int) -> int:
        """Only examples of the same part may replace each other in a batch."""
        return self.part

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, ORDER, epoch, self.part))
        return rng.permutation(self.examples)
