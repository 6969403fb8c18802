"""Looks up what a config names: an entry of a table, or the user's own object.

A dotted name runs code when it is imported. Only the user's own config and flags may
introduce one (`entry`); files of a model may name entries of a table, or a dotted name
that the user has given already (`known_entry`).
"""

import contextlib
import importlib
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lsrjax.errors import InputError

# The imported objects of the user's dotted names.
_IMPORTED: dict[str, Any] = {}
# The folders of the user's config files, where dotted names are looked for last.
_BESIDE: list[str] = []


def look_beside(file: str | os.PathLike) -> None:
    """Also looks for dotted names beside a file that runs as the user's own code.

    Such is a config file, never a file of a model.
    """
    folder = str(pathlib.Path(file).absolute().parent)
    if folder not in _BESIDE:
        _BESIDE.append(folder)


@contextlib.contextmanager
def own_imports() -> Iterator[None]:
    """A context of imports from the folders of `look_beside`.

    They come last, so that no file there takes the place of an installed package.
    """
    added = [folder for folder in _BESIDE if folder not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def entry(table: Mapping[str, Any], name: str, field: str) -> Any:
    """The entry of a name, or the object of a dotted name, which is imported.

    Args:
      table: entries by name.
      name: such as "kl" or "my_package.heads.MyHead".
      field: the config's field or the flag, for errors.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module or name.startswith("."):
        raise InputError(
            f"{field} is {name!r}; known: {_names(table)}, or the dotted name of one of"
            " your own, such as 'my_package.my_module.name'."
        )
    try:
        with own_imports():
            found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise InputError(
            f"{field} is {name!r}, which could not be imported ({e}). The package has"
            " to be installed, or its file to be beside the config's, or PYTHONPATH to"
            " name the folder that holds it."
        ) from e
    _IMPORTED[name] = found
    return found


def known_entry(table: Mapping[str, Any], name: Any, what: str, own: str) -> Any:
    """The entry of a name that may come from a file; nothing is imported.

    Args:
      table: entries by name.
      name: an entry, or a dotted name that `entry` has imported for the user.
      what: the kind of entry, for errors.
      own: how a user names their own, for errors.
    """
    if isinstance(name, str):
        if name in table:
            return table[name]
        if name in _IMPORTED:
            return _IMPORTED[name]
    raise InputError(
        f"The {what} {name!r} is none of {_names(table)}. A model's files cannot name"
        f" code, which would run as you. If it is your own: {own}."
    )


def imported(kind: type) -> dict[str, Any]:
    """The objects of a type that the user's dotted names stand for, by name."""
    return {name: one for name, one in _IMPORTED.items() if isinstance(one, kind)}


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in table)
