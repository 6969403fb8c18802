"""Flags that set options of a table's entry: `--engine seismic --engine.postings=9`."""

import re
from collections.abc import Sequence
from typing import Any

from lsrjax.config.fields import literal
from lsrjax.errors import InputError


def split(argv: Sequence[str], pattern: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The flags that a pattern names, each with its value, and the other arguments.

    Values are written as `--FLAG=VALUE` or `--FLAG VALUE`.

    Raises:
      InputError: a flag without a value.
    """
    found: list[tuple[str, str]] = []
    rest: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        flag, equals, value = argument.partition("=")
        if not re.fullmatch(pattern, flag):
            rest.append(argument)
            continue
        if not equals:
            if not left or left[0].startswith("--"):
                raise InputError(f"{flag} needs a value: {flag}=VALUE.")
            value = left.pop(0)
        found.append((flag, value))
    return found, rest


def take(argv: Sequence[str], *names: str) -> tuple[dict[str, dict], list[str]]:
    """The options of entries that a command line sets, and its other arguments.

    A value is a Python literal or a text.

    Args:
      names: of the flags, such as "engine".

    Returns:
      By name, the options by field; and what is left.

    Raises:
      InputError: an option without a value, or set twice; an entry's name given as
        its option.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    flags, rest = split(argv, rf"--({'|'.join(names)})\..*")
    for flag, text in flags:
        name, _, field = flag.removeprefix("--").partition(".")
        if field == "name":
            raise InputError(
                f"{flag}={text} sets no option: name the entry itself, as in --{name}"
                f" {text}."
            )
        if field in found[name]:
            raise InputError(f"{flag} is given twice.")
        found[name][field] = literal(text)
    return found, rest
