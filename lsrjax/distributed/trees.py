"""The leaves of trees by name, and how two trees differ."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lsrjax.errors import InputError


def path_name(path, separator: str = "/") -> str:
    """`encoder/layers/0/up/kernel` for a path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator=separator)


def named(
    tree, separator: str = "/", is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """Path to leaf of every leaf of a tree; None is no leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    return {path_name(path, separator): leaf for path, leaf in leaves}


def shapes(tree) -> dict[str, tuple[int, ...]]:
    """Path to shape of every array of a tree."""
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}


def unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names that only one side has, or whose values differ; in order."""
    nothing = object()
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if a.get(name, nothing) != b.get(name, nothing)
    ]


def differences(
    a: Mapping[str, Any], b: Mapping[str, Any], labels: tuple[str, str]
) -> list[str]:
    """A line for each of `unequal`: `  name: A 3, B none`, A and B the labels."""

    def shown(label, values, name):
        return f"{label} {values[name]!r}" if name in values else f"{label} has none"

    return [
        f"  {name}: {shown(labels[0], a, name)}, {shown(labels[1], b, name)}"
        for name in unequal(a, b)
    ]


def check_same(there: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    """Refuses to go on with output that was made of something else.

    Args:
      there: what it was made of, read from JSON.
      asked: the same of this command, not yet JSON.
      what: is there, such as "FOLDER was begun".

    Raises:
      InputError: they differ; names the values.
    """
    lines = differences(there, json.loads(json.dumps(asked)), ("there", "asked"))
    if lines:
        raise InputError(
            f"{what} with something else:\n"
            + "\n".join(lines)
            + "\nAsk for the same again, remove it, or name another --out."
        )
