"""Rows of a word table that are trained while the table stays: prompt vectors.

In a tree of parameters they stand beside the table `embedding` [V, D]: `prompt` [N, D]
in place of its rows from the number `prompt_start` on, which is float32 as all leaves.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TABLE, ROWS, START = "embedding", "prompt", "prompt_start"
_WORD = "embeddings/word"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompted:
    """A word table with such rows, as the value of a parameter."""

    table: Any
    rows: Any
    start: Any

    def look_up(self, ids: jax.Array) -> jax.Array:
        """The rows of tokens, [..., D]; no gradient has the size of the table."""
        return self._with_rows(jnp.take(self.table, ids, axis=0), self.rows, ids)

    def __getitem__(self, index) -> jax.Array:
        """Of the whole table, for a decoder, which is silent at these rows.

        They are constants there: no gradient comes from them.
        """
        rows = jax.lax.stop_gradient(self.rows)
        return self._with_rows(self.table, rows, jnp.arange(len(self.table)))[index]

    def _with_rows(self, found, rows, ids: jax.Array) -> jax.Array:
        """`found` for `ids`, with the rows in their places."""
        place = ids - self.start.astype(jnp.int32)
        own = (place >= 0) & (place < len(rows))
        return jnp.where(own[..., None], rows[jnp.clip(place, 0, len(rows) - 1)], found)


def beside(tower: dict, start: int, count: int) -> dict:
    """A tower's parameters with `count` rows of its word table, as they are."""
    if not count:
        return tower
    encoder = tower["encoder"]
    word = encoder["embeddings"]["word"]
    table = word[TABLE]
    # Low-rank factors may stand beside the table as well.
    table = table["base"] if isinstance(table, Mapping) else table
    rows = {
        ROWS: table[start : start + count],
        START: np.full((), start, np.float32),
    }
    embeddings = encoder["embeddings"] | {"word": word | rows}
    return tower | {"encoder": encoder | {"embeddings": embeddings}}


def is_rows(name: str) -> bool:
    """Whether a path is that of such rows."""
    return name.endswith(f"{_WORD}/{ROWS}")


def stored_as(params: dict, names: Collection[str]) -> dict:
    """A tree of parameters with rows where the stored `names` have them."""

    def with_rows(node, path: str):
        if not isinstance(node, Mapping):
            return node
        found = {key: with_rows(value, f"{path}{key}/") for key, value in node.items()}
        if f"{path}{ROWS}" in names and TABLE in found:
            # Only the structure counts: a checkpoint knows the shapes.
            leaf = jax.tree.leaves(found)[0]
            found |= {ROWS: leaf, START: leaf}
        return found

    return with_rows(params, "")


def merged(params: Mapping) -> dict:
    """Parameters, numpy's, whose tables have the rows in their places."""

    def whole(table, rows, start):
        table = np.array(table)
        table[int(start) : int(start) + len(rows)] = rows
        return table

    return _each(params, whole)


def to_compute(params: Mapping) -> dict:
    """Parameters with a model's structure: such a table is a `Prompted`."""
    return _each(params, Prompted)


def _each(params: Mapping, made: Callable) -> dict:
    def node(one):
        if not _has_rows(one):
            return one
        return {TABLE: made(one[TABLE], one[ROWS], one[START])}

    return jax.tree.map(node, params, is_leaf=_has_rows)


def _has_rows(node: Any) -> bool:
    return isinstance(node, Mapping) and START in node
