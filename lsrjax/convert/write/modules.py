"""Writes modules of sentence-transformers 6.2.

`modules.json` lists the modules of a model, each a dotted class of that program with
its own folder; the first one, a Hugging Face model, is in the root.
"""

import pathlib
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.names import export_state
from lsrjax.convert.prompts import write_prompts
from lsrjax.convert.read.modules import ALL_LOGITS
from lsrjax.convert.write.code import write_code
from lsrjax.convert.write.folder import write_weights
from lsrjax.json_files import write_json
from lsrjax.models.backbones.table import backbone

# The releases that define this format.
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
TYPES = {
    name: f"sentence_transformers.{module}.{name}" for name, module in _MODULES.items()
}


def encoder_state(model: SavedModel, prefix: str) -> dict[str, np.ndarray]:
    """The encoder's tensors by transformers' names, with a prefix.

    Includes an unused pooler of zeros if the class has one, since loaders warn of
    random weights if it is missing.
    """
    spec = model.spec.encoder
    state = export_state({"encoder": model.params["encoder"]}, spec.family)
    size = spec.hidden_size
    if backbone(spec.family).pooler:
        state["pooler.dense.weight"] = np.zeros((size, size), np.float32)
        state["pooler.dense.bias"] = np.zeros(size, np.float32)
    return {prefix + name: tensor for name, tensor in state.items()}


def write_transformer(
    folder: pathlib.Path, model: SavedModel, *, masked_lm: bool, **knobs: Any
) -> dict[str, str]:
    """Writes the first module: a Hugging Face model, its tokenizer, its lengths.

    `knobs` add to its config. Returns the prompts, see `write_prompts`.
    """
    spec = model.spec
    longest = max(model.query_length, model.document_length)
    prompts = write_prompts(folder, model, max_length=longest)
    family = backbone(spec.encoder.family)
    name = family.transformers + (family.language_model if masked_lm else family.alone)
    config = spec.encoder.to_hf() | {"architectures": [name], "dtype": "float32"}
    config |= write_code(folder, family)
    if masked_lm:
        config["tie_word_embeddings"] = spec.options.tied
        # A tied decoder can be all of a head.
        mlm = model.params.get("head", {}).get("mlm", {})
        if family.code:  # which ties nothing
            words = model.params["encoder"]["embeddings"]["word"]["embedding"]
            mlm = {"decoder": words} | mlm
            config["logits"] = spec.options.logits
        params = {"encoder": model.params["encoder"], "head": {"mlm": mlm}}
        state = export_state(params, spec.encoder.family)
    else:
        state = encoder_state(model, "")
    write_json(folder / "config.json", config)
    write_weights(folder, state)
    output = "logits" if masked_lm else "last_hidden_state"
    text = {"method": "forward", "method_output_name": output}
    kept = ALL_LOGITS.get(family.task)
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
            "transformer_task": family.task if masked_lm else "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "token_embeddings",
            **({"processing_kwargs": kept} if masked_lm and kept else {}),
            **lengths,
            **knobs,
        },
    )
    return prompts


def splade_pooling(model: SavedModel) -> tuple[dict, None]:
    """Config of the pooling of logits, which has no weights."""
    config = {
        "pooling_strategy": model.spec.options.pooling,
        "activation_function": model.spec.options.activation,
        "embedding_dimension": model.spec.encoder.vocab_size,
    }
    return config, None


def write_config(folder: pathlib.Path, module) -> None:
    """Writes a module's config.json, and its weights if it has any."""
    config, state = module if isinstance(module, tuple) else (module, None)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    if state is not None:
        write_weights(folder, state)


def write_modules(
    folder: pathlib.Path, modules: dict[str, Any], types: dict[str, str] = TYPES
) -> None:
    """Writes `modules.json` and the modules' folders; None is a module in the root."""
    listed = []
    for index, (name, module) in enumerate(modules.items()):
        path = "" if module is None else f"{index}_{name}"
        if module is not None:
            write_config(folder / path, module)
        entry = {"idx": index, "name": str(index), "path": path, "type": types[name]}
        listed.append(entry)
    write_json(folder / "modules.json", listed)


def write_model(
    folder: pathlib.Path,
    kind: str,
    prompts: dict[str, str],
    similarity: str = "dot",
    most_active: int = 0,
    **more: Any,
) -> None:
    """Writes `config_sentence_transformers.json`.

    Args:
      kind: the class of that program.
      prompts: by role.
      most_active: number of weights kept of a vector; 0: all.
      **more: keys of this class.
    """
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": _VERSIONS,
            "model_type": kind,
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": similarity,
            **({"max_active_dims": most_active} if most_active else {}),
            **more,
        },
    )
