"""Fields of configs of earlier releases, and their new places."""

import re
from collections.abc import Mapping
from typing import Any

from lsrjax import options
from lsrjax.losses.losses import LOSSES
from lsrjax.models.heads import HEADS

# Groups of fields that are options of entries.
_ENTRIES: dict[str, Mapping[str, Any]] = {"model": HEADS, "loss": LOSSES}
MOVED = {
    "loss.infonce_temperature": "it is an option of infonce and m3,"
    ' c.loss = {"infonce": {"temperature": …}}',
    "init.static": "static queries that start at their words' idf are"
    " c.init.idf_queries = {}",
    "init.from_pivot": "it is an option of the head's initialisation,"
    ' c.init.head = {"model": …, "encoder": "translations"}',
    "init.echo": "a source view that starts at the tokens' idf is"
    ' c.init.idf_echo = {"scale": …}',
    "init.echo_scale": 'it is c.init.idf_echo = {"scale": …}',
    "regularizer.warmup_steps": "it is an option of the schedule,"
    ' c.regularizer.schedule = entry("quadratic", steps=…)',
}


def place(field: str) -> str | None:
    """The new place of a dotted field of an earlier release; None for any other."""
    group, _, name = ".".join(field.split(".")[-2:]).partition(".")
    entry = _having(_ENTRIES.get(group, {}), name)
    if entry and group == "model":
        return f"it is an option of the head, c.model.head.{name} = …"
    if entry:
        return f'it is an option of a loss, c.loss = {{"{entry}": {{"{name}": …}}}}'
    return MOVED.get(f"{group}.{name}")


def _having(table: Mapping[str, Any], option: str) -> str | None:
    """The first entry that has an option."""
    kinds = {name: options.kind_of(one) for name, one in table.items()}
    return next((n for n, kind in kinds.items() if option in options.names(kind)), None)


def in_line(line: str) -> list[str]:
    """Messages about moved fields that a line of a config sets."""
    found = re.findall(r"\.((?:model|init|loss|regularizer)\.\w+)", line)
    places = {name: place(name) for name in found}
    return [f"config.{name} has moved: {at}" for name, at in places.items() if at]
