"""Reads ColBERT as saved by MultiVectorEncoder and PyLate."""

import string
from collections.abc import Mapping
from typing import Any

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.prompts import ROLES, Tokens
from lsrjax.convert.read.modules import (
    Folder,
    encoder_params,
    expect,
    portable,
    projection,
    transformer,
    transformer_file,
)
from lsrjax.convert.read.tensors import CheckpointError, check_types, read_json, strings
from lsrjax.models.retriever import RetrieverSpec

PYLATE = "ColBERT"  # the model_type of a folder of PyLate
_PYLATE_LENGTH = 32  # default for queries


def colbert(folder: Folder) -> SavedModel:
    """Reads a MultiVectorEncoder or PyLate model, if a head here can represent it."""
    found, lengths, config = transformer(folder, masked_lm=False, expands=True)
    fields, head = projection(folder, found.config, "token_embeddings")
    tokens = Tokens(folder.modules["Transformer"])
    most = found.config.max_length
    if folder.model.get("model_type") == PYLATE:
        config = _pylate(folder.model) | config
        words = folder.model.get("skiplist_words")
        words = list(string.punctuation) if words is None else words
        fields["normalize"] = True
        for role in ROLES:
            if config.get(f"{role}_length"):
                lengths[f"{role}_length"] = min(config[f"{role}_length"], most)
    else:
        path = folder.modules["MultiVectorMask"] / "config.json"
        mask = read_json(path)
        words = strings(path, "skiplist_words", mask.get("skiplist_words"))
        expect(
            path,
            mask,
            {
                "skiplist_words": (words, None),
                "skiplist_tasks": (["document"], "document", None)
                if words
                else (mask.get("skiplist_tasks"),),
            },
        )
    expansion = config.get("query_expansion")
    expand_id = -1
    if expansion:
        path = transformer_file(folder.modules["Transformer"])
        length = expansion.get("length")
        # The strategy "min" would leave longer queries longer.
        fixed = expansion.get("strategy") == "fixed"
        longest = length if fixed else lengths["query_length"]
        check_types(path, expansion, {"length": int, "token": str})
        whole = length is not None and 2 < length <= most
        if expansion.get("attend") or longest != length or not whole:
            raise CheckpointError(
                f"{path}: query_expansion is {expansion}; here no token attends to the"
                f" added ones, and queries have one length, {most} at most."
            )
        lengths["query_length"] = length
        name = expansion.get("token") or tokens.role("mask_token") or ""
        expand_id = tokens.vocabulary.get(name, -1)
        if expand_id < 0:
            raise CheckpointError(
                f"{path}: queries are filled up with {name!r}, which is not in the"
                " vocabulary."
            )
    spec = RetrieverSpec.of(
        "colbert",
        found.config,
        head,
        expand_id=expand_id,
        skip_ids=_ids(words, tokens),
        **fields,
    )
    return portable(folder, spec, encoder_params(found, head), lengths)


def _pylate(model: Mapping[str, Any]) -> dict[str, Any]:
    """PyLate's settings in the form of the Transformer's config."""
    knobs = {f"{role}_length": model.get(f"{role}_length") for role in ROLES}
    if model.get("do_query_expansion") is not False:
        knobs["query_expansion"] = {
            "strategy": "fixed",
            "attend": bool(model.get("attend_to_expansion_tokens")),
            "length": knobs.pop("query_length") or _PYLATE_LENGTH,
        }
    return knobs


def _ids(words: list[str], tokens: Tokens) -> tuple[int, ...]:
    """The ids of those words that are one token."""
    vocabulary = tokens.vocabulary
    return tuple(sorted({vocabulary[word] for word in words if word in vocabulary}))
