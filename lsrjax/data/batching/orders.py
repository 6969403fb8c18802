"""The order of one data set's examples: a pure function of (seed, position)."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

# What a draw is for: streams of random numbers that must not repeat one another.
ORDER, EXAMPLE, DEAL, MIX, TOPICS, REPLACE = range(6)
# Examples are dealt among so many batches, or fewer of more examples.
_DEALT_BATCHES, _DEALT_EXAMPLES = 32, 2048


def dealt_batches(batch_size: int) -> int:
    """Batches that share their examples out among them, at most."""
    return min(max(_DEALT_EXAMPLES // batch_size, 1), _DEALT_BATCHES)


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples make up a batch.

    The examples follow each other epoch after epoch, each epoch in its own random
    order; a batch may span two.

    Attributes:
      examples: their number.
      batch_size: examples in a batch.
      seed: of the order.
      part: number of the data set, where there are several.
    """

    examples: int
    batch_size: int
    seed: int
    part: int = 0

    def __post_init__(self):
        # Of this order only: many orders must not push each other's out.
        permutation = functools.lru_cache(maxsize=2)(self._permutation)
        object.__setattr__(self, "_permutation", permutation)

    def __getitem__(self, batch: int) -> list[tuple[int, int]]:
        """(epoch, example) of each example of the batch."""
        start = batch * self.batch_size
        epochs, examples = self.at(np.arange(start, start + self.batch_size))
        return list(zip(epochs.tolist(), examples.tolist(), strict=True))

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epoch, and which example of it, of each position."""
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
        """The batches that share their examples out among them, this one included.

        They are of one epoch (that of their first examples), so that an epoch's last
        batches leave nothing of it to the next one.
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

    def part_of(self, example: int) -> int:
        """Only examples of the same part take each other's place in a batch."""
        return self.part

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, ORDER, epoch, self.part))
        return rng.permutation(self.examples)
