"""`--task NAME --task.FIELD=VALUE …` of commands that work on a benchmark's tasks."""

import dataclasses
import typing
from collections.abc import Sequence

from lsrjax import options
from lsrjax.cli import entry_flags
from lsrjax.config.fields import literal
from lsrjax.errors import InputError
from lsrjax.options import Chosen
from lsrjax.retrieval.tasks.table import TASKS

HELP = """Tasks are named by --task NAME, more than once if wanted; --task.FIELD=VALUE
sets an option of the --task before it. Values are Python literals; several languages or
names may also be written with commas between."""


def take(argv: Sequence[str]) -> tuple[list[Chosen], list[str]]:
    """The tasks of a command line, and its other arguments.

    Raises:
      InputError: an unknown task or option, one without a value or set twice, or an
        option before any task.
    """
    named: list[dict[str, typing.Any]] = []
    flags, rest = entry_flags.split(argv, r"--task(\..*)?")
    for flag, value in flags:
        if flag == "--task":
            named.append({"name": value})
        elif not named:
            raise InputError(
                f"{flag} comes before any --task; write it after its task."
            )
        elif (field := flag.removeprefix("--task.")) in named[-1]:
            raise InputError(f"{flag} is given twice for one --task.")
        else:
            named[-1][field] = _value(named[-1]["name"], field, value)
    return [options.resolve(TASKS, one, "--task") for one in named], rest


def _value(task: str, field: str, text: str) -> typing.Any:
    """An option's value; as text where it is text, or is unknown (an error later)."""
    kind = options.kind_of(TASKS.get(task))
    hint = typing.get_type_hints(kind).get(field, str)
    if hint is str:
        return text
    value = literal(text)
    if value is text and typing.get_origin(hint) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return value


def described() -> str:
    """The tasks and their options, for a command's help."""
    lines = []
    for name, entry in TASKS.items():
        lines.append(f"  {name:12}{(entry.__doc__ or '').splitlines()[0]}")
        lines += [
            f"    {field.name:11}{field.metadata['doc']}"
            for field in dataclasses.fields(entry.Options)
        ]
    return "\n".join(lines)
