"""Builds HTML from elements, so that whatever is from data is text in it."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import TypeAlias

Element: TypeAlias = ET.Element
Inside: TypeAlias = "str | Element | Iterable[Inside] | None"


def tag(kind: str, /, *inside: Inside, **attributes: object) -> Element:
    """An element.

    Args:
      kind: of the element.
      *inside: texts, which are escaped, elements, iterables of both; None is nothing.
      **attributes: with `-` as `_`, and one at the end for words of Python: `class_`.
    """
    given = {key.rstrip("_").replace("_", "-"): str(v) for key, v in attributes.items()}
    made = ET.Element(kind, given)
    _put(made, inside)
    return made


def _put(made: Element, inside: Iterable[Inside]) -> None:
    for one in inside:
        if one is None:
            continue
        if isinstance(one, ET.Element):
            made.append(one)
        elif not isinstance(one, str):
            _put(made, one)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + one
        else:
            made.text = (made.text or "") + one


def written(element: Element) -> str:
    """An element as HTML; what no UTF-8 can hold becomes a question mark."""
    text = ET.tostring(element, encoding="unicode", method="html")
    return text.encode("utf-8", "replace").decode("utf-8")
