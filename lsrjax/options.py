"""Options that the entries of a table declare, and their values from a config.

An entry declares its options in a frozen dataclass, in its attribute `Options`:

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        temperature: float = option(1.0, "of both softmaxes", above=0)

A config holds an entry as its name, or as a mapping with the entry's name under "name"
and the options that are set. Ranges, choices and documentation are next to the default.
"""

import copy
import dataclasses
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from lsrjax import errors, lookup
from lsrjax.errors import InputError, nearest

_LARGEST = 2**31 - 1  # beyond it, sizes and counters overflow
_LARGEST_FLOAT = 3e38  # float32


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple = (),
    above: float | None = None,
    low: float | None = None,
    below: float | None = None,
    high: float | None = None,
    infinite: bool = False,
    problem: Callable[[Any], str | None] | None = None,
    table: Mapping[str, Any] | None = None,
    fact: bool = False,
    when: str | tuple[str, ...] = (),
) -> Any:
    """A field of a dataclass of options.

    Args:
      default: a default outside the range means that a config must set the option.
      doc: one line of documentation.
      choices: all allowed values.
      above: exclusive lower bound.
      low: inclusive lower bound.
      below: exclusive upper bound.
      high: inclusive upper bound.
      infinite: allow infinity.
      problem: returns a complaint about a value, such as "give a number ...", or None.
      table: the value names an entry of this table.
      fact: comes from a model or a tokenizer; a config may not set it.
      when: what it has an effect with: other options or properties of the dataclass
        that must be on, and conditions of `lsrjax.config.conditions`, whose names have
        several words. Options with "fresh weights" are determined by weights that a
        model gives.
    """
    metadata = {
        "doc": doc,
        "choices": choices,
        "range": (above, low, below, high),
        "infinite": infinite,
        "problem": problem,
        "table": table,
        "fact": fact,
        "when": (when,) if isinstance(when, str) else when,
    }
    if isinstance(default, dict | list):
        return dataclasses.field(
            default_factory=lambda: copy.deepcopy(default), metadata=metadata
        )
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """The base of all options, and the options of an entry that has none.

    Attributes:
      when: conditions of `lsrjax.config.conditions`; without, the entry has no effect.
      because: in words, that a property is off which `when` of an option names.
    """

    when: ClassVar[tuple[str, ...]] = ()
    because: ClassVar[Mapping[str, str]] = {}

    def problem(self) -> str | None:
        """A complaint about a combination of options; begins with a field's name."""
        return None

    def check_stage(self, stage: Any, where: str) -> None:
        """Refuses a stage's config that contradicts the options.

        Args:
          stage: the whole config of the stage.
          where: the name of the options in it, for errors.
        """


@dataclasses.dataclass(frozen=True)
class Chosen:
    """An entry of a table, by its name or dotted name, with its options."""

    name: str
    entry: Any
    options: Any


def resolve(
    table: Mapping[str, Any],
    node: Any,
    where: str,
    inside: str = "",
    find: Callable[[Mapping[str, Any], str, str], Any] = lookup.entry,
) -> Chosen:
    """The entry that a config names, with its options.

    Args:
      table: entries by name.
      node: a name, a mapping with the name under "name" and options, or what was
        chosen before, whose options are checked again.
      where: its name in the config, for errors.
      inside: the name of its options there; empty: the same.
      find: gives the entry of a name. `lookup.entry` imports dotted names, which only
        the user's own config and flags may bring.

    Raises:
      InputError: an unknown entry or option, or a bad value.
    """
    if isinstance(node, Chosen):
        options = checked(kind_of(node.entry), vars(node.options), where, find)
        return Chosen(node.name, node.entry, options)
    mapping = isinstance(node, Mapping | ConfigDict)
    values = dict(node) if mapping else {"name": node}
    name = values.pop("name", "")
    if not isinstance(name, str):
        raise InputError(
            f"{where} is {name!r}; give a name, or a dict of the name and options:"
            f" {', '.join(map(repr, table))}."
        )
    found = find(table, name, where)
    if name not in table:
        _check_own(table, found, name, where)
    kind = kind_of(found)
    for field in values:
        if field not in names(kind):
            raise InputError(_unknown(field, name, kind, table, inside or where))
    return Chosen(name, found, checked(kind, values, inside or where, find))


def resolve_each(
    table: Mapping[str, Any],
    config: Any,
    where: str,
    find: Callable[[Mapping[str, Any], str, str], Any] = lookup.entry,
) -> list[Chosen]:
    """The entries that a config names in a dict, each with its options.

    Raises:
      InputError: as `resolve`, or what should be a dict is none.
    """
    if not isinstance(config, Mapping):
        known = ", ".join(map(repr, table))
        raise InputError(
            f"{where} is {config!r}; give a dict of names, each with its options."
            f" Known: {known}."
        )
    found = []
    for name, given in config.items():
        at = f"{where}.{name}"
        if not isinstance(given, Mapping):
            if meant := _option_of(table, config, name):
                meant = f"{where}.{meant}"
                raise InputError(f"{where} has no {name!r}. Did you mean {meant}?")
            raise InputError(
                f"{at} is {given!r}; give its options by name, as a dict: {{}} for the"
                " defaults."
            )
        found.append(resolve(table, {**given, "name": name}, where, at, find))
    return found


def _option_of(table: Mapping[str, Any], config: Any, name: str) -> str | None:
    """The option of one of the entries that was named as if it were an entry."""
    for entry in () if name in table else config:
        known = names(kind_of(table[entry])) if entry in table else ()
        if near := nearest(name, known):
            return f"{entry}.{near}"
    return None


def find_known(table: Mapping[str, Any], name: str, where: str) -> Any:
    """For `resolve` of what a file holds: imports nothing; see `lookup.known_entry`."""
    return lookup.known_entry(table, name, f"entry of {where}", "name it in the config")


def kind_of(entry: Any) -> type[Options]:
    """The dataclass of an entry's options."""
    return getattr(entry, "Options", Options)


def _check_own(table: Mapping[str, Any], entry: Any, name: str, where: str) -> None:
    """Refuses what is no entry of the table's kind, or declares its options wrongly.

    Raises:
      InputError: says what to write.
    """
    said = f"{where} names {name!r}, which"
    kinds = {type(one) for one in table.values()}
    (like,) = kinds if len(kinds) == 1 else (object,)
    if not issubclass(like, type) and not isinstance(entry, like):
        wrap = " Wrap the function in one." * callable(entry)
        raise InputError(
            f"{said} is no {_path(like)} but {type(entry).__name__}.{wrap}"
        )
    held = vars(entry) if hasattr(like, "Options") else {}
    for field, given in held.items():
        is_kind = isinstance(given, type) and dataclasses.is_dataclass(given)
        kinds_there = (isinstance(vars(one).get(field), type) for one in table.values())
        if field != "Options" and is_kind and not any(kinds_there):
            raise InputError(
                f"{said} has the options {given.__name__} as its {field}; write"
                f" {like.__name__}(…, Options={given.__name__})."
            )
    _check_kind(kind_of(entry), getattr(like, "Options", Options), said)


def _check_kind(kind: Any, base: type, said: str) -> None:
    """Refuses what is no dataclass of options; `base` is that of the other entries."""
    called = _path(kind) if isinstance(kind, type) else repr(kind)
    said = f"{said} has the Options {called}, but"
    kinds = base.__mro__  # the one below `Options`: regularizers may have fewer
    below: Any = kinds[max(kinds.index(Options) - 1, 0)]
    if not (isinstance(kind, type) and issubclass(kind, below)):
        raise InputError(f"{said} they have to be a subclass of {_path(base)}.")
    if "__dataclass_fields__" not in vars(kind) and inspect.get_annotations(kind):
        raise InputError(
            f"{said} that is no dataclass; write @dataclasses.dataclass(frozen=True)"
            " above it."
        )
    for field in dataclasses.fields(kind):
        if "doc" not in field.metadata:
            raise InputError(
                f"{said} its field {field.name} is no lsrjax.options.option(…); give"
                f" its default and what it is: {field.name}: float = option(1.0,"
                ' "what it is").'
            )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def names(kind: type) -> list[str]:
    """The options that a config may set."""
    return [f.name for f in dataclasses.fields(kind) if not f.metadata.get("fact")]


def carried(options: Any, before: Any) -> Any:
    """A config's options, with those that weights determine taken from `before`."""
    decided = {
        field.name: getattr(before, field.name)
        for field in dataclasses.fields(options)
        if field.metadata["fact"] or "fresh weights" in field.metadata["when"]
    }
    return dataclasses.replace(options, **decided)


def plain(chosen: Chosen | list[Chosen]) -> dict[str, Any]:
    """Entries as a config has them, with all of their options that may be set."""
    if isinstance(chosen, list):
        return {one.name: plain(one) for one in chosen}
    kept = names(type(chosen.options))
    values = {k: v for k, v in as_dict(chosen.options).items() if k in kept}
    return {"name": chosen.name, **values}


def as_dict(options: Any) -> dict[str, Any]:
    """All options by name; `checked` reads them back."""
    return {
        name: plain(value) if isinstance(value, Chosen) or _several(value) else value
        for name, value in vars(options).items()
    }


def _several(value: Any) -> bool:
    """Whether an option's value is what `resolve_each` returns."""
    return isinstance(value, list) and any(isinstance(one, Chosen) for one in value)


def checked(
    kind: type,
    values: Mapping[str, Any],
    where: str,
    find: Callable[[Mapping[str, Any], str, str], Any] = lookup.entry,
) -> Any:
    """An instance of a dataclass of options, with defaults for missing values.

    `where` names the values in errors, `find` is that of `resolve`.

    Raises:
      InputError: a value of another type, out of range, or not a choice.
    """
    hints = typing.get_type_hints(kind)
    found = {}
    with errors.together() as each:
        for field in dataclasses.fields(kind):
            with each:
                found[field.name] = _option(
                    field, hints[field.name], values, f"{where}.{field.name}", find
                )
    with errors.together() as each:
        made = kind(**found)
        for option, name in set_with(made):
            if " " not in name and not getattr(made, name):
                words = getattr(made, "because", {}).get(name)
                because = words or f"{name} is {_off(getattr(made, name))}"
                said = no_effect(*set_value(made, option), because)
                each.add(f"{where}.{said}")
        if isinstance(made, Options) and (problem := made.problem()):
            each.add(f"{where}.{problem}")
    return made


def _option(
    field: dataclasses.Field,
    hint: Any,
    values: Mapping[str, Any],
    where: str,
    find: Callable[[Mapping[str, Any], str, str], Any],
) -> Any:
    value = values.get(field.name, default_of(field))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return checked(hint, values.get(field.name, {}), where, find)
    if is_named_groups(hint):
        return dict(value)
    if field.metadata.get("table") is not None:
        return named_by(field, value, where, find)
    return _checked(field, hint, value, where)


def set_with(options: Any) -> Iterator[tuple[str, str]]:
    """The options that differ from their defaults, and what `when` of each names."""
    for field in dataclasses.fields(options):
        names = field.metadata.get("when", ())
        if names and getattr(options, field.name) != _plain_default(field):
            yield from ((field.name, name) for name in names)


def set_value(options: Any, name: str) -> tuple[str, Any]:
    """The name and value of an option that is set; those of an entry's own, if any."""
    value = getattr(options, name)
    if _several(value):
        return name, {one.name: dict(set_options(one.options)) for one in value}
    own = list(set_options(value.options)) if isinstance(value, Chosen) else []
    if own:
        return f"{name}.{own[0][0]}", own[0][1]
    return name, value.name if isinstance(value, Chosen) else value


def set_options(options: Any) -> Iterator[tuple[str, Any]]:
    """The options that differ from their defaults by dotted name, and their values."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if not isinstance(value, Chosen) and dataclasses.is_dataclass(value):
            yield from ((f"{field.name}.{key}", of) for key, of in set_options(value))
        elif value != _plain_default(field):
            yield set_value(options, field.name)


def check_no_effect(
    options: Any, where: str, names: Collection[str], because: str
) -> None:
    """Refuses options, or groups of them, that differ from their defaults.

    Raises:
      InputError: names them, and `because`, why they have no effect.
    """
    with errors.together() as each:
        for name, value in set_options(options):
            if any(f"{name}.".startswith(f"{one}.") for one in names):
                each.add(f"{where}.{no_effect(name, value, because)}")


def _off(value: Any) -> str:
    return "off" if value is False else "empty" if value == "" else f"{value:g}"


def _plain_default(field: dataclasses.Field) -> Any:
    """A field's default; of an entry, the `Chosen` one."""
    default, table = default_of(field), field.metadata["table"]
    return default if table is None else named_by(field, default, field.name)


def default_of(field: dataclasses.Field) -> Any:
    """A field's default; empty for a group of fields."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return {}


def named_by(
    field: dataclasses.Field,
    value: Any,
    where: str,
    find: Callable[[Mapping[str, Any], str, str], Any] = lookup.entry,
) -> Any:
    """The entry that a field with a table names, or all of them if it has several.

    Raises:
      InputError: as `resolve` and `resolve_each`, whose arguments these are.
    """
    choose = resolve_each if isinstance(default_of(field), Mapping) else resolve
    return choose(field.metadata["table"], value, where, find=find)


def is_named_groups(hint: Any) -> bool:
    """Whether a field holds named groups of fields."""
    inner = typing.get_args(hint)
    of_groups = typing.get_origin(hint) is dict and dataclasses.is_dataclass(inner[1])
    return bool(of_groups)


def bad_pattern(value: str) -> str | None:
    """What is wrong with a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        return f"not a regular expression ({error})"
    return None


def no_effect(field: str, value: Any, because: str) -> str:
    """The message about an option that has no effect."""
    return f"{field} = {value!r} would have no effect: {because}. Remove it."


def check_value(field: dataclasses.Field, kind: type, value: Any, where: str) -> Any:
    """A dataclass field's value, cast to its type; an `InputError` if it is bad."""
    return _checked(field, typing.get_type_hints(kind)[field.name], value, where)


def _checked(field: dataclasses.Field, hint: Any, value: Any, where: str) -> Any:
    metadata, default = field.metadata, default_of(field)
    if value is None:
        raise InputError(f"{where} is None; give a value. Its default is {default!r}.")
    try:
        value = cast(hint, value)
    except TypeError:
        raise InputError(
            f"{where} is {value!r}; it must be {words(hint)}, such as {default!r}."
        ) from None
    if metadata["choices"] and value not in metadata["choices"]:
        known = ", ".join(map(repr, metadata["choices"]))
        raise InputError(f"{where} is {value!r}; known: {known}.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(metadata, value, where)
    complaint = metadata["problem"] and metadata["problem"](value)
    if complaint:
        raise InputError(f"{where} is {value!r}; {complaint}.")
    return value


def _check_range(metadata: Mapping, value: float, where: str) -> None:
    above, low, below, high = metadata["range"]
    if isinstance(value, float) and not metadata["infinite"]:
        if not abs(value) <= _LARGEST_FLOAT:
            raise InputError(
                f"{where} is {value}; give a finite number, as float32 has it."
            )
    elif math.isnan(value):
        raise InputError(f"{where} is not a number; give one.")
    if above is not None and not value > above:
        raise InputError(f"{where} is {value}; it must be > {above}.")
    if low is not None and not value >= low:
        raise InputError(f"{where} is {value}; it must be >= {low}.")
    if below is not None and not value < below:
        raise InputError(f"{where} is {value}; it must be < {below}.")
    most = _LARGEST if high is None and isinstance(value, int) else high
    if most is not None and value > most:
        raise InputError(f"{where} is {value}; it is at most {most:,}.")


def cast(hint: Any, value: Any) -> Any:
    """A value cast to a type: integers become floats, lists tuples.

    Raises:
      TypeError: it is of another type.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for one in inner:
            try:
                return cast(one, value)
            except TypeError:
                pass
        raise TypeError
    if origin in (tuple, list) and isinstance(value, tuple | list):
        return origin(cast(inner[0], one) for one in value)
    if origin is dict and isinstance(value, Mapping):
        return {cast(inner[0], k): cast(inner[1], v) for k, v in value.items()}
    if hint is Any:
        return value
    if isinstance(hint, type) and issubclass(hint, dict) and isinstance(value, Mapping):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= _LARGEST_FLOAT else value
    if hint is bool and isinstance(value, bool):
        return value
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is int and whole:
        return int(value)
    if hint is str and isinstance(value, str):
        return value
    raise TypeError


_WORDS = {
    **{bool: "True or False", int: "a whole number", float: "a number", str: "text"},
    Any: "any value",
}


def words(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(words, inner))
    if origin in (tuple, list):
        return f"a list ({words(inner[0])} each)"
    if origin is dict:
        return f"a dict ({words(inner[0])}: {words(inner[1])})"
    if isinstance(hint, type) and issubclass(hint, dict):
        return "a dict"
    return _WORDS.get(hint, "an entry")


def _unknown(field: str, name: str, kind: type, table: Mapping, where: str) -> str:
    known = names(kind)
    others = [key for key, one in table.items() if field in names(kind_of(one))]
    near = nearest(str(field), known)
    said = f"{where}.{field} is no option of {name!r}"
    if near:
        said += f"; the nearest is {where}.{near}"
    elif others:
        said += f"; {' and '.join(map(repr, others))} have it"
    listed = f"Its options are {', '.join(known)}" if known else "It has no options"
    return f"{said}. {listed}."
