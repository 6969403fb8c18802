"""Writes docs/config.md from the fields and the tables of entries.

python -m lsrjax.config.docs > docs/config.md
"""

import dataclasses
import inspect
import math
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from lsrjax import options
from lsrjax.config.schema import Run
from lsrjax.models.backbones.backbone import Backbone

_INTRODUCTION = """\
# The fields of a config

Written by `python -m lsrjax.config.docs` from the package itself. A config is what
`get_config()` returns, `lsrjax.config.get_default()` with changes; on the command line
`--config.optim.lr=1e-4` sets a field. A field that is an entry of a table holds its
name and options: `c.model.head = entry("splade", pooling="sum")`, or
`c.model.head = "splade"` and `c.model.head.pooling = "sum"`, or on the command line
`--config.model.head.pooling=sum`. An option that an entry lacks is refused. Losses and
initialisations are dicts, `c.loss = {"kl": {"temperature": 2.0}, "margin_mse":
{"weight": 0.05}}`; so are weights of languages,
`--config.data.query_languages='{"en": 5, "*": 1}'`. An entry of your own goes by its
dotted name, `mine.LastToken`, and has options like any other.
"""


def text() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, *_groups(Run, "")]
    found: dict[tuple, list[str]] = {}
    tables = list(_tables(Run, ""))
    for field, table in tables:
        found.setdefault(_known(table), []).append(f"`{field}`")
    for _, table in tables:
        if fields := found.pop(_known(table), []):
            parts.append(f"## Entries of {' and '.join(dict.fromkeys(fields))}\n")
            parts += _entries({name: one for name, one in table.items() if name})
    return "\n".join(parts)


def _tables(kind: type, prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tables that a dataclass's fields name entries of, by dotted field."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _tables(hint, f"{name}.")
        elif table := field.metadata["table"]:
            yield name, table
            for entry in table.values():
                yield from _tables(options.kind_of(entry), f"{name}.")


def _known(table: Mapping[str, Any]) -> tuple[str, ...]:
    """What identifies a table: two fields may have the same one, or one with ''."""
    return tuple(name for name in table if name)


def _groups(kind: type, prefix: str) -> Iterator[str]:
    """A table of a group's fields, then those of the groups in it."""
    hints = typing.get_type_hints(kind)
    inner = [
        f for f in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[f.name])
    ]
    title = f"`{prefix}`" if prefix else "Of a run or stage"
    yield f"## {title}\n\n{inspect.getdoc(kind)}\n"
    own = [field for field in dataclasses.fields(kind) if field not in inner]
    yield _table(own, hints)
    for field in inner:
        yield from _groups(hints[field.name], f"{prefix}.{field.name}".lstrip("."))


def _entries(table: Mapping) -> Iterator[str]:
    """The entries with their options; common options are listed once."""
    kinds = {name: options.kind_of(entry) for name, entry in table.items()}
    shared = set.intersection(*(set(options.names(kind)) for kind in kinds.values()))
    if shared:
        kind = next(iter(kinds.values()))
        yield "Options of every one:\n"
        yield _table(_fields(kind, shared), typing.get_type_hints(kind))
    for name, kind in kinds.items():
        yield f"### `{name}`\n\n{_first_line(name, table[name])}\n"
        if own := _fields(kind, set(options.names(kind)) - shared):
            yield _table(own, typing.get_type_hints(kind))


def _first_line(name: str, entry) -> str:
    """An entry in a line: its docstring's first, or that of the function it names."""
    if hasattr(entry, "shape"):
        return entry.shape
    if isinstance(entry, Backbone):
        entry = entry.encoder
    if not isinstance(entry, type):
        module = inspect.getmodule(entry.fn)
        entry = getattr(module, name, entry.fn)
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _fields(kind: type, wanted: set[str]) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(kind) if field.name in wanted]


def _table(fields: list[dataclasses.Field], hints: Mapping) -> str:
    lines = ["| field | default | may be | meaning |", "|---|---|---|---|"]
    for field in fields:
        default = options.default_of(field)
        shown = "" if options.is_named_groups(hints[field.name]) else f"`{default!r}`"
        cells = field.name, shown, _range(field, hints), field.metadata["doc"]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _range(field: dataclasses.Field, hints: Mapping) -> str:
    metadata = field.metadata
    if metadata["table"] is not None:
        return ", ".join(filter(None, metadata["table"]))
    if metadata["choices"]:
        return ", ".join(repr(choice) for choice in metadata["choices"])
    signs = zip((">", ">=", "<", "<="), metadata["range"], strict=True)
    limits = [f"{sign} {limit:,}" for sign, limit in signs if limit is not None]
    finite = [] if metadata["infinite"] or math.inf in metadata["range"] else limits
    return ", ".join(finite) or options.words(hints[field.name])


if __name__ == "__main__":
    sys.stdout.write(text())
