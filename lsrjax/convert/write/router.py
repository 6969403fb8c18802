"""Writes Routers of sentence-transformers: routes for queries and for documents."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.prompts import NO_TOKEN, Tokens
from lsrjax.convert.write.code import write_code
from lsrjax.convert.write.folder import write_weights
from lsrjax.convert.write.modules import (
    TYPES,
    splade_pooling,
    write_config,
    write_model,
    write_modules,
    write_transformer,
)
from lsrjax.errors import InputError
from lsrjax.json_files import write_json
from lsrjax.models import retriever
from lsrjax.models.backbones.table import backbone
from lsrjax.tokenizer.writing import write_tokenizer

_ROUTER = "router_config.json"


def write_towers(
    folder: pathlib.Path,
    model: SavedModel,
    modules_of: Callable[[SavedModel], dict[str, Any]],
    *,
    masked_lm: bool,
) -> dict[str, str]:
    """Writes a Router with a Hugging Face model and further modules for each role.

    `modules_of` returns the modules after the Hugging Face model, by class name.
    """
    document, query = retriever.towers_of(dict(model.params))
    assert query is not None
    prompts, routes = {}, {}
    for role, params in (("query", query), ("document", document)):
        length = getattr(model, f"{role}_length")
        tower = dataclasses.replace(
            model, params=params, query_length=length, document_length=length
        )
        routes[role] = {f"{role}_0_Transformer": "Transformer"}
        prompts = write_transformer(
            folder / f"{role}_0_Transformer", tower, masked_lm=masked_lm
        )
        for index, (kind, module) in enumerate(modules_of(tower).items(), start=1):
            routes[role][f"{role}_{index}_{kind}"] = kind
            write_config(folder / f"{role}_{index}_{kind}", module)
    _write_router(folder, model, routes)
    return prompts


def _write_router(
    folder: pathlib.Path, model: SavedModel, routes: dict[str, dict[str, str]]
) -> None:
    """Writes the only root module; `routes` maps role -> folder -> class name."""
    # The code of modules in folders is looked for here, too.
    write_code(folder, backbone(model.spec.encoder.family))
    kinds = {name: kind for route in routes.values() for name, kind in route.items()}
    write_json(
        folder / _ROUTER,
        {
            "types": {name: TYPES[kind] for name, kind in kinds.items()},
            "structure": {role: list(route) for role, route in routes.items()},
            "parameters": {
                "default_route": "document",
                "allow_empty_key": True,
                "route_mappings": {},
            },
        },
    )
    write_modules(folder, {"Router": None})


def write_inference_free(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes a SparseEncoder whose Router sends queries to a table of weights."""
    spec = model.spec
    if spec.encodes_queries:
        raise InputError(
            f"--to inference-free has no encoder for queries, but {model.name} has"
            " model.head.queries = 'encoded'. Possible are splade, lsrjax."
        )
    query, document = "query_0_SparseStaticEmbedding", "document_0_Transformer"
    pooling = "document_1_SpladePooling"
    prompts = write_transformer(folder / document, model, masked_lm=True)
    write_config(folder / pooling, splade_pooling(model))
    _write_static(folder / query, folder / document, model)
    _write_router(
        folder,
        model,
        {
            "query": {query: "SparseStaticEmbedding"},
            "document": {document: "Transformer", pooling: "SpladePooling"},
        },
    )
    most = spec.most_active
    write_model(folder, "SparseEncoder", prompts, most_active=most)


def _write_static(
    folder: pathlib.Path, document: pathlib.Path, model: SavedModel
) -> None:
    spec = model.spec
    size = spec.encoder.vocab_size
    own = Tokens(document)
    # The module tokenizes without special tokens, which count in our length.
    around = own.library.num_special_tokens_to_add(False)
    write_tokenizer(folder, document, max_length=model.query_length - around)
    _fill_vocabulary(folder, own, size, model.name)
    if spec.options.queries == "static":
        weight_V = np.array(model.params["head"]["static"], np.float32)
    else:
        weight_V = np.ones(size, np.float32)
    # They occur in texts too: [UNK] for a character outside the vocabulary.
    weight_V[list(spec.special_ids)] = 0
    write_config(folder, {"frozen": spec.options.queries == "words"})
    write_weights(folder, {"weight": weight_V})


def _fill_vocabulary(folder: pathlib.Path, own: Tokens, size: int, name: str) -> None:
    """Adds tokens until each of the encoder's embeddings has one."""
    vocabulary = own.vocabulary
    if len(vocabulary) == size:
        return
    if max(vocabulary.values()) + 1 != len(vocabulary) or len(vocabulary) > size:
        raise InputError(
            f"{name}: the tokenizer's {len(vocabulary)} tokens have ids up to"
            f" {max(vocabulary.values())}, and the encoder {size} embeddings; a table"
            " of query weights needs a token for each. Export with --to lsrjax."
        )
    more = [
        {
            "id": i,
            "content": f"{NO_TOKEN}{i}>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        for i in range(len(vocabulary), size)
    ]
    content = own.content
    added = [*content.get("added_tokens", ()), *more]
    write_json(folder / "tokenizer.json", content | {"added_tokens": added})
