"""BGE-M3 in the format of its authors, which FlagEmbedding's BGEM3FlagModel loads.

A Hugging Face folder of the encoder, with the linear layers `sparse_linear` (a weight
of each token) and `colbert_linear` (an embedding of each token), which the program
reads from pickles. It takes lengths, prompts and the weights of the three scores as
arguments; an export has them in its card, and in sentence-transformers' files, whose
dense model the folder is, too.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.prompts import ROLES, Tokens
from lsrjax.convert.read import hub, tensors
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.read.modules import (
    MODEL,
    Folder,
    encoder_params,
    portable,
    read_model,
    transformer,
)
from lsrjax.convert.read.tensors import CheckpointError, Stored
from lsrjax.convert.write.card import write_card
from lsrjax.convert.write.modules import write_model, write_modules, write_transformer
from lsrjax.convert.write.sentence_transformers import embedding_modules
from lsrjax.errors import InputError
from lsrjax.json_files import write_json
from lsrjax.models.dense_heads import DenseOptions
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.views import bad_weights
from lsrjax.tokenizer.ask_transformers import PROBES
from lsrjax.tokenizer.files import CONFIG

SPARSE, COLBERT = "sparse_linear", "colbert_linear"
_ENDINGS = (".safetensors", ".pt")
# The roles of tokens without a weight.
_WEIGHTLESS = ("cls_token", "eos_token", "pad_token", "unk_token")
# A key beside those of sentence-transformers, named like the program's argument.
_SCORE_WEIGHTS = "weights_for_different_modes"
_LENGTH = 512  # default for queries and documents


def read(reference: str, allowed: Allowed = NOTHING) -> SavedModel | None:
    """Reads a BGE-M3; with `sparse_linear` alone, a `token_weights`.

    Returns:
      The retriever; None for a folder of another kind.

    Raises:
      InputError: a file or tensor is missing, left over, or of another shape.
    """
    linear = [name + ending for name in (SPARSE, COLBERT) for ending in _ENDINGS]
    path = hub.fetch(reference, linear)
    if not any((path / name).is_file() for name in linear):
        return None
    weights = [*["*.safetensors"] * allowed.values, *["*.bin"] * allowed.pickle]
    path = hub.fetch(reference, ("*.json", "*.model", *linear, *weights))
    model = read_model(path / MODEL)
    folder = Folder(path, reference, model, {"Transformer": path}, allowed)
    found, lengths, config = transformer(folder, masked_lm=False)
    size = found.config.hidden_size
    terms = _linear(path, SPARSE, size, rows=1)
    if terms is None:
        raise CheckpointError(
            f"{path} has {COLBERT} and no {SPARSE}{_ENDINGS[-1]}. Download the whole"
            " repository again."
        )
    weigh = {"kernel": terms["weight"][0], "bias": terms["bias"][0]}
    weigh["scale"] = np.float32(1)
    head: dict[str, Any] = {"weigh": weigh}
    fields: dict[str, Any] = {}
    kind = "token_weights"
    tokens = _linear(path, COLBERT, size)
    if tokens is not None:
        kernel = np.array(tokens["weight"].T, order="C")
        projection = {"kernel": kernel, "bias": tokens["bias"]}
        head = {"terms": head, "tokens": {"projection": projection}}
        given = kernel.shape[1]
        fields = {"embedding_size": 0 if given == size else given}
        kind = "m3"
        if (of_scores := _score_weights(path / MODEL, model)) is not None:
            fields["view_weights"] = of_scores
    spec = RetrieverSpec.of(kind, found.config, head, **fields)
    for role in ROLES:
        if not config.get(f"{role}_length"):
            lengths[f"{role}_length"] = min(lengths[f"{role}_length"], _LENGTH)
    made = portable(folder, spec, encoder_params(found, head), lengths)
    weightless = tuple(sorted(_weightless(Tokens(path))))
    return dataclasses.replace(made, spec=made.spec.replaced(special_ids=weightless))


def _linear(
    folder: pathlib.Path, name: str, size: int, rows: int | None = None
) -> dict[str, np.ndarray] | None:
    """The `weight`, [rows, size], and `bias` of a layer; None without its file.

    `rows` None: as many as there are.
    """
    files = (folder / f"{name}{ending}" for ending in _ENDINGS)
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        return None
    stored: Mapping[str, Stored] = tensors.open_file(path)
    shapes = {key: one.shape for key, one in stored.items()}
    rows = rows or next(iter(shapes.get("weight", ())), 0)
    problems = tensors.misfits(shapes, {"weight": (rows, size), "bias": (rows,)})
    problems += [
        f"{one.name}: {one.dtype}, floating point expected"
        for one in stored.values()
        if one.dtype not in tensors.FLOATING
    ]
    if problems:
        raise CheckpointError(
            f"{path} is not the layer {name} of an encoder with {size} hidden numbers:"
            + "".join(f"\n  {problem}" for problem in problems)
            + "\nTake all files from the same checkpoint."
        )
    return {key: one.floats() for key, one in stored.items()}


def _score_weights(path: pathlib.Path, model: Mapping[str, Any]):
    """The weights of the three scores in an export; None: it does not say."""
    values = model.get(_SCORE_WEIGHTS)
    if values is None:
        return None
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for value in values
    )
    if not numbers or bad_weights(tuple(values)):
        raise CheckpointError(
            f"{path}: {_SCORE_WEIGHTS} is {values!r}; it has to be three numbers from 0"
            " on, of dense, sparse and colbert, not all 0."
        )
    return tuple(map(float, values))


def _weightless(tokens: Tokens) -> set[int]:
    """The ids of the tokens that the program gives no weight."""
    names = {tokens.role(role) for role in _WEIGHTLESS}
    return {i for name, i in tokens.vocabulary.items() if name in names}


def write(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes the folder, or refuses properties that the program cannot represent."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "--to bge-m3 writes files of torch, as the program reads them, and torch is"
            " not installed: pip install torch."
        ) from error
    spec, head = model.spec, model.params["head"]
    if not spec.options.normalize:
        raise InputError(
            f"--to bge-m3 normalizes embeddings, but those of {model.name} are not"
            " normalized. Possible is lsrjax."
        )
    lengths = {f"{role}_length": getattr(model, f"{role}_length") for role in ROLES}
    prompts = write_transformer(folder, model, masked_lm=False, **lengths)
    _name_ends(folder, model)
    dense = spec.with_head("dense", DenseOptions(pooling="cls", normalize=True))
    write_modules(folder, {"Transformer": None} | embedding_modules(dense, {}))
    weights = list(spec.options.view_weights)
    more: dict[str, Any] = {_SCORE_WEIGHTS: weights}
    write_model(folder, "SentenceTransformer", prompts, **more)
    for name, layer in _layers(model.name, head).items():
        state = {key: torch.from_numpy(value) for key, value in layer.items()}
        torch.save(state, folder / f"{name}.pt")
    projection = head["tokens"]["projection"]["kernel"]
    how = _how_to_load(model, prompts, projection.shape[1])
    write_card(folder, model, how, library="FlagEmbedding")


def _layers(name: str, head: Mapping) -> dict[str, dict[str, np.ndarray]]:
    """`weight` and `bias` of both linear layers."""
    weigh = head["terms"]["weigh"]
    scale = np.float32(weigh["scale"])
    if scale <= 0:
        raise InputError(
            f"--to bge-m3 multiplies no weights of tokens, and those of {name} are"
            f" multiplied by {scale:g}, which a layer before relu cannot do. Possible"
            " is lsrjax."
        )
    # relu(x a + c) s = relu(x a s + c s)
    kernel = np.asarray(weigh["kernel"], np.float32)[None] * scale
    bias = np.asarray(weigh["bias"], np.float32)[None] * scale
    projection = head["tokens"]["projection"]
    weight = np.ascontiguousarray(np.asarray(projection["kernel"], np.float32).T)
    zeros = np.zeros(len(weight), np.float32)
    of_tokens = np.array(projection.get("bias", zeros), np.float32)
    return {
        SPARSE: {"weight": kernel, "bias": bias},
        COLBERT: {"weight": weight, "bias": of_tokens},
    }


def _name_ends(folder: pathlib.Path, model: SavedModel) -> None:
    """Names the tokens around a text by the roles that have no weight.

    Raises:
      InputError: others of the model's tokens have no weight.
    """
    tokens = Tokens(folder)
    (empty,) = tokens.ids([""])
    ends = [tokens.token(i) for i in empty[:1] + empty[-1:]]
    roles = ("cls_token", "eos_token")
    named: dict[str, str | None] = dict(zip(roles, ends, strict=False))
    # The program looks all of them up.
    named["unk_token"] = tokens.role("pad_token")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    absent = {k: name for k, name in named.items() if name and not config.get(k)}
    write_json(folder / CONFIG, config | absent)
    tokens = Tokens(folder)
    differing = _weightless(tokens) ^ set(model.spec.special_ids)
    # Of a mask and its like, only texts that hold it literally would tell.
    literal = set(tokens.special) - set(map(tokens.token, _weightless(tokens)))
    texts = [text for text in PROBES if not any(name in text for name in literal)]
    seen = {i for row in tokens.ids(texts) for i in row} & differing
    if seen:
        shown = ", ".join(repr(tokens.token(i)) for i in sorted(seen))
        raise InputError(
            f"--to bge-m3 leaves out the weights of the tokenizer's"
            f" {', '.join(_WEIGHTLESS)}, and {model.name} differs in {shown}. Possible"
            " is lsrjax."
        )


def _how_to_load(model: SavedModel, prompts: Mapping[str, str], size: int) -> str:
    arguments: dict[str, Any] = {
        "use_fp16": False,
        "query_max_length": model.query_length,
        "passage_max_length": model.document_length,
    }
    if size != model.spec.encoder.hidden_size:
        arguments["colbert_dim"] = size
    for role, name in zip(ROLES, ("query", "passage"), strict=True):
        if prompts[role]:
            arguments[f"{name}_instruction_for_retrieval"] = prompts[role]
    given = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    weights = list(model.spec.options.view_weights)
    code = (
        "from FlagEmbedding import BGEM3FlagModel\n\n"
        f'model = BGEM3FlagModel(\n    "path/to/this/folder",\n{given})\n'
        "vectors = model.encode_corpus(\n"
        '    ["a text"], return_dense=True, return_sparse=True,'
        " return_colbert_vecs=True\n)\n"
        "scores = model.compute_score(\n"
        f'    [("a query", "a text")], {_SCORE_WEIGHTS}={weights}\n)'
    )
    prompted = (
        "\n\n`compute_score` puts no prompt before a text: put it there yourself."
        if any(prompts.values())
        else ""
    )
    return f"```python\n{code}\n```{prompted}"
