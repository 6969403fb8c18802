"""Writes folders for sentence-transformers 6.2, one kind for each head."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.prompts import Tokens
from lsrjax.convert.read.modules import POOLINGS
from lsrjax.convert.write.modules import (
    splade_pooling,
    write_model,
    write_modules,
    write_transformer,
)
from lsrjax.convert.write.router import write_towers
from lsrjax.errors import InputError
from lsrjax.json_files import write_json
from lsrjax.models.retriever import RetrieverSpec

# Of the release that PyLate is built on, and PyLate's own.
_PYLATE_TYPES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Dense": "pylate.models.Dense.Dense",
}
# A program warns about folders of a later release.
_PYLATE_VERSIONS = {"sentence_transformers": "4.0.2", "transformers": "4.48.2"}
_IDENTITY = "torch.nn.modules.linear.Identity"


def write_splade(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes a SparseEncoder: a masked LM and the pooling of its logits."""
    if not model.spec.encodes_queries:
        raise InputError(
            f"--to splade encodes queries, but {model.name} has"
            f" model.head.queries = {model.spec.options.queries!r}. Possible are"
            " inference-free, lsrjax."
        )
    prompts = _write(folder, model, _splade_modules, masked_lm=True)
    most = model.spec.most_active
    write_model(folder, "SparseEncoder", prompts, most_active=most)


def _splade_modules(model: SavedModel) -> dict[str, Any]:
    return {"SpladePooling": splade_pooling(model)}


def write_dense(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes a SentenceTransformer: one embedding per text."""
    prompts = _write(folder, model, _dense_modules, masked_lm=False)
    write_model(folder, "SentenceTransformer", prompts)


def _dense_modules(model: SavedModel) -> dict[str, Any]:
    return embedding_modules(model.spec, model.params.get("head", {}))


def write_csr(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes a SparseEncoder: a sparse autoencoder over an embedding."""
    prompts = _write(folder, model, _csr_modules, masked_lm=False)
    most = model.spec.most_active or model.spec.options.k
    write_model(folder, "SparseEncoder", prompts, most_active=most)


def _csr_modules(model: SavedModel) -> dict[str, Any]:
    spec, head = model.spec, model.params["head"]
    autoencoder = {
        name: np.asarray(value) for name, value in head["autoencoder"].items()
    }
    config = {
        "input_dim": len(autoencoder["center"]),
        **{
            theirs: getattr(spec.options, ours)
            for theirs, ours in spec.options.theirs.items()
        },
        # It normalizes in another way than we do, by a separate module.
        "normalize": False,
    }
    state = {
        "decoder.linear.weight": autoencoder["kernel"].T,
        "latent_bias": autoencoder["bias"],
        "pre_bias": autoencoder["center"],
        # After a step in which a latent is active, theirs is 1, ours 0.
        "stats_last_nonzero": autoencoder["idle"].astype(np.int64) + 1,
    }
    modules = embedding_modules(spec, head.get("dense", {}))
    return modules | {"SparseAutoEncoder": (config, state)}


def _write(
    folder: pathlib.Path,
    model: SavedModel,
    modules_of: Callable[[SavedModel], dict[str, Any]],
    *,
    masked_lm: bool,
) -> dict[str, str]:
    """Writes the Hugging Face model and its modules for each tower; returns prompts."""
    if model.spec.towers == "separate":
        return write_towers(folder, model, modules_of, masked_lm=masked_lm)
    prompts = write_transformer(folder, model, masked_lm=masked_lm)
    write_modules(folder, {"Transformer": None} | modules_of(model))
    return prompts


def write_multi_vector(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes a MultiVectorEncoder: one embedding per token."""
    spec = model.spec
    tokens = Tokens(model.tokenizer)
    knobs = {}
    if spec.expand_id >= 0:
        knobs["query_expansion"] = {
            "strategy": "fixed",
            "attend": False,
            "token": tokens.library.id_to_token(spec.expand_id),
            "length": model.query_length,
        }
    prompts = write_transformer(folder, model, masked_lm=False, **knobs)
    mask = {
        "skiplist_words": [
            tokens.library.id_to_token(i) for i in spec.options.skip_ids
        ],
        "skiplist_tasks": ["document"],
        "keep_only_token_ids": None,
    }
    head = model.params.get("head", {})
    modules: dict[str, Any] = {"Transformer": None}
    modules |= _projection(head, "token_embeddings")
    modules |= {"MultiVectorMask": (mask, None)}
    modules |= _normalize(spec, "token_embeddings")
    write_modules(folder, modules)
    write_model(folder, "MultiVectorEncoder", prompts, similarity="maxsim")


def write_pylate(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes a ColBERT of PyLate, which keeps all but two modules in one config.

    Its embeddings are always projected and normalized.
    """
    spec = model.spec
    head = model.params.get("head", {})
    lacks = [
        word
        for word, found in (
            ("projected", "projection" in head),
            ("normalized", spec.options.normalize),
        )
        if not found
    ]
    if lacks:
        raise InputError(
            "--to pylate projects embeddings and normalizes them, but those of"
            f" {model.name} are not {' and not '.join(lacks)}. Possible are"
            " multi-vector, lsrjax."
        )
    tokens = Tokens(model.tokenizer).library
    prefixes: dict[str, Any] = {
        f"{role}_prefix": tokens.id_to_token(marker) if marker >= 0 else ""
        for role, marker in (
            ("query", spec.query_marker),
            ("document", spec.document_marker),
        )
    }
    # PyLate sets a marker's id itself, so the tokenizer stays unchanged.
    bare = dataclasses.replace(spec, query_marker=-1, document_marker=-1)
    prompts = write_transformer(
        folder, dataclasses.replace(model, spec=bare), masked_lm=False
    )
    # PyLate's module always reads token embeddings, and has no setting for it.
    dense = _projection(head)
    write_modules(folder, {"Transformer": None} | dense, _PYLATE_TYPES)
    # Its release of sentence-transformers has no further settings for the module.
    longest = max(model.query_length, model.document_length)
    settings = {"max_seq_length": longest, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", settings)
    write_model(
        folder,
        "ColBERT",
        prompts,
        similarity="MaxSim",
        __version__=_PYLATE_VERSIONS,
        **prefixes,
        query_length=model.query_length,
        document_length=model.document_length,
        do_query_expansion=spec.expand_id >= 0,
        attend_to_expansion_tokens=False,
        skiplist_words=[tokens.id_to_token(i) for i in spec.options.skip_ids],
    )


def embedding_modules(spec: RetrieverSpec, head) -> dict[str, Any]:
    """The modules for pooling, projection and normalization that the model uses."""
    pooling = {
        "embedding_dimension": spec.encoder.hidden_size,
        "pooling_mode": POOLINGS[spec.options.pooling],
        "include_prompt": spec.includes_prompt,
    }
    modules: dict[str, Any] = {"Pooling": (pooling, None)}
    modules |= _projection(head, "sentence_embedding")
    return modules | _normalize(spec, "sentence_embedding")


def _projection(head, feature: str = "") -> dict[str, Any]:
    if "projection" not in head:
        return {}
    kernel = np.asarray(head["projection"]["kernel"])
    config = {
        "in_features": len(kernel),
        "out_features": kernel.shape[1],
        "bias": False,
        "activation_function": _IDENTITY,
    }
    if feature:
        config |= {"module_input_name": feature, "module_output_name": feature}
    return {"Dense": (config, {"linear.weight": kernel.T})}


def _normalize(spec: RetrieverSpec, feature: str) -> dict[str, Any]:
    if not spec.options.normalize:
        return {}
    names = {"module_input_name": feature, "module_output_name": feature}
    return {"Normalize": (names, None)}
