"""Creates a run's config, reads it from a file, and sets its fields."""

import ast
import dataclasses
import inspect
import pathlib
import runpy
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lsrjax import lookup, options
from lsrjax.config.moved import check_spelling, in_line, place
from lsrjax.config.nodes import Entries, Entry, Group, NoField
from lsrjax.config.other_names import not_a_field
from lsrjax.config.schema import Rows, Run
from lsrjax.errors import InputError

# The name of the stage in a config without stages.
ONLY_STAGE = "train"


def get_default() -> Group:
    """A config with every field at its default; unknown fields are errors."""
    return blank(Run).lock()


def blank(kind: type) -> Group:
    """A group with the fields of a dataclass, each at its default."""
    made = Group()
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default, hint = options.default_of(field), hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            default = blank(hint)
        elif isinstance(hint, type) and issubclass(hint, Entries):
            default = hint(default)
        elif field.metadata["table"] is not None:
            default = Entry(default)
        elif options.is_named_groups(hint):
            default = Group()
        made[field.name] = default
    return made


def data_set(**values: Any) -> Group:
    """One of `data.sets`, with the defaults of `data` except for these fields.

        c.data.sets = {"papers": data_set(source=entry("files", files="p/*.parquet"))}

    Args:
      **values: source, format and corpus, those that differ.
    """
    made = blank(Rows)
    for field, value in values.items():
        if field not in made:
            raise InputError(not_a_field(field, made, "data_set()", value))
        made.update({field: value})
    return made.lock()


def given_stages(config: ConfigDict) -> dict[str, ConfigDict]:
    """The stages of a run in order, as its config has them.

    A config without stages is the stage `train`.
    """
    if len(config.stages):
        return {name: config.stages[name] for name in config.stages}
    return {ONLY_STAGE: config}


def stages(config: ConfigDict) -> dict[str, ConfigDict]:
    """The stages of a valid run in order, each with its seed in this run."""
    if not len(config.stages):
        return {ONLY_STAGE: config}
    found = {}
    for name, stage in given_stages(config).items():
        found[name] = stage.copy_and_resolve_references()
        found[name].seed += config.seed
    return found


def leaves(
    config: Mapping, whole: Sequence[str] = ("stages", "sets"), prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The fields of a config by dotted name, as `optim.lr`, and their values.

    The groups `whole` are one field each.
    """
    for key, value in config.items():
        group = isinstance(value, ConfigDict) and not isinstance(value, Entry)
        if group and key not in whole:
            yield from leaves(value, whole, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fields(config: Mapping) -> list[str]:
    """The names of all fields, `optim.lr` or `stages.align.optim.lr`."""
    return [name for name, _ in leaves(config, ())]


def set_field(config: ConfigDict, field: str, text: str | None, flag: str) -> None:
    """Sets a field, or an option of an entry, from the command line.

    Args:
      config: of a run.
      field: such as "optim.lr", "stages.align.optim.lr" or "model.head.pooling".
      text: the value as Python writes it, strings without quotes; None: true.
      flag: such as "--config", for errors.

    Raises:
      InputError: there is no such field, or the value is of another type.
    """
    text = "true" if text is None else text
    if place(field):
        raise InputError(not_a_field(field, [], flag, literal(text)))
    node = config
    hint: Any = Run
    *groups, last = _parts(config, field, literal(text))
    for group in groups:
        if isinstance(node, Entry) or not isinstance(node, ConfigDict):
            hint = Any
            if not isinstance(node.get(group), Mapping | Entry):
                node[group] = {}
        elif group not in node:
            raise InputError(not_a_field(field, fields(config), flag))
        else:
            hint = _inner(hint, group)
        node = node[group]
        if not isinstance(node, Mapping | ConfigDict):
            raise InputError(not_a_field(field, fields(config), flag))
    value = literal(text)
    free = isinstance(node, Entry) or not isinstance(node, ConfigDict)
    if not free and last not in node:
        raise InputError(not_a_field(field, fields(config), flag))
    present = None if free else node[last]
    if isinstance(present, ConfigDict) and not isinstance(present, Entry):
        raise InputError(
            f"{flag}.{field} is a group of fields; set one of them, such as"
            f" {flag}.{field}.{next(iter(present), 'NAME')}."
        )
    check_spelling(flag, field, value)
    if not free:
        value = _value(_inner(hint, last), present, text, f"{flag}.{field}")
    try:
        node[last] = value
    except (TypeError, ValueError) as error:
        raise InputError(f"{flag}.{field}: {error}") from error


def _parts(config: ConfigDict, field: str, value: Any) -> list[str]:
    """A dotted field in parts; the dotted name of an entry of the user's is one.

    It is the longest that the config has, or all but the option at the end:
    `loss.mine.hinge.margin` is the option `margin` of the loss `mine.hinge`.
    """
    node, parts = config, field.split(".")
    for i, group in enumerate(parts[:-1], 1):
        node = node.get(group) if isinstance(node, ConfigDict) else None
        if isinstance(node, Entries):
            return [*parts[:i], *_entry_parts(node, parts[i:], value)]
    return parts


def _entry_parts(entries: Entries, parts: list[str], value: Any) -> list[str]:
    names = {count: ".".join(parts[:count]) for count in range(len(parts), 0, -1)}
    known = [count for count, name in names.items() if name in entries]
    if not known and parts[0] not in _table(entries.field):
        of_all = isinstance(value, Mapping | bool) and len(parts) == 2
        known = [len(parts) - (not of_all)] if len(parts) > 1 else []
    if not known:
        return parts
    return [names[known[0]], *parts[known[0] :]]


def _table(field: str) -> Mapping[str, Any]:
    """The table of a field's entries, `log.trackers` of `TRACKERS`."""
    kind, (*groups, last) = Run, field.split(".")
    for group in groups:
        kind = _inner(kind, group)
    return {one.name: one for one in dataclasses.fields(kind)}[last].metadata["table"]


def _inner(hint: Any, field: str) -> Any:
    """The type of a group's field, or of a named group."""
    if typing.get_origin(hint) is dict:
        return typing.get_args(hint)[1]
    return typing.get_type_hints(hint)[field]


def literal(text: str) -> Any:
    """A value as the command line has it: a Python literal, true, false, or a text."""
    words = {"true": True, "false": False}
    try:
        return words[text] if text in words else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _value(hint: Any, present: Any, text: str, field: str) -> Any:
    """Parses a text as a value of a field's type."""
    if hint is str:
        return text
    found = literal(text)
    if isinstance(present, Entry):
        return found if isinstance(found, dict) else text
    if isinstance(present, Entries) and present.listed:
        return found if isinstance(found, dict | tuple | list) else text
    if hint is bool and text.lower() in ("true", "1", "false", "0"):
        return text.lower() in ("true", "1")
    several = typing.get_origin(hint) is tuple
    if several and not isinstance(found, tuple | list):
        found = (found,)
    try:
        if hint is float:
            return float(text)
        return options.cast(hint, found)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{field} is {text!r}; it must be {options.words(hint)}, such as"
            f" {present!r}."
        ) from error


def recipes() -> dict[str, pathlib.Path]:
    """The configs that come with lsrjax, by name."""
    package = pathlib.Path(__file__).parents[1]
    # In an installed package, and in a clone.
    for folder in (package / "recipes", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.py"))}
    return {}


def located(name: str) -> tuple[pathlib.Path, list[str]]:
    """The file of a config, and the arguments of its `get_config`.

    Args:
      name: a path, or the name of one that comes with lsrjax; after a colon a variant.
    """
    if pathlib.Path(name).is_file():
        return pathlib.Path(name), []
    path, _, variant = name.partition(":")
    return recipes().get(path, pathlib.Path(path)), [variant] if variant else []


def load(path: pathlib.Path, arguments: Sequence[str] = ()) -> ConfigDict:
    """Runs a config file; an `InputError` if it is missing, fails or has no config."""
    if not path.is_file():
        raise InputError(
            f"No config file {path} (from {pathlib.Path.cwd()}). Those that come with"
            f" lsrjax go by their names: {', '.join(recipes())}."
        )
    lookup.look_beside(path)
    try:
        with lookup.own_imports():
            names = runpy.run_path(str(path))
            if "get_config" not in names:
                raise InputError(f"{path} has no function get_config().")
            _check_arguments(path, names["get_config"], arguments)
            found = names["get_config"](*arguments)
    except Exception as error:
        raise _failed(path, error) from error
    if not isinstance(found, ConfigDict):
        raise InputError(
            f"get_config() of {path} returns {type(found).__name__}, not a ConfigDict."
        )
    return found


def variant(known: Mapping[str, Any], name: str) -> Any:
    """What a config's variants have under a name, for `get_config(name)`.

        paper = variant({"paper": True, "script": False}, name)

    Raises:
      InputError: there is no such variant; lists them.
    """
    if name in known:
        return known[name]
    listed = ", ".join(repr(one) for one in known if one)
    raise InputError(f"there is no variant {name!r}; the variants are {listed}.")


def _check_arguments(path: pathlib.Path, get_config: Any, given: Sequence[str]) -> None:
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        if given:
            said = f"{path} has no variants, such as {given[0]!r}: leave it out."
        else:
            said = f"{path} has variants only: name one, as {path}:VARIANT."
        raise InputError(said) from error


def _failed(path: pathlib.Path, error: Exception) -> InputError:
    """What is said of an error while a config file runs, with the place in it."""
    lines = [
        line
        for line in traceback.extract_tb(error.__traceback__)
        if line.filename == str(path)
    ]
    at = f"{path}, line {lines[-1].lineno}, in {lines[-1].name}" if lines else str(path)
    if isinstance(error, InputError):
        return InputError(*(f"{at}: {said}" if lines else said for said in error.args))
    moved = [said for line in lines for said in in_line(line.line or "")]
    # The attributes of a config raise the errors of its items in another.
    lacks = error.args[0] if isinstance(error, AttributeError) and error.args else error
    if isinstance(lacks, NoField):
        return InputError(f"{at}: {' '.join(moved) or _no_field(lacks)}")
    text = traceback.format_list(lines) + traceback.format_exception_only(error)
    text += [f"{said}\n" for said in moved]
    return InputError(f"{path} could not be run:\n{''.join(text).rstrip()}")


def _no_field(lacks: NoField) -> str:
    """A group is known by its fields: a copy of one does not know its place."""
    default, rows = get_default(), blank(Rows)
    known = fields(default) + [f"data.sets.NAME.{field}" for field in rows]
    places = {"": default, "data.sets.NAME.": rows, **dict(_groups(default))}
    for prefix, group in places.items():
        if len(group) and group.keys() == lacks.group.keys():
            return not_a_field(f"{prefix}{lacks.field}", known, value=lacks.value)
    return (
        f"there is no {lacks.field!r} in a group of {', '.join(lacks.group) or 'none'}."
        ' Stages and data sets are set together, as in c.stages = {"NAME": …, …}.'
    )


def _groups(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Group]]:
    """The groups of a config by dotted name, with a dot at its end."""
    for name, value in config.items():
        if isinstance(value, Group):
            yield f"{prefix}{name}.", value
            yield from _groups(value, f"{prefix}{name}.")
