"""The options of formats of rows; how several teachers' scores become one."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsrjax.data.reading.corpus import problem as places_problem
from lsrjax.options import Options, no_effect, option


def _zscore(scores_TN: np.ndarray) -> np.ndarray:
    spread = scores_TN.std(axis=1, keepdims=True)
    return (scores_TN - scores_TN.mean(axis=1, keepdims=True)) / np.where(
        spread > 0, spread, 1
    )


def _minmax(scores_TN: np.ndarray) -> np.ndarray:
    lowest = scores_TN.min(axis=1, keepdims=True)
    width = scores_TN.max(axis=1, keepdims=True) - lowest
    return (scores_TN - lowest) / np.where(width > 0, width, 1)


# Of a teacher's scores of one query's documents; equal scores all become 0.
NORMALIZATIONS = {
    "none": lambda scores_TN: scores_TN,
    "zscore": _zscore,  # mean 0, standard deviation 1
    "minmax": _minmax,  # 0 to 1
}


def averaged(
    scores_TN: Any, normalization: str, weights: Sequence[float] | None = None
) -> np.ndarray:
    """The weighted mean [N] float32 of T teachers' scores of a query's documents.

    They are normalized per query and teacher; without weights, all weigh the same.
    """
    normal = NORMALIZATIONS[normalization](np.asarray(scores_TN, np.float64))
    return np.average(normal, axis=0, weights=weights).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Scored(Options):
    """Of rows with a teacher's scores."""

    score_normalization: str = option(
        "none",
        "of a teacher's scores of a query's documents",
        choices=tuple(NORMALIZATIONS),
    )

    def combine(self, scores_TN: Any) -> np.ndarray:
        """T teachers' scores of a query's documents as one, see `averaged`."""
        weights = getattr(self, "score_weights", ()) or None
        return averaged(scores_TN, self.score_normalization, weights)


def _bad_weights(weights: Sequence[float]) -> str | None:
    fine = all(0 <= weight < math.inf for weight in weights)
    if fine and (sum(weights) > 0 or not weights):
        return None
    return "give numbers >= 0, one of them > 0"


@dataclasses.dataclass(frozen=True)
class MilcoOptions(Scored):
    """The columns, and how several teachers' scores become one."""

    query: str = option("query", "column of queries")
    pos: str = option("pos", "column of positive texts")
    neg: str = option("neg", "column of negative texts")
    language: str = option(
        "", "column of the texts' language; empty: language or lang, if there is one"
    )
    pos_scores: str | tuple[str, ...] = option(
        "pos_scores", 'column of their scores; of several teachers: ("a_pos", "b_pos")'
    )
    neg_scores: str | tuple[str, ...] = option(
        "neg_scores", 'the same, in the same order: ("a_neg", "b_neg")'
    )
    score_weights: tuple[float, ...] = option(
        (), "of several teachers; empty: all the same", problem=_bad_weights
    )

    def problem(self) -> str | None:
        """Refuses teachers that lack a column or weight."""
        count = len(several(self.pos_scores))
        if len(several(self.neg_scores)) != count:
            return (
                f"pos_scores names {self.pos_scores!r}, neg_scores"
                f" {self.neg_scores!r}; name one column of each teacher in both"
            )
        weights = self.score_weights
        if count == 1 and weights:
            return no_effect("score_weights", weights, "pos_scores names one teacher")
        if weights and len(weights) != count:
            return (
                f"score_weights has {len(weights)} weights for the {count} teachers of"
                " pos_scores; give each one"
            )
        return None


@dataclasses.dataclass(frozen=True)
class AlignmentOptions(Options):
    """The columns."""

    english: str = option("english", "column of English texts")
    translation: str = option("non_english", "column of their translations")
    language: str = option("language", "column of the translations' languages")


@dataclasses.dataclass(frozen=True)
class ColbertOptions(Scored):
    """Of lines of ids."""

    queries: str | list[Any] | dict[str, Any] = option(
        "", "of ids: as data.corpus", problem=places_problem
    )


@dataclasses.dataclass(frozen=True)
class Graded(Options):
    """Of formats whose labels may be read as scores."""

    grades: bool = option(False, "labels are the scores that losses read")


@dataclasses.dataclass(frozen=True)
class TripletOptions(Scored):
    """Of anchors, positives and maybe negatives."""

    negatives: str = option(
        "any",
        "of the rows that are read: any | some (only rows whose first negative is not"
        " null) | none (only the others)",
        choices=("any", "some", "none"),
    )


@dataclasses.dataclass(frozen=True)
class LabelledOptions(Graded):
    """Of labelled pairs of sentences."""

    min_label: float = option(
        0.5, "rows below this label are left out; with grades, all are read"
    )

    def problem(self) -> str | None:
        """Refuses a lowest label if all rows are read."""
        if self.grades and self.min_label != LabelledOptions.min_label:
            because = "grades is on, so that rows of all labels are read"
            return no_effect("min_label", self.min_label, because)
        return None


@dataclasses.dataclass(frozen=True)
class BeirOptions(Graded):
    """Of a BEIR folder."""

    split: str = option("", "qrels/SPLIT.tsv; empty: train, and dev in config.dev")


def several(columns: str | Sequence[str]) -> Sequence[str]:
    """One column, or those of several teachers, as a list."""
    return [columns] if isinstance(columns, str) else columns
