"""Searches with the first numbers of embeddings (Matryoshka, Kusupati et al. 2022)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.heads import head_class
from lsrjax.models.retriever import RetrieverSpec


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The first `size` numbers of an embedding; `unit`: scaled to length 1."""

    size: int
    unit: bool

    def apply(self, matrix: sparse.csr_matrix) -> sparse.csr_matrix:
        """The prefixes of embeddings [N, D], [N, size] float32."""
        short = np.asarray(matrix[:, : self.size].todense(), np.float32)
        if self.unit:
            lengths = np.linalg.norm(short.astype(np.float64), axis=1, keepdims=True)
            short = (short / np.maximum(lengths, 1e-12)).astype(np.float32)
        return sparse.csr_matrix(short)


def of_sizes(spec: RetrieverSpec, sizes: Sequence[int], flag: str) -> list[Prefix]:
    """The prefixes of a model's embeddings.

    Raises:
      InputError: its texts are not one embedding, or a size is not below that of it.
    """
    if not sizes:
        return []
    if "embedding" not in head_class(spec.head).gives:
        raise InputError(
            f"{flag} is for models of one embedding a text, and this one has the head"
            f" {spec.head!r}. Leave it out."
        )
    (whole,) = spec.views.values()
    for size in sizes:
        if not 0 < size < whole:
            raise InputError(
                f"{flag} names {size}; the embedding has {whole:,} numbers, so give"
                f" sizes from 1 to {whole - 1:,}."
            )
    return [Prefix(size, spec.options.normalize) for size in sizes]


def shortened(model: Any, size: int, flag: str) -> Any:
    """The `SavedModel` whose embeddings are the first `size` numbers of a model's.

    Raises:
      InputError: as of `of_sizes`.
    """
    of_sizes(model.spec, [size], flag)
    spec, towers = model.spec, []
    for params in retriever.towers_of(model.params):
        if params is not None:
            own = head_class(spec.head).shortened
            short, head = own(spec, dict(params.get("head", {})), size)
            towers.append(params | {"head": head})
    document, *query = towers
    params = retriever.with_query_tower(document, *query) if query else document
    return dataclasses.replace(model, spec=short, params=params)
