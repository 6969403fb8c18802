"""Refuses numbers that are not finite, on input and on output."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.errors import InputError


def floats(values: Any, name: str, where: Any) -> np.ndarray:
    """A tensor as float32; `name` and `where` (file or model) are for the message.

    Raises:
      InputError: a number is not finite, or too large for float32.
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
    """Checks every leaf of nested parameters with `floats`.

    `where` and `above`, the path of the tree, are for the message.
    """
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            check_tree(value, where, f"{path}/")
        else:
            floats(value, path, where)
