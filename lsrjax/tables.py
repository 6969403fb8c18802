"""Looking up what a config names: an entry of a table, or something of the user's."""

import importlib
from collections.abc import Mapping
from typing import Any

from lsrjax.errors import InputError


def entry(table: Mapping[str, Any], name: str, field: str) -> Any:
    """The entry of a name, or what a dotted name imports.

    Args:
      table: entries by name.
      name: one of them, or such as "my_package.heads.MyHead".
      field: of the config, for errors.

    Raises:
      InputError: neither; lists the known ones.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        known = ", ".join(repr(known) for known in table)
        raise InputError(
            f"{field} is {name!r}; known: {known}, or the dotted name of one of your"
            " own, such as 'my_package.my_module.name'."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise InputError(
            f"{field} is {name!r}, which could not be imported ({e}). The package has"
            " to be installed, or PYTHONPATH to name the folder that it lies in."
        ) from e
