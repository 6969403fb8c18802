"""Folders of sentence-transformers, PyLate and ColBERT as our retrievers.

Modules that do what a head here does are read into it; whatever differs (another
pooling, a bias, an activation) is refused by name. No code of a folder is ever run.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.convert import huggingface, stanford
from lsrjax.convert.huggingface import NOTHING, Allowed
from lsrjax.convert.late_in import PYLATE, colbert
from lsrjax.convert.modules import (
    MODEL,
    WEIGHTS,
    Folder,
    UnknownModuleError,
    encoder_params,
    expect,
    portable,
    projection,
    prompts,
    refuse_cut,
    transformer,
)
from lsrjax.convert.portable import Portable
from lsrjax.convert.prompts import Tokens
from lsrjax.convert.tensors import (
    CheckpointError,
    read_json,
    read_list,
    read_weights,
    tensor_names,
)
from lsrjax.models.encoder import EncoderConfig
from lsrjax.models.retriever import RetrieverSpec

_MODULES = "modules.json"
_ROUTER = "router_config.json"
# What tells the kind of a folder.
_SMALL = (_MODULES, MODEL, _ROUTER, "config.json", stanford.METADATA)
_LARGE = ("*.json", "*.safetensors")
_PROGRAMS = ("sentence_transformers.", "pylate.")

# The modules of a model, in order, those in brackets optional -> our head.
_SEQUENCES = {
    ("Transformer", "SpladePooling"): "splade",
    ("Transformer", "Pooling", "[Dense]", "[Normalize]", "SparseAutoEncoder"): "csr",
    ("Transformer", "Pooling", "[Dense]", "[Normalize]"): "dense",
    ("Transformer", "[Dense]", "MultiVectorMask", "[Normalize]"): "colbert",
    ("Transformer", "[Dense]", "[Normalize]", "MultiVectorMask"): "colbert",
}


def read(reference: str, allowed: Allowed = NOTHING) -> Portable | None:
    """Reads a SparseEncoder, SentenceTransformer, MultiVectorEncoder or ColBERT.

    Args:
      reference: a folder or hub id.
      allowed: what is put up with in its Hugging Face model.

    Returns:
      The retriever; None if the folder is of another kind.

    Raises:
      InputError: it cannot be read, or does something that no head here does.
    """
    large = (*_LARGE, "*.bin") if allowed.pickle else _LARGE
    path = huggingface.fetch(reference, _SMALL)
    if not (path / _MODULES).is_file():
        config = path / "config.json"
        config = read_json(config) if config.is_file() else {}
        if stanford.ARCHITECTURE not in (config.get("architectures") or ()):
            return None
        path = huggingface.fetch(reference, (*_SMALL, *large))
        return stanford.read(reference, path, config, allowed)
    model = path / MODEL
    model = read_json(model) if model.is_file() else {}
    modules = _listed(path / _MODULES)
    names = [_class(entry["type"], path / _MODULES) for entry in modules]
    head = "splade" if names == ["Router"] else _head(names, model, path)
    below = [f"{entry['path']}/*" for entry in modules if entry["path"]]
    # A Router's modules have folders of their own.
    below += ["query_*/*", "document_*/*"] * (names == ["Router"])
    path = huggingface.fetch(reference, (*_SMALL, *large, *below))
    paths = [path / entry["path"] for entry in modules]
    if names == ["Router"]:
        return _inference_free(paths[0], reference, model, allowed)
    known = dict(zip(names, paths, strict=True))
    return _READERS[head](Folder(path, reference, model, known, allowed))


def _listed(path: pathlib.Path) -> list[dict[str, str]]:
    modules = read_list(path)
    for entry in modules:
        if not isinstance(entry, dict) or not {"type", "path"} <= entry.keys():
            raise CheckpointError(
                f"{path}: {entry!r} is no module with a type and a path. Save the"
                " model again."
            )
    return modules


def _class(dotted: str, path: pathlib.Path) -> str:
    if not dotted.startswith(_PROGRAMS):
        raise UnknownModuleError(
            f"{path} names the module {dotted!r}, which is code of its own and is not"
            " run. Use a model of sentence-transformers' own modules."
        )
    # In release 5 the masked LM was a module of its own.
    name = dotted.rpartition(".")[2]
    return "Transformer" if name == "MLMTransformer" else name


def _head(names: list[str], model: Mapping[str, Any], path: pathlib.Path) -> str:
    if model.get("model_type") == PYLATE:  # PyLate, which masks without a module
        names = [*names, "MultiVectorMask", "Normalize"]
    for sequence, head in _SEQUENCES.items():
        left = list(names)
        for name in sequence:
            if left and left[0] == name.strip("[]"):
                left.pop(0)
            elif not name.startswith("["):
                break
        else:
            if not left:
                return head
    known = "; ".join(f"{', '.join(s)} ({head})" for s, head in _SEQUENCES.items())
    raise UnknownModuleError(
        f"{path / _MODULES} lists {', '.join(names)}, which no head here computes."
        f" Those that one does: {known}; Router (inference-free)."
    )


def _splade_pooling(path: pathlib.Path) -> str:
    config = read_json(path / "config.json")
    size = ("embedding_dimension", "word_embedding_dimension")
    expect(
        path / "config.json",
        config,
        {
            "pooling_strategy": ("max", "sum"),
            "activation_function": ("relu",),
            "chunk_size": (config.get("chunk_size"),),
            **{key: (config.get(key),) for key in size},
        },
    )
    return config.get("pooling_strategy", "max")


def _splade(folder: Folder) -> Portable:
    found, lengths, _ = transformer(folder, masked_lm=True)
    refuse_cut(folder, None)
    spec = RetrieverSpec(
        "splade",
        found.config,
        tied="decoder" not in found.params["head"]["mlm"],
        pooling=_splade_pooling(folder.modules["SpladePooling"]),
    )
    return portable(folder, spec, found.params, lengths)


def _inference_free(path: pathlib.Path, reference: str, model, allowed) -> Portable:
    router = read_json(path / _ROUTER)
    types = {
        name: _class(dotted, path / _ROUTER) for name, dotted in router["types"].items()
    }
    kinds = {
        route: [types[name] for name in names]
        for route, names in router["structure"].items()
    }
    wanted = {
        "query": ["SparseStaticEmbedding"],
        "document": ["Transformer", "SpladePooling"],
    }
    if kinds != wanted:
        raise UnknownModuleError(
            f"{path / _ROUTER} routes {kinds}, but only {wanted} is implemented."
        )
    modules = {kind: path / name for name, kind in types.items()}
    folder = Folder(path, reference, model, modules, allowed)
    found, lengths, _ = transformer(folder, masked_lm=True)
    refuse_cut(folder, None)
    table = modules["SparseStaticEmbedding"]
    own, size = Tokens(table), found.config.vocab_size
    if "path" in (config := read_json(table / "config.json")):
        raise CheckpointError(
            f"{table / 'config.json'} takes the weights from {config['path']!r}. Save"
            " the model again with sentence-transformers, which writes them as tensors."
        )
    weight_V = read_weights(table / WEIGHTS, {"weight": (len(own.vocabulary),)})
    weight_V = weight_V["weight"]
    if len(weight_V) > size or own.ids(_SAMPLE) != Tokens(modules["Transformer"]).ids(
        _SAMPLE
    ):
        raise CheckpointError(
            f"{table} and {modules['Transformer']} have different vocabularies; here a"
            " query's words are the terms of documents."
        )
    around = own.library.num_special_tokens_to_add(False)
    cut = int(own.config.get("model_max_length") or found.config.max_length)
    lengths["query_length"] = min(cut + around, found.config.max_length)
    spec = RetrieverSpec(
        "splade",
        found.config,
        tied="decoder" not in found.params["head"]["mlm"],
        pooling=_splade_pooling(modules["SpladePooling"]),
        queries="static",
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
    if config.get("frozen") and np.array_equal(weight_V, ones_V):
        params["head"] = found.params["head"]
        spec = dataclasses.replace(made.spec, queries="words")
        return dataclasses.replace(made, spec=spec, params=params)
    return made


_SAMPLE = ("A text, as others are: 12 Wörter.", "другой текст", "文字")


def _embedding(folder: Folder, encoder: EncoderConfig) -> tuple[dict, dict]:
    """Fields of the spec, and parameters, of what makes an embedding of states."""
    fields, head = projection(folder, encoder, "sentence_embedding")
    path = folder.modules["Pooling"] / "config.json"
    config = read_json(path)
    modes = [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    mode = config.get("pooling_mode", modes[0] if len(modes) == 1 else modes)
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if mode not in ("cls", "mean"):
        raise UnknownModuleError(f"{path}: pooling {mode!r}; here it is cls or mean.")
    if config.get("include_prompt") is False and any(prompts(folder.model).values()):
        raise UnknownModuleError(
            f"{path}: include_prompt is false, but here a prompt's tokens take part."
        )
    return fields | {"pooling": mode}, head


def _dense(folder: Folder) -> Portable:
    found, lengths, _ = transformer(folder, masked_lm=False)
    fields, head = _embedding(folder, found.config)
    spec = RetrieverSpec("dense", found.config, **fields)
    return portable(folder, spec, encoder_params(found, head), lengths)


def _csr(folder: Folder) -> Portable:
    found, lengths, _ = transformer(folder, masked_lm=False)
    fields, dense = _embedding(folder, found.config)
    path = folder.modules["SparseAutoEncoder"]
    config = folder.config("SparseAutoEncoder")
    size = fields.get("embedding_size", found.config.hidden_size)
    numbers = ("hidden_dim", "k", "k_aux", "dead_threshold")
    expect(
        path / "config.json",
        config,
        {
            "input_dim": (size,),
            "normalize": (False, None),
            **{key: (config.get(key),) for key in numbers},
        },
    )
    # The defaults are sentence-transformers'.
    latents = config.get("hidden_dim", 512)
    active = config.get("k", 8)
    refuse_cut(folder, active)
    spec = RetrieverSpec(
        "csr",
        found.config,
        latents=latents,
        active_latents=active,
        revived_latents=config.get("k_aux", 512),
        dead_after=config.get("dead_threshold", 30),
        **fields,
    )
    # Encoder and decoder are one tensor, saved under the name of either.
    names = tensor_names(path / WEIGHTS)
    tied = [n for n in ("encoder.weight", "decoder.linear.weight") if n in names]
    tied = tied or ["decoder.linear.weight"]
    shapes = {name: (latents, size) for name in tied}
    shapes |= {"latent_bias": (latents,), "pre_bias": (size,)}
    shapes |= {"stats_last_nonzero": (latents,)}
    state = read_weights(path / WEIGHTS, shapes)
    if not np.array_equal(state[tied[0]], state[tied[-1]]):
        raise CheckpointError(
            f"{path / WEIGHTS}: {' and '.join(tied)} differ; they are one tensor."
        )
    autoencoder = {
        "kernel": np.array(state[tied[0]].T, order="C"),
        "bias": state["latent_bias"],
        "center": state["pre_bias"],
        # Theirs is 1 after a step in which a latent is active, ours 0.
        "idle": (state["stats_last_nonzero"] - 1).astype(np.float32),
    }
    head = {"autoencoder": autoencoder} | ({"dense": dense} if dense else {})
    return portable(folder, spec, encoder_params(found, head), lengths)


_READERS = {"splade": _splade, "dense": _dense, "csr": _csr, "colbert": colbert}
