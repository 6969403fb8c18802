"""The fields of a stage's config that name models."""

from collections.abc import Mapping
from typing import Any

# Field -> the model's purpose, in words.
FIELDS = {
    "init.model": "start",
    "init.encoder": "encoder",
    "init.head": "head",
    "teacher.model": "teacher",
    "tokenizer": "tokenizer",
    "prepare.negatives": "miner of negatives",
}
# Values of these fields that name no model.
_WORDS = ("given", "bm25")


def of_stage(stage: Mapping[str, Any]) -> dict[str, str]:
    """Field -> model, for the models that a stage's config names."""
    found = {}
    for field in FIELDS:
        group, _, key = field.rpartition(".")
        values = stage.get(group, {}) if group else stage
        if (reference := values.get(key, "")) and reference not in _WORDS:
            found[field] = reference
    return found
