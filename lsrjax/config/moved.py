"""Fields of configs of earlier releases, and their new places."""

import ast
import os
import re
from collections.abc import Callable
from typing import Any

from lsrjax.errors import InputError

_HEAD = (
    "lexecho repeats exclude_special_tokens pool_mask tied pooling queries"
    " embedding_size view_weights normalize latents active_latents revived_latents"
    " dead_after expand_queries skip_punctuation"
)
_LOSS = {
    "temperature": "kl",
    "teacher_scale": "kl",
    "margins": "margin_mse",
    "both_directions": "infonce",
    "mask_same_text": "infonce",
    "false_negative_margin": "infonce",
    "view_weights": "m3",
    "auxiliary": "reconstruction",
}
_SOURCE = {
    "files": "files",
    "dataset": "datasets",
    "split": "datasets",
    "fields": "debian",
}
_FORMAT = {
    "queries": "colbert",
    "min_label": "labelled",
    "score_weights": "milco",
    "score_normalization": "milco",
}
_COLUMNS = {
    "milco": "query pos neg pos_scores neg_scores",
    "alignment": "english translation language",
}
MOVED = {
    **{
        f"model.{name}": f"it is an option of the head, c.model.head.{name} = …"
        for name in _HEAD.split()
    },
    **{
        f"loss.{name}": "it is an option of a loss,"
        f' c.loss = {{"{loss}": {{"{name}": …}}}}'
        for name, loss in _LOSS.items()
    },
    "loss.infonce_temperature": "it is an option of infonce and m3,"
    ' c.loss = {"infonce": {"temperature": …}}',
    **{
        f"{group}.{name}": f"it is an option of the source, c.{group}.source ="
        f' entry("{source}", {name}=…)'
        for group in ("data", "dev")
        for name, source in _SOURCE.items()
    },
    **{
        f"columns.{name}": "it is an option of the format, c.data.format ="
        f' entry("{format}", {name}=…)'
        for format, names in _COLUMNS.items()
        for name in names.split()
    },
    **{
        f"data.{name}": "it is an option of the format, c.data.format ="
        f' entry("{format}", {name}=…)'
        for name, format in _FORMAT.items()
    },
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
    said = MOVED.get(f"{groups[-1] if groups else 'data'}.{last}")
    if said is None or value is None:
        return said
    return said.replace("…", repr(respelled(last, value)), 1)


def in_line(line: str) -> list[str]:
    """Messages about moved fields that a line of a config sets."""
    found = re.findall(
        r"\.((?:data\.columns|columns|model|loss|regularizer|data|dev)\.\w+)"
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
