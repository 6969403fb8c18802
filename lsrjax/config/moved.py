"""Fields of configs of earlier releases, and their new places."""

import ast
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from lsrjax import options
from lsrjax.data.reading.formats import FORMATS
from lsrjax.data.sources import SOURCES
from lsrjax.errors import InputError
from lsrjax.losses.table import LOSSES
from lsrjax.models.heads import HEADS

# Groups of fields that are options of the entries of a table, and how they are set.
_OPTIONS: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("model", HEADS, "it is an option of the head, c.model.head.{name} = …"),
    (
        "loss",
        LOSSES,
        'it is an option of a loss, c.loss = {{"{entry}": {{"{name}": …}}}}',
    ),
    *(
        (
            group,
            table,
            f"it is an option of the {kind}, c.{at}.{kind} ="
            ' entry("{entry}", {name}=…)',
        )
        for group, at, kind, table in (
            ("data", "data", "source", SOURCES),
            ("dev", "dev", "source", SOURCES),
            ("data", "data", "format", FORMATS),
            ("columns", "data", "format", FORMATS),
        )
    ),
)
MOVED = {
    "loss.infonce_temperature": "it is an option of infonce and m3,"
    ' c.loss = {"infonce": {"temperature": …}}',
    "init.static": "static queries that start at their words' idf are"
    " c.init.idf_queries = {}",
    "init.from_pivot": "it is an option of the head's initialisation,"
    ' c.init.head = {"encoder": …, "model": "…"}',
    "init.echo": "a source view that starts at the tokens' idf is c.init.idf_echo = {}",
    "init.echo_scale": 'it is c.init.idf_echo = {"scale": …}',
    "data.columns": "columns are options of the format, c.data.format ="
    ' entry("milco", query="question", pos="answer")',
    "data.mix_temperature": "it is an option of the mixer, c.data.mixer ="
    ' entry("temperature", temperature=…)',
    "data.weight": "weights are an option of the mixer, c.data.mixer ="
    ' entry("weights", weights={"NAME OF THE SET": …})',
    "data.negative_rank_scale": "it is an option of the sampler, c.data.negatives ="
    ' entry("rank", scale=…)',
    "data.margin_bins": "it is an option of the sampler, c.data.negatives ="
    ' entry("margin_bins", bins=…)',
    "optim.b1": "it is an option of the optimizer, c.optim.optimizer.b1 = …",
    "optim.b2": "it is an option of the optimizer, c.optim.optimizer.b2 = …",
    "optim.eps": "it is an option of the optimizer, c.optim.optimizer.eps = …",
    "regularizer.warmup_steps": "it is an option of the schedule,"
    ' c.regularizer.schedule = entry("quadratic", steps=…)',
}


_PLACE = re.compile(r"(?:(?!datasets:|file:)([A-Za-z][\w-]*):(?!//))?(datasets:)?(.+)")


def _few(values: list) -> Any:
    return values[0] if len(values) == 1 else values


def _numbers(text: str) -> list[float]:
    return [ast.literal_eval(part) for part in text.split(",")]


def _weights(text: str) -> dict[str, float]:
    parts = [part.partition(":") for part in text.split(",")]
    return {name.strip(): ast.literal_eval(weight) for name, _, weight in parts}


def _listed(text: str) -> Any:
    return _few([part.strip() for part in text.split(",")])


def _subsets(text: str) -> Any:
    parts = [
        re.split(r":(?!/)", f"{part.strip()}:", maxsplit=1) for part in text.split(",")
    ]
    found = {name: _few(rest.removesuffix(":").split("+")) for name, rest in parts}
    return found if any(found.values()) else _few(list(found))


def _places(text: str) -> Any:
    found: dict[str, list] = {}
    for part in text.split(","):
        language, data_set, name = _PLACE.findall(part.strip())[0]
        values = zip(("dataset", "subset", "split"), name.split(":"), strict=False)
        place = {field: value for field, value in values if value}
        found.setdefault(language, []).append(place if data_set else name)
    short = {language: _few(places) for language, places in found.items()}
    return short[""] if list(short) == [""] else short


# How texts of earlier releases are written, by the last part of the field's name.
_RESPELLED: dict[str, Callable[[str], Any]] = {
    "query_languages": _weights,
    "document_languages": _weights,
    "corpus": _places,
    "queries": _places,
    "files": _listed,
    "dataset": _subsets,
    "pos_scores": _listed,
    "neg_scores": _listed,
    "score_weights": _numbers,
}


def respelled(field: str, value: Any) -> Any:
    """The value that a text of an earlier release stands for, or the value itself.

    The name of an existing file or folder is always itself.
    """
    convert = _RESPELLED.get(field.rpartition(".")[2])
    if convert is None or not isinstance(value, str) or not value:
        return value
    if os.path.exists(os.path.expanduser(value)):
        return value
    try:
        return convert(value)
    except (ValueError, SyntaxError, IndexError):
        return value


def check_spelling(where: str, field: str, value: Any) -> None:
    """Refuses a text of an earlier release; says how it is written instead."""
    if isinstance(value, str) and (new := respelled(field, value)) != value:
        raise InputError(
            f"{where}.{field} is {value!r}, as in earlier releases; write {new!r}."
        )


def place(field: str, value: Any = None) -> str | None:
    """The new place of a dotted field of an earlier release; None for any other.

    `value`, if known, is the field's; it is written out as it is at the new place.
    """
    *groups, last = re.sub(r"\bsets\.[^.]+", "data", field).split(".")
    said = _moved(groups[-1] if groups else "data", last)
    if said is None or value is None:
        return said
    return said.replace("…", repr(respelled(last, value)), 1)


def _moved(group: str, name: str) -> str | None:
    if f"{group}.{name}" in MOVED:
        return MOVED[f"{group}.{name}"]
    for field, table, place in _OPTIONS:
        for entry, one in table.items() if field == group else ():
            if name in options.names(options.kind_of(one)):
                return place.format(entry=entry, name=name)
    return None


def in_line(line: str) -> list[str]:
    """Messages about moved fields that a line of a config sets."""
    found = re.findall(
        r"\.((?:data\.columns|columns|model|init|loss|regularizer|data|dev|optim)\.\w+)"
        r"(?:\s*=\s*([^=#]+))?",
        line,
    )
    said = {name: place(name, _value(text)) for name, text in found}
    return [f"config.{name} has moved: {new}" for name, new in said.items() if new]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
