"""Looking up what a config names: an entry of a table, or something of the user's.

A dotted name is code that runs when it is imported. Only the user's own config and
flags may bring one (`entry`); files that come with a model name entries of a table, or
what the user has named already (`known_entry`).
"""

import importlib
from collections.abc import Mapping
from typing import Any

from lsrjax.errors import InputError

# What the user's dotted names have imported, by name.
_IMPORTED: dict[str, Any] = {}


def entry(table: Mapping[str, Any], name: str, field: str) -> Any:
    """The entry of a name, or what a dotted name of the user's imports.

    Args:
      table: entries by name.
      name: one of them, or such as "my_package.heads.MyHead".
      field: of the config, or flag, that the user gave it in; for errors.

    Raises:
      InputError: neither; lists the known ones.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise InputError(
            f"{field} is {name!r}; known: {_names(table)}, or the dotted name of one of"
            " your own, such as 'my_package.my_module.name'."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise InputError(
            f"{field} is {name!r}, which could not be imported ({e}). The package has"
            " to be installed, or PYTHONPATH to name the folder that it lies in."
        ) from e
    _IMPORTED[name] = found
    return found


def known_entry(table: Mapping[str, Any], name: Any, what: str, own: str) -> Any:
    """The entry of a name that may come from a file; nothing is imported.

    Args:
      table: entries by name.
      name: one of them, or a dotted one that `entry` has imported for the user.
      what: it is a name of, for errors.
      own: how the user names one of their own, for errors.

    Raises:
      InputError: neither; lists the known ones.
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


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in table)
