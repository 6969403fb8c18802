"""Which documents of a group are trained on."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lsrjax.data.sources import Group
from lsrjax.errors import InputError
from lsrjax.tables import entry


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chooses documents of a group: positives, then negatives, none twice.

    A negative that the teacher scores high is likely to be an unlabelled positive;
    `max_score` and `margin` leave such ones out (RocketQA, Qu et al. 2021; margin to
    the positive: NV-Retriever, Moreira et al. 2024).

    Attributes:
      negatives: a key of `SAMPLERS`, how they are chosen.
      positives: positive documents, drawn at random.
      rank_scale: "rank": a negative e times less likely lies so many ranks further.
      bins: "margin_bins": their number.
      max_score: the highest teacher's score of a negative; inf: any.
      margin: a negative's score is at most that of the positive (of several, the
        lowest one) minus this; -inf: any.
    """

    negatives: str = "random"
    positives: int = 1
    rank_scale: float = 10.0
    bins: int = 10
    max_score: float = math.inf
    margin: float = -math.inf

    @property
    def filters(self) -> bool:
        """Whether negatives are left out by score."""
        return self.max_score < math.inf or self.margin > -math.inf

    @property
    def needs_scores(self) -> bool:
        """Whether the teacher's scores say which negatives there are."""
        return self.filters or self.negatives == "margin_bins"

    def __call__(self, group: Group, size: int, rng: np.random.Generator) -> list[int]:
        """Places among the group's positives and negatives, laid end to end.

        Args:
          group: the group.
          size: documents to choose, positives included.
          rng: the generator.

        Raises:
          InputError: too few documents, or no scores; names the group.
        """
        if self.needs_scores and group.scores is None:
            raise InputError(
                f"{group.id}: no teacher scores (pos_scores, neg_scores), by which"
                " config.data chooses negatives. Add them, let config.prepare.scores"
                " compute them, or set data.negatives to 'random' without filters."
            )
        P = len(group.positives)
        if self.positives > P:
            raise InputError(
                f"{group.id}: {P} positives, but config.data.positives asks for"
                f" {self.positives}. Lower it or remove the row."
            )
        positives = rng.choice(P, self.positives, replace=False)
        places = P + np.arange(len(group.negatives))
        if self.filters:
            scores = group.scores[places]
            highest = group.scores[positives].min() - self.margin
            places = places[(scores <= self.max_score) & (scores <= highest)]
        need = size - self.positives
        if len(places) < need:
            raise InputError(self._too_few(group, len(places), size))
        chosen = entry(SAMPLERS, self.negatives, "config.data.negatives")(
            self, group, positives, places, need, rng
        )
        return [*positives.tolist(), *places[chosen].tolist()]

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
            + ", or remove the row."
        )


def _random(choice, group, positives, places, need, rng) -> np.ndarray:
    return rng.choice(len(places), need, replace=False)


def _top(choice, group, positives, places, need, rng) -> np.ndarray:
    return np.arange(need)


def _rank(choice, group, positives, places, need, rng) -> np.ndarray:
    """Without repetition, with probability proportional to exp(-rank / scale).

    The Gumbel-max trick, whose highest values are such draws one after the other
    (Efraimidis and Spirakis 2006): it needs no probability, which could underflow.
    """
    logits = -places / choice.rank_scale
    return np.argsort(-(logits + rng.gumbel(size=len(places))), kind="stable")[:need]


def _margin_bins(choice, group, positives, places, need, rng) -> np.ndarray:
    """TAS-Balanced (Hofstätter et al. 2021), for several negatives of a query.

    The margins of the teacher, positive minus negative, from the smallest to the
    largest, are cut into bins of equal width. For each negative one of the bins that
    have any left is drawn, then one of its negatives.
    """
    margins = group.scores[positives].min() - group.scores[places].astype(np.float64)
    low, high = (margins.min(), margins.max()) if len(margins) else (0.0, 0.0)
    width = (high - low) / choice.bins or 1.0
    bins = np.minimum((margins - low) // width, choice.bins - 1)
    left: list[Sequence[int]] = [
        rng.permutation(np.flatnonzero(bins == b)).tolist() for b in np.unique(bins)
    ]
    chosen = []
    for _ in range(need):
        drawn = int(rng.integers(len(left)))
        chosen.append(left[drawn].pop())
        if not left[drawn]:
            del left[drawn]
    return np.array(chosen, int)


# (choice, group, places of positives, of the negatives that there are, how many to
# choose, generator) -> which of the negatives.
SAMPLERS = {
    "random": _random,
    "top": _top,
    "rank": _rank,
    "margin_bins": _margin_bins,
}


def choice_of(data) -> Choice:
    """How a stage's `data` chooses the documents of a group."""
    return Choice(
        negatives=data.negatives,
        positives=data.positives,
        rank_scale=data.negative_rank_scale,
        bins=data.margin_bins,
        max_score=data.negative_max_score,
        margin=data.negative_margin,
    )
