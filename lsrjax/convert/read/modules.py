"""Reads modules of sentence-transformers that several kinds of model share."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.prompts import ROLES, Tokens, split_prompt
from lsrjax.convert.read import huggingface
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.read.tensors import (
    CheckpointError,
    check_types,
    read_json,
    read_weights,
    strings,
)
from lsrjax.data.tokenization import TextTokenizer, unpooled
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.models.retriever import RetrieverSpec

MODEL = "config_sentence_transformers.json"
# Old releases named it after the encoder; the first one that says anything counts.
_TRANSFORMERS = [
    f"sentence_{name}_config.json"
    for name in "bert roberta distilbert camembert albert xlm-roberta xlnet".split()
]
WEIGHTS = "model.safetensors"
# Our names of poolings, and theirs.
POOLINGS = {"cls": "cls", "mean": "mean", "last": "lasttoken"}
# Of a Dense without an activation. What is no class of torch is Tanh there.
_IDENTITY = ("torch.nn.modules.linear.Identity", "torch.nn.Identity")
# Of a decoder all tokens have logits. By default only the last one has.
ALL_LOGITS = {"text-generation": {"text": {"logits_to_keep": 0}}}
_PROGRAMS = ("sentence_transformers.", "pylate.")


class UnknownModuleError(CheckpointError):
    """A readable model computes something that no head here can represent."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A model's folder; the types of values in its config are checked.

    Attributes:
      model: `config_sentence_transformers.json`.
      modules: class name -> folder of each module, in order.
    """

    path: pathlib.Path
    reference: str
    model: Mapping[str, Any]
    modules: Mapping[str, pathlib.Path]
    allowed: Allowed = NOTHING

    @property
    def most_active(self) -> int:
        """See the function `most_active`."""
        return most_active(self.path / MODEL, self.model)

    def config(self, module: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
        """A module's config.json; checks the types of these keys."""
        path = self.modules[module] / "config.json"
        config = read_json(path)
        check_types(path, config, kinds)
        return config

    def weights(
        self, module: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """A module's tensors, see `read_weights`."""
        path = self.modules[module] / WEIGHTS
        return read_weights(path, shapes, values=self.allowed.values)


def read_model(path: pathlib.Path) -> dict[str, Any]:
    """The content of `config_sentence_transformers.json`; empty without the file."""
    if not path.is_file():
        return {}
    model = read_json(path)
    kinds: dict[str, type | tuple[type, ...]] = {
        "model_type": str,
        "prompts": dict,
        "default_prompt_name": str,
        "do_query_expansion": bool,
        "attend_to_expansion_tokens": bool,
    }
    for role in ROLES:
        kinds |= {f"{role}_prefix": str, f"{role}_length": int}
    check_types(path, model, kinds)
    given = model.get("prompts") or {}
    check_types(path, given, dict.fromkeys(given, str))
    default = model.get("default_prompt_name")
    if default is not None and default not in (*given, *ROLES):
        raise CheckpointError(
            f"{path}: default_prompt_name is {default!r}, and prompts are of"
            f" {', '.join(given) or 'no name'}. Save the model again."
        )
    strings(path, "skiplist_words", model.get("skiplist_words"))
    return model


def inside(root: pathlib.Path, name: Any, file: pathlib.Path) -> pathlib.Path:
    """The folder of a module named in `file`, the model's own folder or below it.

    Raises:
      CheckpointError: it leads out of the folder, by `..`, as an absolute path or
        through a link, or is no path.
    """
    path = root / name if isinstance(name, str) else None
    try:
        found = path is not None and path.resolve().is_relative_to(root.resolve())
    except (ValueError, OSError):  # a zero byte, half a character; links in a circle
        found = False
    if path is None or not found:
        raise CheckpointError(
            f"{file} names the folder {name!r}, which is not inside of {root}. A model"
            " is read from its own folder alone: put a copy of it there."
        )
    return path


# The module of Jina v3's code, which computes what `Transformer` does with one adapter.
_WITH_ADAPTERS = "custom_st.Transformer"


def class_name(dotted: str, path: pathlib.Path, *, adapter: str = "") -> str:
    """The last part of a module's class, which must be of a known program.

    `adapter` as in `Allowed`.
    """
    known = dotted.startswith(_PROGRAMS) or (adapter and dotted == _WITH_ADAPTERS)
    if not known:
        raise UnknownModuleError(
            f"{path} names the module {dotted!r}, which is code of its own and is not"
            " run. Use a model of sentence-transformers' own modules."
        )
    # Release 5 had a separate module for masked LMs.
    name = dotted.rpartition(".")[2]
    return "Transformer" if name == "MLMTransformer" else name


def portable(
    folder: Folder,
    spec: RetrieverSpec,
    params: dict[str, Any],
    lengths: Mapping[str, Any],
) -> SavedModel:
    """The retriever, with its prompts; markers in them become markers again.

    Args:
      spec: without prompts, markers and special tokens.
      lengths: `query_length` and `document_length`.

    Raises:
      InputError: a marker of PyLate is not in the vocabulary.
    """
    root = folder.modules["Transformer"]
    tokens = Tokens(root)
    markers: list[int] = []
    fields: dict[str, Any] = {}
    for role, prompt in prompts(folder.model).items():
        marker, rest = split_prompt(prompt, tokens)
        # PyLate sets the id of its prefix directly.
        if prefix := folder.model.get(f"{role}_prefix"):
            marker, rest = tokens.vocabulary.get(prefix, -1), prompt
            if marker < 0:
                raise CheckpointError(
                    f"{folder.path / MODEL}: {role}_prefix is {prefix!r}, which is not"
                    " in the vocabulary. Use the tokenizer of the same checkpoint."
                )
        fields |= {f"{role}_marker": marker, f"{role}_prompt": rest}
        markers.append(marker)
    special = tuple(i for i in tokens.special.values() if i not in markers)
    spec = spec.replaced(special_ids=special, **fields)
    if "Pooling" in folder.modules:
        pooling = folder.config("Pooling", include_prompt=bool)
        if not pooling.get("include_prompt", True):  # null is false there
            spec = spec.replaced(**unpooled(spec, TextTokenizer(root)))
    return SavedModel(spec, params, root, None, folder.reference, **lengths)


def prompts(model: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of encode_query and encode_document, by role."""
    given = {k: v for k, v in (model.get("prompts") or {}).items() if v is not None}
    default = given.get(model.get("default_prompt_name")) or ""
    # Empty prompts exist by default.
    given = {"query": "", "document": ""} | given if "prompts" in model else given
    found = {"query": given.get("query", default)}
    names = [name for name in ("document", "passage", "corpus") if name in given]
    found["document"] = given[names[0]] if names else default
    return found


def transformer_file(root: pathlib.Path) -> pathlib.Path:
    """The config of the module Transformer in its folder, which need not exist."""
    paths = [root / name for name in _TRANSFORMERS]
    return next((p for p in paths if p.is_file() and read_json(p)), paths[0])


def transformer(
    folder: Folder, *, masked_lm: bool, expands: bool = False
) -> tuple[huggingface.Checkpoint, dict[str, int], dict[str, Any]]:
    """Reads the first module; with `masked_lm`, expects logits, not hidden states.

    `expands`: it may have a `query_expansion`, which the caller reads.

    Returns:
      The Hugging Face model, `query_length` and `document_length`, and the config.

    Raises:
      InputError: it cannot be read, or no head here can represent it.
    """
    root = folder.modules["Transformer"]
    path = transformer_file(root)
    config = read_json(path) if path.is_file() else {}
    kinds = {"max_seq_length": int, "modality_config": dict, "query_expansion": dict}
    kinds |= {f"{role}_length": int for role in ROLES}
    check_types(path, config, kinds)
    check_types(path, config.get("modality_config") or {}, {"text": dict})
    output = "logits" if masked_lm else "last_hidden_state"
    # A relative path that does not exist would be looked up on the hub.
    reference = str(root.absolute())
    encoder = huggingface.read_config(reference)
    task = backbone(encoder.family).task if masked_lm else "feature-extraction"
    text = (config.get("modality_config") or {}).get("text") or {}
    expect(
        path,
        config,
        {
            # Release 5 does not name the task of a masked LM.
            "transformer_task": (task, None),
            "modality_config": (config.get("modality_config"),),
            "processing_kwargs": (ALL_LOGITS.get(task),),
            "module_output_name": ("token_embeddings", None),
            "do_lower_case": (False, None),
            **{
                key: (config.get(key),)
                for key in ("max_seq_length", "unpad_inputs", "query_expansion")
                if expands or key != "query_expansion"
            },
            **{f"{role}_length": (config.get(f"{role}_length"),) for role in ROLES},
        },
    )
    if config.get("processing_kwargs") != ALL_LOGITS.get(task) and task in ALL_LOGITS:
        raise UnknownModuleError(
            f"{path}: a {task} module gives the last token's logits only, unless"
            f" processing_kwargs is {ALL_LOGITS[task]}."
        )
    expect(path, text, {"method": ("forward",), "method_output_name": (output,)})
    found = huggingface.load_checkpoint(reference, folder.allowed)
    if masked_lm and "head" not in found.params:
        raise CheckpointError(
            f"{root}: the weights hold no masked-LM head, which SpladePooling needs."
        )
    most = found.config.max_length
    cut = config.get("max_seq_length") or Tokens(root).reading.max_length or most
    cut = min(cut, most)
    lengths = {
        f"{role}_length": min(config.get(f"{role}_length") or cut, most)
        for role in ROLES
    }
    return found, lengths, config


def expect(path: pathlib.Path, config: Mapping[str, Any], known: dict) -> None:
    """Refuses unknown values, and unknown keys that are set.

    `known` has the allowed values by key; `path` is for the message.
    """
    for key, value in config.items():
        if value not in known.get(key, (None, [], {}, "")):
            wanted = ", ".join(repr(v) for v in known.get(key, ()) if v is not None)
            raise UnknownModuleError(
                f"{path}: {key} is {value!r}, which no head here does"
                + (f"; it may be {wanted}." if wanted else ".")
            )


def most_active(path: pathlib.Path, model: Mapping[str, Any]) -> int:
    """The number of weights of a vector that a SparseEncoder keeps; 0: all."""
    check_types(path, model, {"max_active_dims": int})
    most = model.get("max_active_dims")
    if most is not None and most < 1:
        raise CheckpointError(
            f"{path}: max_active_dims is {most}; it is null, or a number of weights"
            " from 1 on."
        )
    return most or 0


def projection(
    folder: Folder, encoder: EncoderConfig, feature: str
) -> tuple[dict, dict]:
    """Fields of the spec, and parameters, of the Dense and Normalize modules.

    `feature` is what they must read and write.

    Raises:
      InputError: they cannot be read, or no head here can represent them.
    """
    fields: dict[str, Any] = {"normalize": "Normalize" in folder.modules}
    if fields["normalize"] and any(folder.modules["Normalize"].glob("config.json")):
        path = folder.modules["Normalize"] / "config.json"
        names = ("module_input_name", "module_output_name")
        expect(path, read_json(path), {name: (feature, None) for name in names})
    if "Dense" not in folder.modules:
        return fields, {}
    path = folder.modules["Dense"]
    kinds = {"out_features": int, "activation_function": str}
    found = folder.config("Dense", **kinds)
    unsaid = {"bias": True, "activation_function": "torch.nn.Tanh"}
    config: dict[str, Any] = unsaid | found
    size = config.get("out_features")
    if not size or size < 1:
        raise CheckpointError(
            f"{path / 'config.json'}: out_features is {size}; it is a number from 1 on."
        )
    expect(
        path / "config.json",
        config,
        {
            "in_features": (encoder.hidden_size,),
            "out_features": (size,),
            "bias": (False,),
            "activation_function": _IDENTITY,
            "use_residual": (False, None),
            "module_input_name": (feature, None),
            "module_output_name": (feature, None),
        },
    )
    shape = {"linear.weight": (size, encoder.hidden_size)}
    weight = folder.weights("Dense", shape)["linear.weight"]
    kernel = np.array(weight.T, order="C")
    return fields, {"projection": {"kernel": kernel}}


def encoder_params(found: huggingface.Checkpoint, head: dict) -> dict:
    """Parameters of a retriever with this head on the encoder."""
    params = {"encoder": found.params["encoder"]}
    return params | {"head": head} if head else params


def splade_pooling(folder: Folder) -> dict[str, Any]:
    """Fields of the spec for the pooling of logits; refuses unknown pooling."""
    path = folder.modules["SpladePooling"]
    config = folder.config("SpladePooling", pooling_strategy=str)
    size = ("embedding_dimension", "word_embedding_dimension")
    expect(
        path / "config.json",
        config,
        {
            "pooling_strategy": ("max", "sum"),
            "activation_function": ("relu", "log1p_relu"),
            "chunk_size": (config.get("chunk_size"),),
            **{key: (config.get(key),) for key in size},
        },
    )
    return {
        "pooling": config.get("pooling_strategy") or "max",
        "activation": config.get("activation_function") or "relu",
        "most_active": folder.most_active,
    }
