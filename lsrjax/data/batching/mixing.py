"""Mixing of data sets: draw i is example `index` of set `k`, a pure function of i.

To add a mixer, write it here and add a line to `MIXERS`.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data import sources
from lsrjax.data.batching.orders import MIX, Order, dealt_batches
from lsrjax.data.examples import ANY, Group, Items, Pair, Text
from lsrjax.errors import InputError
from lsrjax.options import Options, option, resolve

# Weights that are not whole numbers are rounded to this fraction of the largest.
_WHOLE = 2**40


class Schedule:
    """The set of each draw; every set gets its share of any range of draws.

    The sets are the leaves of a binary tree. Of the first m draws that reach a node,
    floor(m q + phi) go left, where q is the left half's share of the node's weight and
    phi in [0, 1) is drawn from the seed. So the number of a set's earlier draws is
    known without iterating over them. After any number of draws, each set is fewer than
    ceil(log2(sets)) + 1 draws off its share; with equal weights, any `sets` draws in a
    row contain each set once. Integer arithmetic makes it exact.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        if not all(isinstance(weight, int) for weight in weights):
            top = max(weights)
            weights = [max(round(w / top * _WHOLE), 1) for w in weights]
        self._below = [0, *itertools.accumulate(weights)]
        rng = np.random.default_rng((seed, MIX))
        # One for each boundary between sets: each is a node of the tree.
        self._phases = rng.random(len(self._below)).tolist()

    def __call__(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each draw its set, and the number of the set's earlier draws."""
        sets, turns = np.empty((2, len(draws)), np.int64)
        todo = [(0, len(self._below) - 1, np.arange(len(draws)), draws.astype(object))]
        while todo:
            low, high, where, m = todo.pop()
            if not len(where):
                continue
            if high - low == 1:
                sets[where], turns[where] = low, m.astype(np.int64)
                continue
            middle = (low + high) // 2
            part, whole = (self._below[i] - self._below[low] for i in (middle, high))
            phase = min(int(self._phases[middle] * whole), whole - 1)
            lefts = (m * part + phase) // whole
            goes = ((m + 1) * part + phase) // whole > lefts
            goes = goes.astype(bool)
            todo.append((low, middle, where[goes], lefts[goes]))
            todo.append((middle, high, where[~goes], (m - lefts)[~goes]))
        return sets, turns


class MixedOrder:
    """Which examples of several sets make up a batch; like `Order` for one set.

    Examples are numbered set after set. Within each set, epoch follows epoch, each in
    its own random order.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        weights: Sequence[float],
        one: bool,
        numbers: np.ndarray | None = None,
    ):
        """Mixes the sets.

        Args:
          sizes: examples of each set, > 0.
          weights: of the sets, > 0: their shares of the draws.
          one: a draw is a batch, all of one set; otherwise an example.
          numbers: if a set's examples are not contiguous in the source, the number of
            each example there.
        """
        self.examples = sum(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self._one = one
        self._numbers = numbers
        self._starts = [0, *itertools.accumulate(sizes)]
        self._orders = [Order(n, batch_size, seed, part=k) for k, n in enumerate(sizes)]
        self._schedule = Schedule(weights, seed)
        self._sets_n = np.repeat(np.arange(len(sizes)), sizes)
        if numbers is not None:
            self._sets_n[numbers] = self._sets_n.copy()
        # Enough for the neighbouring blocks that threads work on.
        self._kinds = functools.lru_cache(maxsize=4)(self._block)

    def __getitem__(self, batch: int) -> list[tuple[int, int]]:
        """(epoch of its set, example) of each example of the batch."""
        B = self.batch_size
        if self._one:
            (chosen,), (turn,) = self._schedule(np.array([batch]))
            sets, turns = np.full(B, chosen), np.arange(turn * B, (turn + 1) * B)
        else:
            sets, turns = self._schedule(np.arange(batch * B, (batch + 1) * B))
            # Otherwise a device could get the same sets in every batch.
            by = np.random.default_rng((self.seed, MIX, batch)).integers(B)
            sets, turns = np.roll(sets, by), np.roll(turns, by)
        epochs, examples = np.empty((2, B), np.int64)
        for k in np.unique(sets).tolist():
            here = sets == k
            epochs[here], examples[here] = self._orders[k].at(turns[here])
            examples[here] += self._starts[k]
        if self._numbers is not None:
            examples = self._numbers[examples]
        return list(zip(epochs.tolist(), examples.tolist(), strict=True))

    def set_of_batch(self, batch: int) -> int:
        """The set of a batch, if each is of one."""
        (chosen,), _ = self._schedule(np.array([batch]))
        return int(chosen)

    def of(self, source):
        """The source whose examples it numbers."""
        return source

    def window(self, batch: int) -> Sequence[int]:
        """The batches whose examples are dealt together, this one included.

        With batches of one set, they belong to one set and one epoch of it (that of
        their first examples). Otherwise the sets' epochs end anywhere, and some
        examples of an epoch may come before the last ones of the previous one.
        """
        count = dealt_batches(self.batch_size)
        first = batch // count * count
        if not self._one:
            return range(first, first + count)
        kinds = self._kinds(first, count)
        own = kinds[batch - first]
        return tuple(first + i for i, kind in enumerate(kinds) if kind == own)

    def set_of(self, example: int) -> int:
        """The number of the set (or topic) that an example belongs to."""
        return int(self._sets_n[example])

    def part_of(self, example: int) -> int:
        """Only examples of the same part may replace each other in a batch."""
        if self._one:
            return 0  # a window has one part
        return bisect.bisect_right(self._starts, example) - 1

    def _block(self, first: int, count: int) -> list[tuple[int, int]]:
        sets, turns = self._schedule(np.arange(first, first + count))
        return [
            (k, self._orders[k].epoch(turn))
            for k, turn in zip(sets.tolist(), turns.tolist(), strict=True)
        ]


class Concatenated(Items[Any]):
    """The examples of several sources, one source after the other."""

    def __init__(self, sources: Sequence[Items[Any]]):
        """The sources have the same kind of example."""
        self.sources = sources
        self.description = "; ".join(
            dict.fromkeys(getattr(source, "description", "") for source in sources)
        )
        self._starts = [0, *itertools.accumulate(len(source) for source in sources)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Pair | Group:
        source, at = self._at(index)
        return source[at]

    def place(self, index: int) -> dict:
        """Where an example is, for messages."""
        source, at = self._at(index)
        if hasattr(source, "place"):
            return source.place(at)
        return {"file": source.description, "row": at}

    def _at(self, index: int) -> tuple[Any, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        # To the right of all sets that end here: some may be empty.
        k = bisect.bisect_right(self._starts, index) - 1
        return self.sources[k], index - self._starts[k]

    @property
    def documents(self) -> Items[Text]:
        """The corpora of the sources, one after the other."""
        corpora = [getattr(source, "documents", ()) for source in self.sources]
        return Concatenated(list({id(one): one for one in corpora}.values()))


def _round_robin(sizes) -> list[float]:
    """Every set as often as any other."""
    return [1] * len(sizes)


def _proportional(sizes) -> list[float]:
    """Shares in proportion to the sets' examples."""
    return list(sizes.values())


def _temperature(sizes, temperature) -> list[float]:
    """Shares in proportion to n^(1/T) (multilingual BERT; Arivazhagan et al. 2019)."""
    return [n ** (1 / temperature) for n in sizes.values()]


def _weights(sizes, weights) -> list[float]:
    """Shares as its option says."""
    return [weights.get(name, 1.0) for name in sizes]


@dataclasses.dataclass(frozen=True)
class TemperatureOptions(Options):
    """Of `temperature`."""

    temperature: float = option(
        2.0, "shares are examples^(1 / it); 1: proportional", above=0
    )


def _not_positive(weights: Mapping[str, float]) -> str | None:
    positive = all(0 < weight < math.inf for weight in weights.values())
    return None if positive else "weights are > 0 and finite"


@dataclasses.dataclass(frozen=True)
class WeightsOptions(Options):
    """Of `weights`."""

    weights: dict[str, float] = option(
        {}, "shares of the draws by set; 1 for sets not named", problem=_not_positive
    )

    def check_stage(self, stage: Any, where: str) -> None:
        """Refuses the weight of a set that there is not."""
        if unknown := sorted(set(self.weights) - set(stage.data.sets)):
            raise InputError(
                f"{where}.weights names {', '.join(unknown)}; data.sets has"
                f" {', '.join(stage.data.sets) or 'no set'}."
            )


@dataclasses.dataclass(frozen=True)
class Mixer:
    """An entry of `MIXERS`.

    Attributes:
      fn: `(number of examples by set, **options) -> list of the sets' weights`.
    """

    fn: Callable[..., list[float]]
    Options: type[Options] = Options


MIXERS: dict[str, Mixer] = {
    "round_robin": Mixer(_round_robin),
    "proportional": Mixer(_proportional),
    "temperature": Mixer(_temperature, TemperatureOptions),
    "weights": Mixer(_weights, WeightsOptions),
}


def named_sets(data, where: str = "config.data") -> dict[str, Any]:
    """A stage's `data.sets` by their names in errors; without any, `data` itself."""
    sets = {f"{where}.sets.{name}": own for name, own in data.sets.items()}
    return sets or {where: data}


def group_sizes(data) -> list[int]:
    """Documents of a query in each data set of a stage's `data`."""
    return [own.group_size or data.group_size for own in named_sets(data).values()]


def languages(data) -> tuple[str, ...]:
    """The stated languages of the queries and documents of a stage's `data`."""
    found: dict[str, None] = {}
    for own in named_sets(data).values():
        found |= dict.fromkeys(sources.languages(own, "corpus"))
        found |= dict.fromkeys(sources.languages(own, "queries"))
    return tuple(language for language in found if language != ANY)


def open_sets(data, kind: str, mined: bool = False) -> list:
    """The sources that a stage's `data` names, as examples of `kind`.

    With `mined`, negatives come from their corpora. InputError if a source is empty.
    """
    return [_opened(own, kind, mined, at) for at, own in named_sets(data).items()]


def _opened(data, kind: str, mined: bool, where: str):
    source = sources.open_source(data, kind, mined=mined, where=where)
    if not len(source):
        raise InputError(
            f"{where}: the training data has no examples. Point it to other data."
        )
    return source


def order_of(data, sizes: Sequence[int], batch_size: int, seed: int):
    """The order of the examples of a stage's `data`."""
    if not len(data.sets):
        return Order(sizes[0], batch_size, seed)
    return MixedOrder(
        sizes,
        batch_size,
        seed,
        weights=set_weights(data, sizes),
        one=data.batches_from == "one",
    )


def set_weights(data, sizes: Sequence[int]) -> list[float]:
    """The weights of a stage's data sets, > 0, as its mixer gives them."""
    if not len(data.sets):
        return [1.0]
    mixer = resolve(MIXERS, data.mixer, "config.data.mixer")
    named = dict(zip(data.sets, sizes, strict=True))
    return mixer.entry.fn(named, **vars(mixer.options))


def order_of_topics(topics: np.ndarray, batch_size: int, seed: int) -> MixedOrder:
    """Batches of one topic each, each topic as often as it has queries.

    `topics` has the topic of each example, numbered from 0 without gaps.
    """
    sizes = np.bincount(topics).tolist()
    numbers = np.argsort(topics, kind="stable")
    return MixedOrder(sizes, batch_size, seed, weights=sizes, one=True, numbers=numbers)
