"""Flags that set options of a table's entry: `--engine seismic --engine.postings=9`."""

from collections.abc import Sequence
from typing import Any

from lsrjax.config.fields import literal
from lsrjax.errors import InputError


def take(argv: Sequence[str], *names: str) -> tuple[dict[str, dict], list[str]]:
    """The options of entries that a command line sets, and its other arguments.

    `--NAME.FIELD=VALUE` or `--NAME.FIELD VALUE`, the value a Python literal or a text.

    Args:
      names: of the flags, such as "engine".

    Returns:
      By name, the options by field; and what is left.

    Raises:
      InputError: an option without a value, or set twice.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    rest: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        name, dot, field = argument.partition("=")[0].removeprefix("--").partition(".")
        if not argument.startswith("--") or not dot or name not in names:
            rest.append(argument)
            continue
        _, equals, text = argument.partition("=")
        if not equals:
            if not left or left[0].startswith("--"):
                raise InputError(f"--{name}.{field} needs a value.")
            text = left.pop(0)
        if field in found[name]:
            raise InputError(f"--{name}.{field} is given twice.")
        found[name][field] = literal(text)
    return found, rest
