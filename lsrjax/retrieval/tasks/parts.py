"""The parts of a benchmark: one for each corpus, loaded one after the other."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import TypeVar

from lsrjax.errors import InputError
from lsrjax.options import Options

Given = TypeVar("Given", bound=Options)


def each(
    given: Given, field: str, known: Sequence[str], *, more: bool = False
) -> list[Given]:
    """The options of each part: each value of a field alone; all known ones if empty.

    Args:
      given: options with a tuple under `field`.
      field: such as "languages".
      known: the values that there are.
      more: allow values beyond the known ones.

    Raises:
      InputError: a value that is not known, or one twice.
    """
    values = tuple(getattr(given, field)) or tuple(known)
    for value in values:
        if not more and value not in known:
            raise InputError(
                f"task.{field} has {value!r}; there are {', '.join(known)}."
            )
        if values.count(value) > 1:
            raise InputError(f"task.{field} has {value!r} twice. Remove one.")
    return [dataclasses.replace(given, **{field: (value,)}) for value in values]


def the_only(values: Collection[str], field: str) -> str:
    """The value of a part's field; InputError unless there is exactly one."""
    if len(values) != 1:
        raise InputError(
            f"task.{field} is {tuple(values)!r}; name one, which has one corpus."
        )
    return next(iter(values))
