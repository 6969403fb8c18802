"""Folders for sentence-transformers 6.2: its module names, configs and tensors.

`modules.json` lists the modules of a model, each a dotted class of that program with a
folder of its own; the first one, a Hugging Face model, lies in the root.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from lsrjax.convert.folder import write_json, write_tokenizer, write_weights
from lsrjax.convert.names import export_state
from lsrjax.convert.portable import Portable
from lsrjax.convert.prompts import Tokens, write_prompts
from lsrjax.errors import InputError

# The releases whose folders these are.
_VERSIONS = {"sentence_transformers": "6.2.0", "transformers": "5.23.0"}
_MODULES = {
    "Transformer": "base.modules.transformer",
    "Router": "base.modules.router",
    "Dense": "base.modules.dense",
    "Normalize": "base.modules.normalize",
    "Pooling": "sentence_transformer.modules.pooling",
    "SpladePooling": "sparse_encoder.modules.splade_pooling",
    "SparseAutoEncoder": "sparse_encoder.modules.sparse_auto_encoder",
    "SparseStaticEmbedding": "sparse_encoder.modules.sparse_static_embedding",
    "MultiVectorMask": "multi_vector_encoder.modules.multi_vector_mask",
}
_TYPES = {
    name: f"sentence_transformers.{module}.{name}" for name, module in _MODULES.items()
}
# Of the release that PyLate is built on, and its own.
_PYLATE_TYPES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Dense": "pylate.models.Dense.Dense",
}
_IDENTITY = "torch.nn.modules.linear.Identity"
# Class names of transformers.
CLASSES = {"bert": "Bert", "xlm-roberta": "XLMRoberta"}


def write_splade(model: Portable, folder: pathlib.Path) -> None:
    """A SparseEncoder: a masked LM and the pooling of its logits.

    Raises:
      InputError: queries are no vectors of the masked LM.
    """
    if model.spec.queries != "encoded":
        raise InputError(
            f"--to splade encodes queries, but {model.name} has"
            f" model.queries = {model.spec.queries!r}. Possible are inference-free,"
            " lsrjax."
        )
    prompts = write_transformer(folder, model, masked_lm=True)
    pooling = _splade_pooling(model)
    _write_modules(folder, {"Transformer": None, "SpladePooling": pooling})
    _write_model(folder, "SparseEncoder", prompts)


def write_inference_free(model: Portable, folder: pathlib.Path) -> None:
    """A SparseEncoder whose Router sends queries to a table of weights.

    Raises:
      InputError: queries are encoded.
    """
    spec = model.spec
    if spec.queries == "encoded":
        raise InputError(
            f"--to inference-free has no encoder for queries, but {model.name} has"
            " model.queries = 'encoded'. Possible are splade, lsrjax."
        )
    query, document = "query_0_SparseStaticEmbedding", "document_0_Transformer"
    pooling = "document_1_SpladePooling"
    prompts = write_transformer(folder / document, model, masked_lm=True)
    _write_config(folder / pooling, _splade_pooling(model))
    write_json(
        folder / "router_config.json",
        {
            "types": {
                query: _TYPES["SparseStaticEmbedding"],
                document: _TYPES["Transformer"],
                pooling: _TYPES["SpladePooling"],
            },
            "structure": {"query": [query], "document": [document, pooling]},
            "parameters": {
                "default_route": "document",
                "allow_empty_key": True,
                "route_mappings": {},
            },
        },
    )
    _write_static(folder / query, folder / document, model)
    _write_modules(folder, {"Router": None})
    _write_model(folder, "SparseEncoder", prompts)


def _write_static(
    folder: pathlib.Path, document: pathlib.Path, model: Portable
) -> None:
    spec = model.spec
    size = spec.encoder.vocab_size
    own = Tokens(document)
    # That module tokenizes without special tokens, which count in our length.
    around = own.library.num_special_tokens_to_add(False)
    write_tokenizer(folder, document, max_length=model.query_length - around)
    _fill_vocabulary(folder, own, size, model.name)
    if spec.queries == "static":
        weight_V = np.array(model.params["head"]["static"], np.float32)
    else:
        weight_V = np.ones(size, np.float32)
    # They stand in texts too: [UNK] for a character that the vocabulary lacks.
    weight_V[list(spec.special_ids)] = 0
    _write_config(folder, {"frozen": spec.queries == "words"})
    write_weights(folder, {"weight": weight_V})


def _fill_vocabulary(folder: pathlib.Path, own: Tokens, size: int, name: str) -> None:
    """As many tokens as the encoder has embeddings: the table has one weight each."""
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
            "content": f"<no token {i}>",
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


def write_dense(model: Portable, folder: pathlib.Path) -> None:
    """A SentenceTransformer: one embedding of a text."""
    prompts = write_transformer(folder, model, masked_lm=False)
    modules = {"Transformer": None} | _embedding(model, model.params.get("head", {}))
    _write_modules(folder, modules)
    _write_model(folder, "SentenceTransformer", prompts)


def write_csr(model: Portable, folder: pathlib.Path) -> None:
    """A SparseEncoder: a sparse autoencoder on an embedding."""
    spec = model.spec
    prompts = write_transformer(folder, model, masked_lm=False)
    head = model.params["head"]
    autoencoder = {
        name: np.asarray(value) for name, value in head["autoencoder"].items()
    }
    config = {
        "input_dim": len(autoencoder["center"]),
        "hidden_dim": spec.latents,
        "k": spec.active_latents,
        "k_aux": spec.revived_latents,
        # Another normalization than ours, which is a module of its own.
        "normalize": False,
        "dead_threshold": spec.dead_after,
    }
    state = {
        "decoder.linear.weight": autoencoder["kernel"].T,
        "latent_bias": autoencoder["bias"],
        "pre_bias": autoencoder["center"],
        # Theirs is 1 after a step in which a latent is active, ours 0.
        "stats_last_nonzero": autoencoder["idle"].astype(np.int64) + 1,
    }
    modules = {"Transformer": None} | _embedding(model, head.get("dense", {}))
    _write_modules(folder, modules | {"SparseAutoEncoder": (config, state)})
    _write_model(folder, "SparseEncoder", prompts, max_active_dims=spec.active_latents)


def write_multi_vector(model: Portable, folder: pathlib.Path) -> None:
    """A MultiVectorEncoder: an embedding of each token."""
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
        "skiplist_words": [tokens.library.id_to_token(i) for i in spec.skip_ids],
        "skiplist_tasks": ["document"],
        "keep_only_token_ids": None,
    }
    head = model.params.get("head", {})
    modules: dict[str, Any] = {"Transformer": None}
    modules |= _projection(model, head, "token_embeddings")
    modules |= {"MultiVectorMask": (mask, None)}
    modules |= _normalize(model, "token_embeddings")
    _write_modules(folder, modules)
    _write_model(folder, "MultiVectorEncoder", prompts, similarity="maxsim")


def write_pylate(model: Portable, folder: pathlib.Path) -> None:
    """A ColBERT of PyLate, which keeps everything but two modules in one config.

    Raises:
      InputError: embeddings are not projected or not normalized, as PyLate's are.
    """
    spec = model.spec
    if not (spec.normalize and spec.embedding_size):
        raise InputError(
            f"--to pylate projects embeddings and normalizes them, but {model.name} has"
            f" model.embedding_size = {spec.embedding_size} and model.normalize ="
            f" {spec.normalize}. Possible are multi-vector, lsrjax."
        )
    tokens = Tokens(model.tokenizer).library
    prefixes = {
        f"{role}_prefix": tokens.id_to_token(marker) if marker >= 0 else ""
        for role, marker in (
            ("query", spec.query_marker),
            ("document", spec.document_marker),
        )
    }
    # It sets a marker's id itself, so that the tokenizer stays as it is.
    bare = dataclasses.replace(spec, query_marker=-1, document_marker=-1)
    prompts = write_transformer(
        folder, dataclasses.replace(model, spec=bare), masked_lm=False
    )
    dense = _projection(model, model.params["head"], "token_embeddings")
    _write_modules(folder, {"Transformer": None} | dense, _PYLATE_TYPES)
    # Its release of sentence-transformers knows no more of the module's settings.
    longest = max(model.query_length, model.document_length)
    settings = {"max_seq_length": longest, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", settings)
    _write_model(
        folder,
        "ColBERT",
        prompts,
        similarity="MaxSim",
        **prefixes,
        query_length=model.query_length,
        document_length=model.document_length,
        do_query_expansion=spec.expand_id >= 0,
        attend_to_expansion_tokens=False,
        skiplist_words=[tokens.id_to_token(i) for i in spec.skip_ids],
    )


def encoder_state(model: Portable, prefix: str) -> dict[str, np.ndarray]:
    """The encoder's tensors, named as transformers' encoder alone with a prefix.

    They include a pooler of zeros: the class has one, which nothing here uses, and
    loaders warn of random weights if it is missing.
    """
    spec = model.spec.encoder
    state = export_state({"encoder": model.params["encoder"]}, spec.family)
    size = spec.hidden_size
    state["pooler.dense.weight"] = np.zeros((size, size), np.float32)
    state["pooler.dense.bias"] = np.zeros(size, np.float32)
    return {prefix + name: tensor for name, tensor in state.items()}


def write_transformer(
    folder: pathlib.Path, model: Portable, *, masked_lm: bool, **knobs: Any
) -> dict[str, str]:
    """Writes the first module: a Hugging Face model, its tokenizer, its lengths.

    Args:
      folder: where to.
      model: the retriever.
      masked_lm: with its masked-LM head.
      **knobs: more of the module's config.

    Returns:
      The prompts, see `write_prompts`.
    """
    spec = model.spec
    longest = max(model.query_length, model.document_length)
    prompts = write_prompts(folder, model, max_length=longest)
    name = CLASSES[spec.encoder.family] + ("ForMaskedLM" if masked_lm else "Model")
    config = spec.encoder.to_hf() | {"architectures": [name], "dtype": "float32"}
    if masked_lm:
        config["tie_word_embeddings"] = spec.tied
        mlm = model.params["head"]["mlm"]
        params = {"encoder": model.params["encoder"], "head": {"mlm": mlm}}
        state = export_state(params, spec.encoder.family)
    else:
        state = encoder_state(model, "")
    write_json(folder / "config.json", config)
    write_weights(folder, state)
    output = "logits" if masked_lm else "last_hidden_state"
    text = {"method": "forward", "method_output_name": output}
    lengths = {
        f"{role}_length": length
        for role, length in (
            ("query", model.query_length),
            ("document", model.document_length),
        )
        if length != longest
    }
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "fill-mask" if masked_lm else "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "token_embeddings",
            **lengths,
            **knobs,
        },
    )
    return prompts


def _splade_pooling(model: Portable) -> tuple[dict, None]:
    config = {
        "pooling_strategy": model.spec.pooling,
        "activation_function": "relu",
        "embedding_dimension": model.spec.encoder.vocab_size,
    }
    return config, None


def _embedding(model: Portable, head) -> dict[str, Any]:
    """Pooling, projection and normalization, as far as the model has them."""
    pooling = {
        "embedding_dimension": model.spec.encoder.hidden_size,
        "pooling_mode": model.spec.pooling,
        "include_prompt": True,
    }
    modules: dict[str, Any] = {"Pooling": (pooling, None)}
    modules |= _projection(model, head, "sentence_embedding")
    return modules | _normalize(model, "sentence_embedding")


def _projection(model: Portable, head, feature: str) -> dict[str, Any]:
    if not model.spec.embedding_size:
        return {}
    config = {
        "in_features": model.spec.encoder.hidden_size,
        "out_features": model.spec.embedding_size,
        "bias": False,
        "activation_function": _IDENTITY,
        "module_input_name": feature,
        "module_output_name": feature,
    }
    kernel = np.asarray(head["projection"]["kernel"])
    return {"Dense": (config, {"linear.weight": kernel.T})}


def _normalize(model: Portable, feature: str) -> dict[str, Any]:
    if not model.spec.normalize:
        return {}
    names = {"module_input_name": feature, "module_output_name": feature}
    return {"Normalize": (names, None)}


def _write_config(folder: pathlib.Path, module) -> None:
    """A module's config.json, and its weights if it has any."""
    config, state = module if isinstance(module, tuple) else (module, None)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    if state is not None:
        write_weights(folder, state)


def _write_modules(
    folder: pathlib.Path, modules: dict[str, Any], types: dict[str, str] = _TYPES
) -> None:
    """`modules.json` and the modules' folders; None for one that is in the root."""
    listed = []
    for index, (name, module) in enumerate(modules.items()):
        path = "" if module is None else f"{index}_{name}"
        if module is not None:
            _write_config(folder / path, module)
        entry = {"idx": index, "name": str(index), "path": path, "type": types[name]}
        listed.append(entry)
    write_json(folder / "modules.json", listed)


def _write_model(
    folder: pathlib.Path,
    kind: str,
    prompts: dict[str, str],
    similarity: str = "dot",
    **more: Any,
) -> None:
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": _VERSIONS,
            "model_type": kind,
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": similarity,
            **more,
        },
    )
