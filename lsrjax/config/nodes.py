"""The nodes of a config: groups of fields, and entries of tables."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# Fields of these types accept any of them; the run's checks look at their content.
_LOOSE = str | list | tuple | dict


class Entry(ConfigDict):
    """An entry of a table: its name, and the options that are set.

    Any option can be set; the run's checks refuse those that the entry lacks.
    """

    def __init__(self, name: str = "", **options: Any):
        super().__init__(
            {"name": name, **options},
            type_safe=False,
            convert_dict=False,
            sort_keys=False,
        )

    def lock(self) -> "Entry":
        """Keeps it open to options."""
        return self


class Group(ConfigDict):
    """Fields by name; once locked, no others can be set."""

    def __init__(self, values: Mapping[str, Any] | None = None):
        super().__init__(values, convert_dict=False, sort_keys=False)

    def __setitem__(self, key: str, value: Any) -> None:
        present = self._fields.get(key)
        if isinstance(present, Entry) and isinstance(value, str):
            value = Entry(value)
        elif isinstance(present, Entry) and isinstance(value, dict):
            value = Entry(**value)
        elif isinstance(present, Group) and isinstance(value, dict | ConfigDict):
            value = value if isinstance(value, Group) else Group(value)
        elif isinstance(present, _LOOSE) and isinstance(value, _LOOSE):
            self._fields[key] = value
            return
        super().__setitem__(key, value)


def entry(name: str, **options: Any) -> Entry:
    """An entry of a table with options, as in `entry("milco", lexecho=True)`.

    `name` is in the table, or the dotted name of your own entry.
    """
    return Entry(name, **options)
