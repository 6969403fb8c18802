"""The files of a tokenizer's folder."""

import json
import pathlib
from typing import Any

from lsrjax.errors import InputError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
MODEL_CONFIG = "config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"
# Any one of these is enough to build a tokenizer.
VOCABULARIES = (
    TOKENIZER,
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
FILES = (*VOCABULARIES, CONFIG, SPECIAL, ADDED, "merges.txt", "tokenizer.*.json")


def holds_tokenizer(folder: pathlib.Path) -> bool:
    """Whether a folder contains a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that AutoTokenizer reads, the model's config included."""
    patterns = (*FILES, MODEL_CONFIG)
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def read_text(path: pathlib.Path) -> str:
    """A UTF-8 file without its byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as UTF-8: {error}. Download or save it again."
        ) from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte order mark, or InputError."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON: {error}. Download or save it again."
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{path} holds a JSON {type(found).__name__}, not an object. Download or"
            " save it again."
        )
    return found
