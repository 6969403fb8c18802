"""Modules of sentence-transformers that several kinds of model have."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.convert import huggingface
from lsrjax.convert.huggingface import NOTHING, Allowed
from lsrjax.convert.portable import Portable
from lsrjax.convert.prompts import ROLES, Tokens, split_prompt
from lsrjax.convert.tensors import CheckpointError, read_json, read_weights
from lsrjax.models.encoder import EncoderConfig
from lsrjax.models.retriever import RetrieverSpec

MODEL = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
WEIGHTS = "model.safetensors"
_PROGRAMS = ("sentence_transformers.", "pylate.")


class UnknownModuleError(CheckpointError):
    """A model that can be read computes something that no head here does."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A model's folder.

    Attributes:
      path: where it is.
      reference: as it was asked for.
      model: `config_sentence_transformers.json`.
      modules: class name -> folder of each module, in order.
      allowed: what is put up with in its Hugging Face model.
    """

    path: pathlib.Path
    reference: str
    model: Mapping[str, Any]
    modules: Mapping[str, pathlib.Path]
    allowed: Allowed = NOTHING

    def config(self, module: str) -> dict[str, Any]:
        """A module's config.json."""
        return read_json(self.modules[module] / "config.json")


def inside(root: pathlib.Path, name: Any, file: pathlib.Path) -> pathlib.Path:
    """The folder of a module, which is the model's own or below it.

    Args:
      root: the model's folder.
      name: the module's, as a file gives it.
      file: the one that does, for the message.

    Raises:
      CheckpointError: it leads out of the folder, by `..`, as an absolute path or
        through a link.
    """
    path = root / name if isinstance(name, str) else None
    if path is None or not path.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(
            f"{file} names the folder {name!r}, which is not inside of {root}. A model"
            " is read from its own folder alone: put a copy of it there."
        )
    return path


def class_name(dotted: str, path: pathlib.Path) -> str:
    """The last part of a module's class, which has to be of a known program.

    Args:
      dotted: the class.
      path: of the file that names it, for the message.

    Raises:
      UnknownModuleError: it is code of its own.
    """
    if not dotted.startswith(_PROGRAMS):
        raise UnknownModuleError(
            f"{path} names the module {dotted!r}, which is code of its own and is not"
            " run. Use a model of sentence-transformers' own modules."
        )
    # In release 5 the masked LM was a module of its own.
    name = dotted.rpartition(".")[2]
    return "Transformer" if name == "MLMTransformer" else name


def portable(
    folder: Folder,
    spec: RetrieverSpec,
    params: Mapping[str, Any],
    lengths: Mapping[str, int],
) -> Portable:
    """The retriever, with its prompts; a marker in them becomes a marker again.

    Args:
      folder: where it was read from.
      spec: what it is, but for prompts, markers and special tokens.
      params: its parameters.
      lengths: `query_length` and `document_length`.

    Raises:
      InputError: a marker of PyLate is not in the vocabulary.
    """
    root = folder.modules["Transformer"]
    tokens = Tokens(root)
    markers, fields = [], {}
    for role, prompt in prompts(folder.model).items():
        marker, rest = split_prompt(prompt, tokens)
        # PyLate sets the id of its prefix and knows no other way.
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
    spec = dataclasses.replace(spec, special_ids=special, **fields)
    return Portable(spec, params, root, None, folder.reference, **lengths)


def prompts(model: Mapping[str, Any]) -> dict[str, str]:
    """What encode_query and encode_document put before a text, by role.

    Args:
      model: `config_sentence_transformers.json`.
    """
    given = {k: v for k, v in (model.get("prompts") or {}).items() if v is not None}
    default = given.get(model.get("default_prompt_name")) or ""
    # An empty one is there by default.
    given = {"query": "", "document": ""} | given if "prompts" in model else given
    found = {"query": given.get("query", default)}
    names = [name for name in ("document", "passage", "corpus") if name in given]
    found["document"] = given[names[0]] if names else default
    return found


def transformer(
    folder: Folder, *, masked_lm: bool
) -> tuple[huggingface.Checkpoint, dict[str, int], dict[str, Any]]:
    """Reads the first module.

    Args:
      folder: the model's.
      masked_lm: its logits are wanted, and not its hidden states.

    Returns:
      The Hugging Face model, `query_length` and `document_length`, and the config.

    Raises:
      InputError: it cannot be read, or does something that no head here does.
    """
    root = folder.modules["Transformer"]
    path = root / TRANSFORMER
    config = read_json(path) if path.is_file() else {}
    output = "logits" if masked_lm else "last_hidden_state"
    task = "fill-mask" if masked_lm else "feature-extraction"
    text = (config.get("modality_config") or {}).get("text", {})
    expect(
        path,
        config,
        {
            # The folder of a masked LM of release 5 does not name its task.
            "transformer_task": (task, None),
            "modality_config": (config.get("modality_config"),),
            "module_output_name": ("token_embeddings", None),
            "do_lower_case": (False, None),
            **{
                key: (config.get(key),)
                for key in ("max_seq_length", "unpad_inputs", "query_expansion")
            },
            **{f"{role}_length": (config.get(f"{role}_length"),) for role in ROLES},
        },
    )
    expect(path, text, {"method": ("forward",), "method_output_name": (output,)})
    found = huggingface.load_checkpoint(str(root), folder.allowed)
    if masked_lm and "head" not in found.params:
        raise CheckpointError(
            f"{root}: the weights hold no masked-LM head, which SpladePooling needs."
        )
    most = found.config.max_length
    cut = config.get("max_seq_length") or Tokens(root).reading.max_length
    cut = min(int(cut or most), most)
    lengths = {
        f"{role}_length": min(config.get(f"{role}_length") or cut, most)
        for role in ROLES
    }
    return found, lengths, config


def expect(path: pathlib.Path, config: Mapping[str, Any], known: dict) -> None:
    """Refuses values, and keys that are set, other than the known ones.

    Args:
      path: of the config, for the message.
      config: what is there.
      known: by key, the values that it may have.

    Raises:
      InputError: one has another.
    """
    for key, value in config.items():
        if value not in known.get(key, (None, [], {}, "")):
            wanted = ", ".join(repr(v) for v in known.get(key, ()) if v is not None)
            raise UnknownModuleError(
                f"{path}: {key} is {value!r}, which no head here does"
                + (f"; it may be {wanted}." if wanted else ".")
            )


def refuse_cut(folder: Folder, active: int | None) -> None:
    """Refuses vectors that are cut to their largest weights, but to `active`."""
    most = folder.model.get("max_active_dims")
    if most not in (None, active):
        raise UnknownModuleError(
            f"{folder.path / MODEL}: max_active_dims is {most}, which no head here"
            " does. Set it to null there, and prune vectors when they are encoded."
        )


def projection(
    folder: Folder, encoder: EncoderConfig, feature: str
) -> tuple[dict, dict]:
    """Fields of the spec, and parameters, of the Dense and Normalize modules.

    Args:
      folder: the model's.
      encoder: what comes before them.
      feature: what they read and write.

    Raises:
      InputError: they cannot be read, or compute something else than a head here.
    """
    fields = {"normalize": "Normalize" in folder.modules}
    if fields["normalize"] and any(folder.modules["Normalize"].glob("config.json")):
        path = folder.modules["Normalize"] / "config.json"
        names = ("module_input_name", "module_output_name")
        expect(path, read_json(path), {name: (feature, None) for name in names})
    if "Dense" not in folder.modules:
        return fields, {}
    path = folder.modules["Dense"]
    config = {"bias": True, "activation_function": "Tanh"} | folder.config("Dense")
    size = config.get("out_features")
    expect(
        path / "config.json",
        config
        | {"activation_function": config["activation_function"].rpartition(".")[2]},
        {
            "in_features": (encoder.hidden_size,),
            "out_features": (size,),
            "bias": (False,),
            "activation_function": ("Identity",),
            "use_residual": (False, None),
            "module_input_name": (feature, None),
            "module_output_name": (feature, None),
        },
    )
    shape = {"linear.weight": (size, encoder.hidden_size)}
    weight = read_weights(path / WEIGHTS, shape)["linear.weight"]
    kernel = np.array(weight.T, order="C")
    return fields | {"embedding_size": size}, {"projection": {"kernel": kernel}}


def encoder_params(found: huggingface.Checkpoint, head: dict) -> dict:
    """Parameters of a retriever with this head, on the encoder alone."""
    params = {"encoder": found.params["encoder"]}
    return params | {"head": head} if head else params


def splade_pooling(path: pathlib.Path) -> str:
    """How logits are pooled over tokens, of the module's folder.

    Raises:
      InputError: in a way that no head here does.
    """
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
