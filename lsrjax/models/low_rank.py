"""Matrices that change by a product of two small ones: W + s a b in place of W.

In a tree of parameters, a dict stands in the place of such a matrix: `base` is W, `a`
and `b` are the factors, of rank r, and `scale` is s. Of a W [in, out], a is [in, r] and
b [r, out]. Of products side by side, W [in, n, out], each has factors of its own: a is
[in, n, r] and b [n, r, out]. Stacked over layers, all four have a leading axis.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from lsrjax.distributed import sharding, trees
from lsrjax.errors import InputError

# A table's rows are what goes in; a decoder's rows are what comes out.
_MATRIX = re.compile(r"(^|/)(kernel|embedding|decoder)$")
_PRODUCTS = re.compile(r"(attention/(qkv|qk)|glu)/kernel$")
_PARTS = {"base", "a", "b", "scale"}
_SHOWN = 40


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """An adapted matrix as the value of a parameter of a layer."""

    base: Any
    a: Any
    b: Any
    scale: Any

    def __getitem__(self, index) -> jax.Array:
        """Of the plain matrix, for what reads a layer's parameter on its own."""
        return _sum(**vars(self))[index]


def with_factors(
    params: dict, pattern: str, rank: int, alpha: float, seed: int, where: str
) -> dict:
    """Parameters whose matrices of matching paths are adapted.

    One factor is uniform within the root of 1 / its inputs, as in `nn.Linear` of torch
    and so in PEFT, and the other is 0: nothing changes at first.

    Args:
      params: arrays, or in `jax.eval_shape`.
      pattern: regex that matches somewhere in the path of a kernel or table.
      rank: r.
      alpha: r times the scale of the product.
      seed: of the random factors.
      where: the name of the pattern in the config, for errors.

    Raises:
      InputError: no matrix matches, or one has no more than r rows or columns.
    """
    names = [name for name, leaf in trees.named(params).items() if _adapts(name, leaf)]
    chosen = [name for name in names if re.search(pattern, name)]
    if not chosen:
        listing = "\n  ".join(names[:_SHOWN])
        raise InputError(
            f"{where} = {pattern!r} matches no matrix. The model has:\n  {listing}"
        )

    def adapted(path, leaf):
        name = trees.path_name(path)
        if name not in chosen:
            return leaf
        rng = np.random.default_rng((seed, chosen.index(name)))
        lead, (rows, *products, columns) = _split(name, leaf.shape)
        if rank >= min(rows, columns):
            raise InputError(
                f"{where} matches {name} of {rows:,} x {columns:,} numbers, of which a"
                f" product of rank {rank} saves none. Lower the rank, or match less."
            )
        a, b = (*lead, rows, *products, rank), (*lead, *products, rank, columns)
        into_rows = name.endswith("kernel")
        bound = (rows if into_rows else columns) ** -0.5
        drawn = rng.uniform(-bound, bound, a if into_rows else b).astype(np.float32)
        return {
            "base": leaf,
            "a": drawn if into_rows else np.zeros(a, np.float32),
            "b": np.zeros(b, np.float32) if into_rows else drawn,
            "scale": np.full(lead, alpha / rank, np.float32),
        }

    return jax.tree_util.tree_map_with_path(adapted, params)


def is_part(name: str) -> bool:
    """Whether a path is that of a part of an adapted matrix."""
    whole, _, part = name.rpartition("/")
    return part in _PARTS and bool(_MATRIX.search(whole))


def is_factor(name: str) -> bool:
    """Whether a path is that of a factor of an adapted matrix."""
    return is_part(name) and name.endswith(("/a", "/b"))


def stored_as(params: dict, names: Collection[str]) -> dict:
    """A tree of parameters with dicts of parts where the stored `names` have them."""

    def adapted(path, leaf):
        name = trees.path_name(path)
        if f"{name}/base" not in names:
            return leaf
        # Only the structure counts: a checkpoint knows the shapes.
        return dict.fromkeys(sorted(_PARTS), leaf)

    return jax.tree_util.tree_map_with_path(adapted, params)


def factors(params: Mapping) -> dict[str, dict[str, Any]]:
    """The dicts of adapted matrices, without `base`, by the paths of the matrices."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in trees.named(params, is_leaf=_is_adapted).items():
        if _is_adapted(leaf):
            found[name] = {part: leaf[part] for part in ("a", "b", "scale")}
    return found


def merged(params: Mapping) -> dict:
    """The parameters with plain matrices, which have their products added."""
    return jax.tree.map(
        lambda one: _sum(**one) if _is_adapted(one) else one,
        params,
        is_leaf=_is_adapted,
    )


def to_compute(params: Mapping) -> dict:
    """Parameters with a model's structure: a stack's matrices as `LowRank`.

    All others get their products added. Those of a stack get them layer by layer
    (`of_layer`), so that one layer's sums and their gradients exist at a time.
    """

    def node(path, one):
        if not _is_adapted(one):
            return one
        stacked = sharding.is_stacked(trees.path_name(path))
        return LowRank(**one) if stacked else _sum(**one)

    return jax.tree_util.tree_map_with_path(node, params, is_leaf=_is_adapted)


def of_layer(params: Mapping) -> dict:
    """The parameters of one layer with plain matrices."""
    return jax.tree.map(
        lambda one: _sum(**vars(one)) if isinstance(one, LowRank) else one,
        params,
        is_leaf=lambda one: isinstance(one, LowRank),
    )


def _sum(base, a, b, scale):
    """W + s a b, of numpy's arrays or JAX's."""
    with jax.default_matmul_precision("highest"):
        if a.ndim - scale.ndim == 3:
            product = (a.swapaxes(-2, -3) @ b).swapaxes(-2, -3)
        else:
            product = a @ b
    scale = scale.reshape(scale.shape + (1,) * (base.ndim - scale.ndim))
    return base + scale * product


def _is_adapted(node: Any) -> bool:
    return isinstance(node, Mapping) and node.keys() == _PARTS


def _adapts(name: str, leaf) -> bool:
    rank = 3 if _PRODUCTS.search(name) else 2
    return bool(_MATRIX.search(name)) and len(_split(name, leaf.shape)[1]) == rank


def _split(name: str, shape: tuple[int, ...]) -> tuple[tuple, tuple]:
    """The axis of layers, if there is one, and those of one matrix."""
    lead = int(sharding.is_stacked(name))
    return shape[:lead], shape[lead:]
