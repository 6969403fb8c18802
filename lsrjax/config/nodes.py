"""What a config is made of: groups of fields, and entries of tables."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# Fields of these types may be given as any of them; what they hold is checked later.
_LOOSE = str | list | tuple | dict


class Entry(ConfigDict):
    """An entry of a table: its name, and those of its options that are set.

    Every option can be set; whether the entry has it is checked when the run starts.
    """

    def __init__(self, name: str = "", **options: Any):
        """An entry of this name; see `entry`."""
        super().__init__(
            {"name": name, **options},
            type_safe=False,
            convert_dict=False,
            sort_keys=False,
        )

    def lock(self) -> "Entry":
        """Leaves it open to options."""
        return self


class Group(ConfigDict):
    """Fields by name; once locked, only those that it has."""

    def __init__(self, values: Mapping[str, Any] | None = None):
        """A group of these fields, open to more until it is locked."""
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

    Args:
      name: in the table, or the dotted name of one of your own.
      **options: those that differ from the entry's defaults.
    """
    return Entry(name, **options)
