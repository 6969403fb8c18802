"""Ids as strings, whatever type a file gives them."""

import math
from typing import Any

from lsrjax.data.reading.bad_records import TYPE, UTF8, BadRecord

_EXACT = 2**53  # above it, floats do not represent every whole number


def as_id(value: Any, where: str) -> str:
    """An id as a string: files write the same one as 7, "7" or 7.0.

    A column of whole numbers becomes one of floats if a single one is missing.

    Raises:
      BadRecord: not an id: null, a list, NaN, an empty text, a lone surrogate.
    """
    number = isinstance(value, float)
    wrong = isinstance(value, bool) or not isinstance(value, str | int | float)
    if wrong or value == "" or (number and not math.isfinite(value)):
        raise BadRecord(
            TYPE,
            f"{where}: an id is {value!r:.80}; a text or number is needed. Put the row"
            " right or remove it.",
        )
    if number and value.is_integer():
        if abs(value) >= _EXACT:
            raise BadRecord(
                TYPE,
                f"{where}: the id {value!r} is a float, which is not exact at this"
                " size. Write ids as texts.",
            )
        return str(int(value))
    if isinstance(value, str):
        check_characters(value, f"{where}: the id {value!a:.80}")
    return str(value)


def check_characters(text: str, where: str) -> None:
    """Raises BadRecord for lone surrogates, which JSON can contain and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise BadRecord(
            UTF8, f"{where} is not text: {e}. Write it again, or remove the row."
        ) from e
