"""Reads folders of sentence-transformers, PyLate and ColBERT as our retrievers.

Modules that a head here can represent are read into it; anything else (another pooling,
a bias, an activation) is refused by name. No code of a folder is ever run.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import stanford
from lsrjax.convert.read import expected_tensors, hub, router
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.read.late_interaction import PYLATE, colbert
from lsrjax.convert.read.modules import (
    MODEL,
    POOLINGS,
    WEIGHTS,
    Folder,
    UnknownModuleError,
    class_name,
    encoder_params,
    expect,
    inside,
    portable,
    projection,
    read_model,
    splade_pooling,
    transformer,
)
from lsrjax.convert.read.tensors import (
    CheckpointError,
    read_json,
    read_list,
    tensor_names,
)
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.dense_heads import CSROptions
from lsrjax.models.retriever import RetrieverSpec

_MODULES = "modules.json"
# Files that show the kind of a folder.
_SMALL = (_MODULES, MODEL, router.ROUTER, "config.json", stanford.METADATA)
_LARGE = ("*.json", "*.safetensors")

# A model's modules in order, optional ones in brackets -> our head.
_SEQUENCES = {
    ("Transformer", "SpladePooling"): "splade",
    ("Transformer", "Pooling", "[Dense]", "[Normalize]", "SparseAutoEncoder"): "csr",
    ("Transformer", "Pooling", "[Dense]", "[Normalize]"): "dense",
    ("Transformer", "[Dense]", "MultiVectorMask", "[Normalize]"): "colbert",
    ("Transformer", "[Dense]", "[Normalize]", "MultiVectorMask"): "colbert",
}


def read(reference: str, allowed: Allowed = NOTHING) -> SavedModel | None:
    """Reads a SparseEncoder, SentenceTransformer, MultiVectorEncoder or ColBERT.

    Returns:
      The retriever; None for a folder of another kind.

    Raises:
      InputError: it cannot be read, or no head here can represent it.
    """
    large = [*_LARGE, *["*.bin"] * allowed.pickle] if allowed.values else ["*.json"]
    path = hub.fetch(reference, _SMALL)
    if not (path / _MODULES).is_file():
        file = path / "config.json"
        config = read_json(file) if file.is_file() else {}
        if stanford.ARCHITECTURE not in expected_tensors.architectures(config):
            return None
        path = hub.fetch(reference, (*_SMALL, *large))
        return stanford.read(reference, path, config, allowed)
    model = read_model(path / MODEL)
    modules = _listed(path / _MODULES)
    names = [
        class_name(entry["type"], path / _MODULES, adapter=allowed.adapter)
        for entry in modules
    ]
    routed = names[:1] == ["Router"]
    if not routed:
        _head(names, model, path / _MODULES)
    files = "*" if allowed.values else "*.json"
    below = [f"{entry['path']}/{files}" for entry in modules if entry["path"]]
    # A Router's modules have their own folders.
    below += [f"*_*/{files}"] * routed
    path = hub.fetch(reference, (*_SMALL, *large, *below))
    listed = [
        (name, inside(path, entry["path"], path / _MODULES))
        for name, entry in zip(names, modules, strict=True)
    ]
    folder = Folder(path, reference, model, {}, allowed)
    if routed:
        return router.read(folder, listed, _read_sequence)
    return _read_sequence(folder, listed, path / _MODULES)


def _read_sequence(
    folder: Folder, listed: list[tuple[str, pathlib.Path]], where: pathlib.Path
) -> SavedModel:
    """The retriever of the modules (class name, folder) listed in the file `where`."""
    head = _head([name for name, _ in listed], folder.model, where)
    return _READERS[head](dataclasses.replace(folder, modules=dict(listed)))


def _listed(path: pathlib.Path) -> list[dict[str, str]]:
    modules = read_list(path)
    for entry in modules:
        fields = entry if isinstance(entry, dict) else {}
        if not all(isinstance(fields.get(key), str) for key in ("type", "path")):
            raise CheckpointError(
                f"{path}: {entry!r} is no module with a type and a path. Save the"
                " model again."
            )
    return modules


def _head(names: list[str], model: Mapping[str, Any], where: pathlib.Path) -> str:
    if model.get("model_type") == PYLATE:  # PyLate masks without a module
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
        f"{where} lists {', '.join(names)}, which no head here computes."
        f" Those that one does: {known}; Router (inference-free, or two of these)."
    )


def _splade(folder: Folder) -> SavedModel:
    found, lengths, _ = transformer(folder, masked_lm=True)
    fields = splade_pooling(folder)
    if "logits" in found.raw_config:  # that our model code computes
        fields["logits"] = found.raw_config["logits"]
    spec = RetrieverSpec.of("splade", found.config, found.params["head"], **fields)
    return portable(folder, spec, found.params, lengths)


def _embedding(folder: Folder, encoder: EncoderConfig) -> tuple[dict, dict]:
    """Fields of the spec, and parameters, of the modules that make an embedding."""
    fields, head = projection(folder, encoder, "sentence_embedding")
    path = folder.modules["Pooling"] / "config.json"
    config = folder.config("Pooling")
    modes = [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    mode = config.get("pooling_mode") or modes
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    ours = {theirs: name for name, theirs in POOLINGS.items()}
    if mode not in [*ours]:
        raise UnknownModuleError(
            f"{path}: pooling {mode!r}; here it is {', '.join(ours)}."
        )
    return fields | {"pooling": ours[mode]}, head


def _dense(folder: Folder) -> SavedModel:
    if (size := folder.model.get("truncate_dim")) is not None:
        raise UnknownModuleError(
            f"{folder.path / MODEL}: truncate_dim is {size!r}. Set it to null, and name"
            " the size with --embedding_size."
        )
    found, lengths, _ = transformer(folder, masked_lm=False)
    fields, head = _embedding(folder, found.config)
    spec = RetrieverSpec.of("dense", found.config, head, **fields)
    compared = folder.model.get("similarity_fn_name") or "cosine"
    if folder.allowed.values and not spec.options.normalize and compared != "dot":
        print(
            f"{folder.reference}: sentence-transformers compares its embeddings by"
            f" {compared}, and they do not have length 1. Here they are compared by"
            " products: append sentence_transformers.models.Normalize() to the model"
            " for the ranking by cosine.",
            file=sys.stderr,
        )
    return portable(folder, spec, encoder_params(found, head), lengths)


def _csr(folder: Folder) -> SavedModel:
    found, lengths, _ = transformer(folder, masked_lm=False)
    fields, dense = _embedding(folder, found.config)
    path = folder.modules["SparseAutoEncoder"]
    # The defaults are sentence-transformers'.
    numbers = {"hidden_dim": 512, "k": 8, "k_aux": 512, "dead_threshold": 30}
    config = folder.config("SparseAutoEncoder", **dict.fromkeys(numbers, int))
    for key in numbers:
        least = int(key in ("hidden_dim", "k"))
        if (value := config.get(key)) is not None and value < least:
            raise CheckpointError(
                f"{path / 'config.json'}: {key} is {value}; it is a number from"
                f" {least} on."
            )
    size = found.config.hidden_size
    if dense:
        size = dense["projection"]["kernel"].shape[1]
    expect(
        path / "config.json",
        config,
        {
            "input_dim": (size,),
            "normalize": (False, None),
            **{key: (config.get(key),) for key in numbers},
        },
    )
    config = numbers | {k: v for k, v in config.items() if v is not None}
    latents, most = config["hidden_dim"], folder.most_active
    # Encoder and decoder are one tensor, saved under either name or both.
    names = tensor_names(path / WEIGHTS) if folder.allowed.values else ()
    tied = [n for n in ("encoder.weight", "decoder.linear.weight") if n in names]
    tied = tied or ["decoder.linear.weight"]
    shapes: dict[str, tuple[int, ...]] = {name: (latents, size) for name in tied}
    shapes |= {"latent_bias": (latents,), "pre_bias": (size,)}
    shapes |= {"stats_last_nonzero": (latents,)}
    state = folder.weights("SparseAutoEncoder", shapes)
    if not np.array_equal(state[tied[0]], state[tied[-1]]):
        raise CheckpointError(
            f"{path / WEIGHTS}: {' and '.join(tied)} differ; they are one tensor."
        )
    autoencoder = {
        "kernel": np.array(state[tied[0]].T, order="C"),
        "bias": state["latent_bias"],
        "center": state["pre_bias"],
        # After a step in which a latent is active, theirs is 1, ours 0.
        "idle": (state["stats_last_nonzero"] - 1).astype(np.float32),
    }
    head = {"autoencoder": autoencoder} | ({"dense": dense} if dense else {})
    fields |= {ours: config[theirs] for theirs, ours in CSROptions.theirs.items()}
    # There it takes the place of k, and may be more.
    fields["active_latents"] = max(most, config["k"])
    fields["most_active"] = most if most < config["k"] else 0
    spec = RetrieverSpec.of("csr", found.config, head, **fields)
    return portable(folder, spec, encoder_params(found, head), lengths)


_READERS = {"splade": _splade, "dense": _dense, "csr": _csr, "colbert": colbert}
