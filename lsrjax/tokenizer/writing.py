"""Writes tokenizers so that every program reads the same tokens."""

import atexit
import json
import pathlib
import shutil
import tempfile
from typing import Any

from lsrjax.json_files import write_json
from lsrjax.tokenizer import reading
from lsrjax.tokenizer.files import CONFIG, TOKENIZER
from lsrjax.tokenizer.reading import PLAIN_CLASSES, ROLES


def write_tokenizer(
    folder: pathlib.Path, source: pathlib.Path, *, max_length: int | None = None
) -> None:
    """Writes a tokenizer as a plain `tokenizer.json`, for transformers 4 and 5.

    Args:
      source: a folder with a tokenizer; InputError if it cannot be read.
      max_length: tokens of the model's longest text; None: as the source says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    read = reading.read(source)
    # Truncation and padding are left to the caller.
    tokenizer = json.loads(read.json) | {"truncation": None, "padding": None}
    text = json.dumps(tokenizer, ensure_ascii=False)
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    special = {
        token["content"]
        for token in tokenizer.get("added_tokens") or ()
        if token["special"]
    }
    config: dict[str, Any] = {k: v for k, v in read.roles.items() if k in ROLES}
    for names in SPECIAL_TOKENS.values():
        for role, name in names.items():
            if name in special:
                config.setdefault(role, name)
    if length := max_length or read.max_length:
        config["model_max_length"] = length
    if read.input_names:
        config["model_input_names"] = list(read.input_names)
    if read.truncation_side != "right":
        config["truncation_side"] = read.truncation_side
    if read.splits_special:
        config["split_special_tokens"] = True
    config |= {
        "tokenizer_class": PLAIN_CLASSES[0],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / CONFIG, config)


def temporary_folder() -> pathlib.Path:
    """A folder for a tokenizer, removed when the process ends."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="lsrjax-tokenizer-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


# Each family's names of its special tokens.
SPECIAL_TOKENS = {
    "bert": {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    },
    "xlm-roberta": {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
}
