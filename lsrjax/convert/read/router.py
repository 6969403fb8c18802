"""Reads a Router of sentence-transformers: two towers, or no query encoder."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.prompts import NO_TOKEN, ROLES, Tokens
from lsrjax.convert.read.modules import (
    WEIGHTS,
    Folder,
    UnknownModuleError,
    class_name,
    inside,
    portable,
    splade_pooling,
    transformer,
)
from lsrjax.convert.read.tensors import CheckpointError, check_types, read_json, strings
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.tokenizer.ask_transformers import PROBES

ROUTER = "router_config.json"
Listed = list[tuple[str, pathlib.Path]]
_STATIC = ["SparseStaticEmbedding"]
_DOCUMENT = ["Transformer", "SpladePooling"]


def read(
    folder: Folder,
    listed: Listed,
    read_sequence: Callable[[Folder, Listed, pathlib.Path], SavedModel],
) -> SavedModel:
    """The retriever of a Router and the modules after it.

    Args:
      listed: class name and folder of the Router and the modules after both routes.
      read_sequence: reads the modules of one route, listed in a file.

    Raises:
      InputError: it cannot be read, or no retriever here can represent it.
    """
    root, *after = listed
    path = root[1] / ROUTER
    router = read_json(path)
    check_types(path, router, {"types": dict, "structure": dict, "parameters": dict})
    types, structure = router.get("types") or {}, router.get("structure") or {}
    check_types(path, types, dict.fromkeys(types, str))
    names = {role: strings(path, role, listed) for role, listed in structure.items()}
    if lost := [n for listed in names.values() for n in listed if not types.get(n)]:
        raise CheckpointError(
            f"{path} gives no type of {', '.join(lost)}. Save the model again."
        )
    routes = {
        role: [
            (class_name(types[name], path), inside(root[1], name, path))
            for name in listed
        ]
        for role, listed in names.items()
    }
    mappings = (router.get("parameters") or {}).get("route_mappings")
    if routes.keys() != set(ROLES) or mappings:
        raise UnknownModuleError(
            f"{path} routes {', '.join(routes) or 'nothing'}, but only a route of"
            " queries and one of documents are implemented, without route_mappings."
        )
    routes = {role: route + after for role, route in routes.items()}
    kinds = {role: [name for name, _ in route] for role, route in routes.items()}
    if kinds["query"] == _STATIC:
        if kinds["document"] != _DOCUMENT:
            raise UnknownModuleError(
                f"{path} routes {kinds}, but beside {', '.join(_STATIC)} of queries"
                f" only {', '.join(_DOCUMENT)} of documents is implemented."
            )
        modules = dict(routes["query"] + routes["document"])
        return _inference_free(dataclasses.replace(folder, modules=modules))
    towers = {role: read_sequence(folder, routes[role], path) for role in ROLES}
    return _joined(towers["query"], towers["document"], path)


def _joined(query: SavedModel, document: SavedModel, path: pathlib.Path) -> SavedModel:
    """Joins both towers, which must be of one kind and vocabulary."""
    specs = [dataclasses.asdict(tower.spec) for tower in (query, document)]
    different = [name for name in specs[0] if specs[0][name] != specs[1][name]]
    if different:
        raise UnknownModuleError(
            f"{path}: the towers of queries and documents differ in"
            f" {', '.join(different)}; here they are of one kind and size."
        )
    own, other = (Tokens(tower.tokenizer) for tower in (query, document))
    if own.vocabulary != other.vocabulary or own.ids(PROBES) != other.ids(PROBES):
        raise UnknownModuleError(
            f"{query.tokenizer} and {document.tokenizer} have different vocabularies;"
            " here both towers have one."
        )
    return dataclasses.replace(
        document,
        spec=dataclasses.replace(document.spec, towers="separate"),
        params=retriever.with_query_tower(dict(document.params), dict(query.params)),
        query_length=query.query_length,
    )


def _inference_free(folder: Folder) -> SavedModel:
    modules = folder.modules
    found, lengths, _ = transformer(folder, masked_lm=True)
    table = modules["SparseStaticEmbedding"]
    own, size = Tokens(table), found.config.vocab_size
    if "path" in (config := read_json(table / "config.json")):
        raise CheckpointError(
            f"{table / 'config.json'} takes the weights from {config['path']!r}. Save"
            " the model again with sentence-transformers, which writes them as tensors."
        )
    shape = {"weight": (len(own.vocabulary),)}
    weight_V = folder.weights("SparseStaticEmbedding", shape)["weight"]
    terms = Tokens(modules["Transformer"])
    words = {t: i for t, i in own.vocabulary.items() if not t.startswith(NO_TOKEN)}
    same = words == terms.vocabulary and own.ids(PROBES) == terms.ids(PROBES)
    if len(weight_V) > size or not same:
        raise CheckpointError(
            f"{table} and {modules['Transformer']} have different vocabularies; here a"
            " query's words are the terms of documents."
        )
    around = own.library.num_special_tokens_to_add(False)
    cut = int(own.reading.max_length or found.config.max_length)
    lengths["query_length"] = min(cut + around, found.config.max_length)
    spec = RetrieverSpec.of(
        "splade",
        found.config,
        tied="decoder" not in found.params["head"]["mlm"],
        queries="static",
        **splade_pooling(folder),
    )
    weight_V = np.pad(weight_V, (0, size - len(weight_V)))
    params = dict(found.params)
    params["head"] = params["head"] | {"static": weight_V}
    made = portable(folder, spec, params, lengths)
    special = list(made.spec.special_ids)
    if np.any(weight_V[special]):
        raise CheckpointError(
            f"{table / WEIGHTS}: the special tokens"
            f" {[i for i in special if weight_V[i]]} have weights other than 0, but"
            " here they are no words of a query. Set them to 0 if that is meant."
        )
    ones_V = np.ones_like(weight_V)
    ones_V[special] = 0
    planned = not folder.allowed.values
    if config.get("frozen") and (planned or np.array_equal(weight_V, ones_V)):
        params["head"] = found.params["head"]
        spec = made.spec.replaced(queries="words")
        return dataclasses.replace(made, spec=spec, params=params)
    return made
