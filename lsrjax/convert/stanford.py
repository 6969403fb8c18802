"""ColBERT in the format of its authors, which ColBERT-X shares.

A Hugging Face folder of the class `HF_ColBERT`: the encoder under its family's prefix
(some loaders silently start from random weights under another), the projection
`linear.weight`, and the tokenization of texts in `artifact.metadata`. The program
always puts a marker after the first token, fills queries up with the mask token, and
normalizes; the punctuation that it may skip is the 32 ASCII characters. (Release 0.2.22
of colbert-ai fails on documents if `mask_punctuation` is false: it uses a list that it
creates only if it is true.)
"""

import pathlib
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.prompts import ROLES, Tokens
from lsrjax.convert.read import huggingface
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.read.tensors import check_types, read_json, zeros
from lsrjax.convert.write.folder import write_weights
from lsrjax.convert.write.modules import encoder_state
from lsrjax.errors import InputError
from lsrjax.json_files import write_json
from lsrjax.models.backbones.table import backbone
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.tokenizer.writing import write_tokenizer

METADATA = "artifact.metadata"
ARCHITECTURE = "HF_ColBERT"
PROJECTION = "linear.weight"
# Defaults of artifact.metadata.
DEFAULT_MARKERS = {"query": "[unused0]", "document": "[unused1]"}
_DIMENSIONS = 128  # of an embedding
DEFAULT_LENGTHS = {"query": 32, "document": 220}


def write(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes the folder, or refuses properties that the program cannot represent."""
    spec = model.spec
    tokens = Tokens(model.tokenizer)
    punctuation = _leaves_punctuation_out(spec, tokens)
    problems = [
        *_obstacles(spec, model.params.get("head", {})),
        *(["tokens without embeddings other than ASCII's"] * (punctuation is None)),
    ]
    if problems:
        raise InputError(
            f"--to colbert cannot hold {model.name}: it has {', '.join(problems)}."
            " Possible are multi-vector, lsrjax."
        )
    longest = max(model.query_length, model.document_length)
    write_tokenizer(folder, model.tokenizer, max_length=longest)
    config = spec.encoder.to_hf() | {"architectures": [ARCHITECTURE]}
    write_json(folder / "config.json", config | {"dtype": "float32"})
    kernel = np.asarray(model.params["head"]["projection"]["kernel"])
    state = encoder_state(model, backbone(spec.encoder.family).names.prefixes[0])
    write_weights(folder, state | {PROJECTION: kernel.T})
    write_json(
        folder / METADATA,
        {
            "query_token_id": tokens.token(spec.query_marker),
            "doc_token_id": tokens.token(spec.document_marker),
            "query_token": "[Q]",
            "doc_token": "[D]",
            "query_maxlen": model.query_length,
            "doc_maxlen": model.document_length,
            "dim": kernel.shape[1],
            "similarity": "cosine",
            "mask_punctuation": punctuation,
            "attend_to_mask_tokens": False,
            "interaction": "colbert",
        },
    )


def _obstacles(spec: RetrieverSpec, head: Mapping) -> list[str]:
    checks = {
        "embeddings without a projection": "projection" not in head,
        "embeddings that are not normalized": not spec.options.normalize,
        "queries that are not filled up with the mask token": spec.expand_id < 0,
        "a prompt": bool(spec.query_prompt or spec.document_prompt),
        "no markers of both queries and documents": min(
            spec.query_marker, spec.document_marker
        )
        < 0,
    }
    return [what for what, found in checks.items() if found]


def _leaves_punctuation_out(spec: RetrieverSpec, tokens: Tokens) -> bool | None:
    """The value of `mask_punctuation`; None if neither value fits the model."""
    if not spec.options.skip_ids:
        return False
    theirs, ours = _punctuation_ids(tokens), set(spec.options.skip_ids)
    # A WordPiece tokenizer has tokens like ##. that no text contains.
    texts = [
        near.format(tokens.token(i).removeprefix("##"))
        for i in theirs ^ ours
        for near in ("{}", "a{}", "{}a", "a {} a")
    ]
    seen = {i for row in tokens.ids(texts) for i in row}
    return None if seen & (theirs ^ ours) else True


def _punctuation_ids(tokens: Tokens) -> set[int]:
    """The ids that this program skips with `mask_punctuation`."""
    found = set()
    for symbol in string.punctuation:
        ids = tokens.library.encode(symbol, add_special_tokens=False).ids
        found |= set(ids[:1])
    return found


def read(
    reference: str, folder: pathlib.Path, config: dict, allowed: Allowed = NOTHING
) -> SavedModel:
    """Reads the folder; `config` is its config.json, `reference` its name in messages.

    Raises:
      InputError: a file or tensor is missing, left over, or of another shape.
    """
    path = folder / METADATA
    metadata = read_json(path) if path.is_file() else {}
    numbers = dict.fromkeys(("dim", "query_maxlen", "doc_maxlen"), int)
    markers = dict.fromkeys(("query_token_id", "doc_token_id"), str)
    check_types(path, metadata, {**numbers, **markers, "similarity": str})
    found = huggingface.load_checkpoint(
        str(folder.absolute()), allowed, extra=(PROJECTION,)
    )
    weight = found.extra.get(PROJECTION)
    size = found.config.hidden_size
    if weight is None and not allowed.values:
        weight = zeros((metadata.get("dim") or _DIMENSIONS, size))
    dim = metadata.get("dim") or (len(weight) if weight is not None else "dim")
    if weight is None or weight.shape != (dim, size):
        shown = "missing" if weight is None else f"{list(weight.shape)}"
        raise InputError(
            f"{folder}: {PROJECTION} is {shown}, [{dim}, {size}] expected. Take"
            " the weights, config.json and artifact.metadata of one checkpoint."
        )
    if metadata.get("attend_to_mask_tokens"):
        raise InputError(
            f"{path}: attend_to_mask_tokens is true, but here no token attends to the"
            " mask tokens that fill a query up. Use a checkpoint trained without it."
        )
    if (metadata.get("similarity") or "cosine") != "cosine":
        raise InputError(
            f"{path}: similarity is {metadata['similarity']!r}; only 'cosine' is"
            " implemented."
        )
    tokens = Tokens(folder)
    head = {"projection": {"kernel": np.array(weight.T, order="C")}}
    spec = RetrieverSpec.of(
        "colbert",
        found.config,
        head,
        special_ids=tuple(tokens.special.values()),
        expand_id=_token(tokens, tokens.role("mask_token") or "[MASK]", folder),
        skip_ids=tuple(sorted(_punctuation_ids(tokens)))
        if metadata.get("mask_punctuation", True)
        else (),
        **_markers(metadata, tokens, folder),
    )
    return SavedModel(
        spec,
        {"encoder": found.params["encoder"], "head": head},
        folder,
        None,
        reference,
        **_lengths(metadata, found.config.max_length),
    )


def _markers(metadata: dict, tokens: Tokens, folder: pathlib.Path) -> dict[str, Any]:
    markers = {}
    for role, key in zip(ROLES, ("query_token_id", "doc_token_id"), strict=True):
        name = metadata.get(key) or DEFAULT_MARKERS[role]
        markers[f"{role}_marker"] = _token(tokens, name, folder)
    return markers


def _token(tokens: Tokens, name: str, folder: pathlib.Path) -> int:
    found = tokens.vocabulary.get(name)
    if found is None:
        raise InputError(
            f"{folder}: ColBERT's token {name!r} is not in the vocabulary of"
            " tokenizer.json. Use the tokenizer that the model was trained with, and"
            f" name its markers in {METADATA}."
        )
    return found


def _lengths(metadata: dict[str, Any], most: int) -> dict[str, Any]:
    keys = zip(ROLES, ("query_maxlen", "doc_maxlen"), strict=True)
    return {
        f"{role}_length": min(metadata.get(key) or DEFAULT_LENGTHS[role], most)
        for role, key in keys
    }
