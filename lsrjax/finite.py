"""Numbers that are not finite are refused, where they come in and where they go out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.errors import InputError


def floats(values: Any, name: str, where: Any) -> np.ndarray:
    """A tensor as float32.

    Args:
      values: the tensor, of any floating-point type.
      name: its name, for the message.
      where: the file or model that holds it, for the message.

    Raises:
      InputError: one of its numbers is not finite, or not in float32.
    """
    with np.errstate(over="ignore"):
        values = np.asarray(values).astype(np.float32, copy=False)
    if np.isfinite(values).all():
        return values
    wrong = ~np.isfinite(values)
    first = tuple(int(axis[0]) for axis in np.nonzero(wrong))
    raise InputError(
        f"{where}: of the tensor {name} {list(values.shape)}, {int(wrong.sum()):,}"
        f" numbers are not finite; the first is {values[first]} at {list(first)}. The"
        " file is damaged, or the training that wrote it has diverged: take another"
        " copy, or an earlier checkpoint."
    )


def check_tree(tree: Mapping[Any, Any], where: Any, above: str = "") -> None:
    """Looks at every floating-point leaf of nested parameters.

    Args:
      tree: nested dictionary of arrays.
      where: what holds them, for the message.
      above: the path of the tree, for the message.

    Raises:
      InputError: one of their numbers is not finite.
    """
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            check_tree(value, where, f"{path}/")
        else:
            floats(value, path, where)
