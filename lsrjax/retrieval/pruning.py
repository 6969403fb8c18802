"""Keeps the strongest terms of sparse vectors: smaller indexes, quicker search."""

import dataclasses

import numpy as np
from scipy import sparse

from lsrjax.errors import InputError

_KINDS = {
    "top": "at most this many terms of a text",
    "mass": "the fewest terms that hold this share of a text's weight",
    "ratio": "terms of at least this share of a text's largest weight",
}


@dataclasses.dataclass(frozen=True)
class Pruning:
    """A budget for the terms of each text.

    `top:128` keeps the 128 largest weights, `mass:0.9` the fewest whose sum is at least
    .9 of the sum of all (Bruch et al., "Efficient Inverted Indexes for Approximate
    Retrieval over Learned Sparse Representations", SIGIR 2024: alpha-mass), `ratio:0.1`
    those of at least a tenth of the largest. Of equal weights the lower column is kept.
    """

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str, where: str = "--prune") -> "Pruning":
        """The budget that `text` names, such as "top:128".

        Raises:
          InputError: an unknown kind, or a value out of its range.
        """
        kind, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        whole = kind == "top" and value >= 1 and value == int(min(value, 2**31))
        if not (whole or (kind in ("mass", "ratio") and 0 < value <= 1)):
            known = "; ".join(f"{name}:N, {what}" for name, what in _KINDS.items())
            raise InputError(
                f"{where} is {text!r}. Known: {known}. The N of top is a whole number"
                " from 1 on, that of the others is above 0 and at most 1; for example"
                " top:128, mass:0.9, ratio:0.1."
            )
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}"

    def apply(self, weights: sparse.csr_matrix) -> sparse.csr_matrix:
        """The [N, V] vectors, without the terms beyond the budget.

        Weights may be negative (codes); their size counts.

        Returns:
          [N, V] float32 with sorted columns and no stored zeros.
        """
        weights = sparse.csr_matrix(weights, dtype=np.float32, copy=True)
        weights.sum_duplicates()
        weights.eliminate_zeros()
        counts = np.diff(weights.indptr)
        rows = np.repeat(np.arange(len(counts)), counts)
        size = np.abs(weights.data.astype(np.float64))
        # Stable: among equal weights the lower column comes first.
        order = np.lexsort((-size, rows))
        starts = np.repeat(weights.indptr[:-1], counts)
        rank, sizes = np.arange(weights.nnz) - starts, size[order]
        if self.kind == "top":
            kept = rank < self.value
        elif self.kind == "ratio":
            kept = sizes >= self.value * sizes[starts]
        else:
            kept = self._holds_mass(sizes, rows, starts, len(counts))
        weights.data[order[~kept]] = 0
        weights.eliminate_zeros()
        return weights

    def _holds_mass(self, sizes, rows, starts, texts: int) -> np.ndarray:
        """Whether the larger weights before this one fall short of the share."""
        if not len(sizes):
            return np.zeros(0, bool)
        before = np.cumsum(sizes) - sizes
        before -= before[starts]
        total = np.bincount(rows, sizes, minlength=texts)
        # Sums differ in their last bits by the order of their terms.
        return before < self.value * total[rows] * (1 - 1e-12)
