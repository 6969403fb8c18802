"""What a config is made of: groups of fields, and entries of tables."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from lsrjax.config.moved import place
from lsrjax.errors import InputError

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

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(self._fields.get(key), Entry) and isinstance(value, str):
            value = Entry(value)  # of a table of its own, whose options may follow
        super().__setitem__(key, value)


class Entries(dict):
    """Entries of a table by name, each with its options.

    `c.loss.name = "kl"` is one alone, `c.init.lexical = True` one with its defaults;
    False or an empty text takes one out.
    """

    field = ""  # in the config
    alone = ""  # the option that a text is the value of
    listed = False  # whether names alone, one or several, may be given

    def __init__(self, values: Mapping[str, Any] | Iterable = ()):
        super().__init__()
        if self.listed and not isinstance(values, Mapping):
            names = [values] if isinstance(values, str) else list(values)
            values = {name: {} for name in names if name}
        for name, options in dict(values).items():
            self[name] = options

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "name":
            if not isinstance(value, str) or not value or set(value) & set(":, "):
                raise InputError(
                    f"{self.field}.name is {value!r}; it is one entry. Several, and"
                    f' options, go by name: c.{self.field} = {{"NAME": {{}}, "OTHER":'
                    ' {"OPTION": …}}.'
                )
            self.clear()
            key, value = value, {}
        elif where := place(f"{self.field}.{key}"):
            raise InputError(f"config.{self.field}.{key} has moved: {where}")
        if value is False or value == "":
            self.pop(key, None)
            return
        if self.alone and isinstance(value, str):
            value = {self.alone: value}
        super().__setitem__(key, {} if value is True else value)

    __setattr__ = __setitem__

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise AttributeError(f"no {self.field} {key!r} among {', '.join(self)}")


class Losses(Entries):
    """A stage's losses."""

    field = "loss"


class Initialisations(Entries):
    """A stage's initialisations; `c.init.encoder = "…"` names its model."""

    field = "init"
    alone = "model"


class Adapters(Entries):
    """A stage's adapters."""

    field = "adapt"


class Trackers(Entries):
    """A run's trackers; `c.log.trackers = ("tensorboard", "wandb")` names several."""

    field = "log.trackers"
    listed = True


class NoField(KeyError):
    """A group lacks a field; `fields.load` names the one that is nearest.

    Attributes:
      group: that lacks it.
      field: its name.
      value: that it was to have; None when it was read.
    """

    def __init__(self, group: "Group", field: str, value: Any = None):
        """See the class."""
        super().__init__(f"no field {field!r} among {', '.join(map(str, group))}")
        self.group, self.field, self.value = group, field, value


class Group(ConfigDict):
    """Fields by name; once locked, only those that it has.

    A value of another type than the field's is kept: the check of the whole config
    names it with all else that is wrong.
    """

    def __init__(self, values: Mapping[str, Any] | None = None):
        """A group of these fields, open to more until it is locked."""
        super().__init__(values, convert_dict=False, sort_keys=False)

    def __getitem__(self, key: str) -> Any:
        try:
            return super().__getitem__(key)
        except KeyError:
            raise NoField(self, key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self._fields:
            raise NoField(self, key, value)
        present = self._fields.get(key)
        if isinstance(present, Entry) and isinstance(value, str):
            value = Entry(value)
        elif isinstance(present, Entry) and isinstance(value, dict):
            value = Entry(**value)
        elif isinstance(present, Group) and isinstance(value, dict | ConfigDict):
            value = value if isinstance(value, Group) else Group(value)
        elif isinstance(present, Entries) and present.listed:
            if isinstance(value, str | list | tuple | dict):
                self._fields[key] = type(present)(value)
                return
        elif isinstance(present, Entries) and isinstance(value, str):
            present["name"] = value
            return
        elif isinstance(present, Entries) and isinstance(value, Entry):
            options = value.to_dict()
            self._fields[key] = type(present)({options.pop("name"): options})
            return
        elif isinstance(present, Entries) and isinstance(value, dict):
            self._fields[key] = type(present)(value)
            return
        elif isinstance(present, _LOOSE) and isinstance(value, _LOOSE):
            self._fields[key] = value
            return
        try:
            super().__setitem__(key, value)
        except TypeError:
            if isinstance(present, FieldReference):
                raise
            if isinstance(present, Group):
                raise InputError(
                    f"{key} is {value!r}; it is a group of fields: set one of them,"
                    f" such as {key}.{next(iter(present), 'NAME')}, or give a dict."
                ) from None
            self._fields[key] = value

    def copy_and_resolve_references(self, visit_map=None) -> "Group":
        """A copy that shares nothing; ConfigDict's has the same dicts and lists."""
        found = super().copy_and_resolve_references(visit_map)
        for key, value in found._fields.items():
            if not isinstance(value, ConfigDict):
                found._fields[key] = copy.deepcopy(value)
        return found

    def update(self, *other: Any, **values: Any) -> None:
        """Sets fields, as `ConfigDict.update` does; a name alone replaces an entry."""
        values = dict(*other, **values)
        for key, value in list(values.items()):
            present = self._fields.get(key)
            whole = isinstance(present, Entries) or isinstance(value, str | Entry)
            if isinstance(present, Entry | Entries) and whole:
                self[key] = values.pop(key)
        super().update(values)


def entry(name: str, **options: Any) -> Entry:
    """An entry of a table with options, as in `entry("splade", pooling="sum")`.

    Args:
      name: in the table, or the dotted name of one of your own.
      **options: those that differ from the entry's defaults.
    """
    return Entry(name, **options)
