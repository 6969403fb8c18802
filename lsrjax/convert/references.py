"""The fields of a stage's config that name models."""

from collections.abc import Mapping
from typing import Any

from lsrjax.retrieval.bm25 import TERMS

_BESIDE = "teacher.beside"
_PURPOSES = {
    "init.model": "start",
    "teacher.model": "teacher",
    "prepare.negatives": "miner of negatives",
}


def of_stage(stage: Mapping[str, Any]) -> dict[str, str]:
    """Field -> model, for the models that a stage's config names."""
    found = {}
    for name, options in stage.get("init", {}).items():
        given = options.get("model", "") if isinstance(options, Mapping) else options
        if isinstance(given, str):
            found[f"init.{name}"] = given
    found["teacher.model"] = stage.get("teacher", {}).get("model", "")
    for name in stage.get("teacher", {}).get("beside", {}):
        if name not in TERMS:  # BM25 is no model
            found[f"{_BESIDE}[{name!r}]"] = name
    found["tokenizer"] = stage.get("tokenizer", "")
    miner = stage.get("prepare", {}).get("negatives", "")
    found["prepare.negatives"] = miner if miner.startswith("stage:") else ""
    return {field: reference for field, reference in found.items() if reference}


def purpose(field: str) -> str:
    """What the model of a field is for, in a word."""
    if field.startswith(_BESIDE):
        return "teacher"
    return _PURPOSES.get(field, field.removeprefix("init."))
