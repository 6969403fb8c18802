"""Chooses the documents of a group for training."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lsrjax.data.examples import Group
from lsrjax.data.reading.bad_records import NEGATIVE, POSITIVE, BadRecord
from lsrjax.errors import InputError
from lsrjax.options import Chosen, Options, option, resolve


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chooses documents of a group: positives, then negatives, without repetition.

    A negative that the teacher scores high is likely to be an unlabelled positive;
    `max_score` and `margin` leave such ones out (RocketQA, Qu et al. 2021; margin to
    the positive: NV-Retriever, Moreira et al. 2024).

    Attributes:
      sampler: an entry of `SAMPLERS` with its options.
      positives: number of positive documents, drawn at random.
      max_score: the highest teacher's score of a negative; inf: any.
      margin: a negative's score is at most that of the positive (of several, the
        lowest one) minus this; -inf: any.
      short: a group with too few negatives is a bad record ("bad"), or they are drawn
        at random with replacement ("repeat"), as in FlagEmbedding and MILCO.
    """

    sampler: Chosen = dataclasses.field(default_factory=lambda: sampler())
    positives: int = 1
    max_score: float = math.inf
    margin: float = -math.inf
    short: str = "bad"

    @property
    def filters(self) -> bool:
        """Whether scores exclude negatives."""
        return self.max_score < math.inf or self.margin > -math.inf

    @property
    def needs_scores(self) -> bool:
        """Whether the choice of negatives depends on the teacher's scores."""
        return self.filters or self.sampler.entry.scores

    def __call__(self, group: Group, size: int, rng: np.random.Generator) -> list[int]:
        """Indices into the group's positives and negatives, `size` in all.

        Raises:
          BadRecord: too few documents.
          InputError: no scores.
        """
        if self.needs_scores and group.scores is None:
            raise InputError(
                f"{group.id}: no teacher scores (pos_scores, neg_scores), by which"
                " config.data chooses negatives. Add them, let config.prepare.scores"
                " compute them, or set data.negatives to 'random' without filters."
            )
        P = len(group.positives)
        self._check_positives(group)
        positives = rng.choice(P, self.positives, replace=False)
        places = self._allowed(group, positives)
        need = size - self.positives
        self._check_negatives(group, len(places), size)
        if len(places) < need:
            chosen = rng.choice(len(places), need, replace=True)
        else:
            chosen = self.sampler.entry.fn(
                group, positives, places, need, rng, **vars(self.sampler.options)
            )
        return [*positives.tolist(), *places[chosen].tolist()]

    def check(self, group: Group, size: int) -> None:
        """Raises BadRecord for a group with too few documents in some draw.

        Filters by score are ignored for a group without scores, which may be computed
        later.
        """
        self._check_positives(group)
        filtered = self.filters and group.scores is not None
        left = len(group.negatives)
        if filtered:
            left = len(self._allowed(group, np.arange(len(group.positives))))
        self._check_negatives(group, left, size)

    def _allowed(self, group: Group, positives: np.ndarray) -> np.ndarray:
        places = len(group.positives) + np.arange(len(group.negatives))
        if not self.filters:
            return places
        assert group.scores is not None  # these filters need them
        scores = group.scores[places]
        highest = group.scores[positives].min() - self.margin
        return places[(scores <= self.max_score) & (scores <= highest)]

    def _check_positives(self, group: Group) -> None:
        P = len(group.positives)
        if self.positives > P:
            raise BadRecord(
                POSITIVE,
                f"{group.id}: {P} positives, but config.data.positives asks for"
                f" {self.positives}. Lower it or remove the row.",
            )

    def _check_negatives(self, group: Group, left: int, size: int) -> None:
        need = size - self.positives
        if left < (min(need, 1) if self.short == "repeat" else need):
            raise BadRecord(NEGATIVE, self._too_few(group, left, size))

    def _too_few(self, group: Group, left: int, size: int) -> str:
        found = f"{group.id}: {len(group.negatives)} negatives"
        if left < len(group.negatives):
            found += (
                f", {left} of them within data.negative_max_score ="
                f" {self.max_score:g} and data.negative_margin = {self.margin:g}"
            )
        return (
            f"{found}, but a group of {size} documents needs {size - self.positives}."
            " Lower config.data.group_size, mine negatives"
            " (config.prepare.negatives)"
            + (", loosen the filters" if self.filters else "")
            + (
                ", draw some repeatedly (config.data.short_rows = 'repeat')"
                if self.short != "repeat"
                else ""
            )
            + ", or remove the row."
        )


def _random(group, positives, places, need, rng) -> np.ndarray:
    """Any, with equal probability."""
    return rng.choice(len(places), need, replace=False)


def _top(group, positives, places, need, rng) -> np.ndarray:
    """The first ones of the row."""
    return np.arange(need)


def _rank(group, positives, places, need, rng, scale) -> np.ndarray:
    """Without replacement, with probability proportional to exp(-rank / scale).

    The Gumbel-max trick: the highest values are such draws one after the other
    (Efraimidis and Spirakis 2006). It needs no probability, which could underflow.
    """
    logits = -places / scale
    return np.argsort(-(logits + rng.gumbel(size=len(places))), kind="stable")[:need]


def _margin_bins(group, positives, places, need, rng, bins) -> np.ndarray:
    """TAS-Balanced (Hofstätter et al. 2021), for several negatives of a query.

    The teacher's margins, positive minus negative, from the smallest to the largest,
    are cut into bins of equal width. For each negative a non-empty bin is drawn, then
    one of its remaining negatives.
    """
    margins = group.scores[positives].min() - group.scores[places].astype(np.float64)
    low, high = (margins.min(), margins.max()) if len(margins) else (0.0, 0.0)
    width = (high - low) / bins or 1.0
    bin_of = np.minimum((margins - low) // width, bins - 1)
    left: list[list[int]] = [
        rng.permutation(np.flatnonzero(bin_of == b)).tolist() for b in np.unique(bin_of)
    ]
    chosen = []
    for _ in range(need):
        drawn = int(rng.integers(len(left)))
        chosen.append(left[drawn].pop())
        if not left[drawn]:
            del left[drawn]
    return np.array(chosen, int)


@dataclasses.dataclass(frozen=True)
class RankOptions(Options):
    """Of `rank`."""

    scale: float = option(
        10.0, "a negative is e times less likely after this many ranks", above=0
    )


@dataclasses.dataclass(frozen=True)
class BinsOptions(Options):
    """Of `margin_bins`."""

    bins: int = option(10, "their number, of equal width", above=0)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """An entry of `SAMPLERS`.

    Attributes:
      fn: `(group, indices of its positives, of the allowed negatives, number to choose,
        generator, **options)` -> which of the negatives.
      scores: it needs the teacher's scores.
      ordered: it needs a row's negatives in order, the hardest first.
    """

    fn: Callable[..., np.ndarray]
    Options: type[Options] = Options
    scores: bool = False
    ordered: bool = False


SAMPLERS: dict[str, Sampler] = {
    "random": Sampler(_random),
    "top": Sampler(_top, ordered=True),
    "rank": Sampler(_rank, RankOptions, ordered=True),
    "margin_bins": Sampler(_margin_bins, BinsOptions, scores=True),
}


def sampler(node: Any = "random") -> Chosen:
    """The entry that a stage's `data.negatives` names, with its options."""
    return resolve(SAMPLERS, node, "config.data.negatives")


def choice_of(data) -> Choice:
    """How a stage's `data` chooses the documents of a group."""
    return Choice(
        sampler(data.negatives),
        positives=data.positives,
        max_score=data.negative_max_score,
        margin=data.negative_margin,
        short=data.short_rows,
    )
