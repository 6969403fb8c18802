"""Vectors on disk, read block by block; what every format tells about its own."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval import maxsim
from lsrjax.retrieval.maxsim import TokenMatrix

SPARSE, DENSE, TOKENS = "sparse", "dense", "tokens"
KINDS = (SPARSE, DENSE, TOKENS)
Matrix: TypeAlias = sparse.csr_matrix | TokenMatrix
Block: TypeAlias = tuple[list[str], Matrix]


@dataclasses.dataclass(frozen=True)
class About:
    """What a file of vectors holds.

    Attributes:
      kind: "sparse": weights of terms; "dense": an embedding of each text; "tokens": an
        embedding of each of its tokens.
      columns: terms, or the size of an embedding.
      terms: the names of the columns, for sparse vectors.
      made_of: JSON values: the digest of the model, role, max_length, prune, …
    """

    kind: str
    columns: int
    terms: list[str] | None = None
    made_of: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, not one of {', '.join(KINDS)}")
        if type(self.columns) is not int or self.columns < 0:
            raise ValueError(f"columns is {self.columns!r}")
        if not isinstance(self.made_of, dict):
            raise ValueError(f"made_of is {self.made_of!r:.80}, not an object")
        if self.terms is None:
            return
        texts = isinstance(self.terms, list) and {type(t) for t in self.terms} <= {str}
        if not texts or len(self.terms) != self.columns:
            raise ValueError(f"terms are not the names of {self.columns:,} columns")
        if len(set(self.terms)) != self.columns:
            raise ValueError("two columns have the same name")

    def json(self, **more: Any) -> str:
        """All values as JSON."""
        values = dataclasses.asdict(self) | more
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "About":
        """The reverse of `json`; ValueError or KeyError if it is something else."""
        return cls(
            values["kind"], values["columns"], values["terms"], values["made_of"]
        )


class Vectors:
    """The vectors of texts in a file or folder, in the order of the texts.

    Attributes:
      name: of the file or folder, for messages.
      kind, columns, terms, made_of: as in `About`.
    """

    def __init__(self, name: str, about: About, rows: int):
        self.name, self.about, self._rows = name, about, rows
        self.kind, self.columns = about.kind, about.columns
        self.terms, self.made_of = about.terms, about.made_of

    def __len__(self) -> int:
        return self._rows

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        """Ids and vectors of at most `rows` texts at a time.

        Embeddings of texts are rows of a CSR matrix, those of tokens a `TokenMatrix`.

        Raises:
          InputError: the file is damaged; names the place.
        """
        raise NotImplementedError

    def whole(self) -> Block:
        """The ids and vectors of all texts."""
        blocks = list(self.blocks())
        ids = [key for some, _ in blocks for key in some]
        matrices = [matrix for _, matrix in blocks]
        return ids, stacked(matrices, self.kind, self.columns)


def stacked(matrices: Sequence[Any], kind: str, columns: int) -> Matrix:
    """The rows of several blocks as one."""
    if kind == TOKENS:
        nothing = TokenMatrix(np.zeros((0, columns), np.float32), np.zeros(1, np.int64))
        return maxsim.stacked([nothing, *matrices])
    empty = sparse.csr_matrix((0, columns), dtype=np.float32)
    return sparse.vstack([empty, *matrices], format="csr", dtype=np.float32)


def checked(ids: list[str], matrix: Matrix, where: str) -> Block:
    """A block whose numbers are finite; `InputError` otherwise, naming the text."""
    if isinstance(matrix, TokenMatrix):
        wrong = ~np.isfinite(matrix.tokens_TD).all(axis=1)
        starts = matrix.starts
    else:
        wrong, starts = ~np.isfinite(matrix.data), matrix.indptr
    if wrong.any():
        row = np.searchsorted(starts, np.flatnonzero(wrong)[0], side="right") - 1
        raise InputError(
            f"{where}: the vector of {ids[row]!r} has a number that is not finite. The"
            " file is damaged, or was made by a model that diverged: encode again."
        )
    return ids, matrix
