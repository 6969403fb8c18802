"""Tokens whose embeddings are prompt vectors: special, with names that no text has."""

import json
import pathlib
import re
from collections.abc import Mapping

from lsrjax.errors import InputError
from lsrjax.tokenizer import reading
from lsrjax.tokenizer.ask_transformers import PROBES
from lsrjax.tokenizer.files import TOKENIZER
from lsrjax.tokenizer.writing import write_tokenizer

ROLES = ("query", "document")
_NAME = re.compile(r"<\|lsrjax_(query|document)_(\d+)\|>")


def is_name(token: str) -> bool:
    """Whether a token stands for a prompt vector."""
    return _NAME.fullmatch(token) is not None


def names_in(vocabulary: Mapping[str, int]) -> dict[str, list[str]]:
    """The prompt vectors' tokens of a vocabulary by role, in order."""
    found: dict[str, list[str]] = {role: [] for role in ROLES}
    for token in sorted(filter(is_name, vocabulary), key=vocabulary.__getitem__):
        found[_NAME.fullmatch(token)[1]].append(token)  # type: ignore[index]
    return found


def add(folder: pathlib.Path, source: pathlib.Path, counts: Mapping[str, int]) -> int:
    """Writes a tokenizer with tokens for prompt vectors, behind all others.

    Args:
      folder: where to.
      source: a folder with a tokenizer.
      counts: tokens by role.

    Returns:
      The id of the first one.

    Raises:
      InputError: the tokenizer cannot have them in front of a text.
    """
    write_tokenizer(folder, source)
    read = reading.read(folder)
    if read.splits_special or read.truncation_side != "right":
        why = "splits" if read.splits_special else "cuts off with the front of a text"
        raise InputError(
            f"{source}: prompt vectors (config.adapt.prompt) are special tokens in"
            f" front of a text, which this tokenizer {why}. Change that in its"
            " tokenizer_config.json (split_special_tokens, truncation_side)."
        )
    first = max(read.tokenizer().get_vocab().values()) + 1
    names = [f"<|lsrjax_{role}_{i}|>" for role in ROLES for i in range(counts[role])]
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    content = json.loads(read.json)
    content["added_tokens"] = [
        *(content.get("added_tokens") or ()),
        *(
            {"id": i, "content": name, **dict.fromkeys(flags, False), "special": True}
            for i, name in enumerate(names, first)
        ),
    ]
    text = json.dumps(content, ensure_ascii=False)
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    tokenizer = reading.read(folder).tokenizer()
    if [tokenizer.token_to_id(name) for name in names] != [
        *range(first, first + len(names))
    ]:
        raise InputError(
            f"{source}: the ids of its tokens have gaps below {first - 1}, so that new"
            " ones (config.adapt.prompt) cannot be added behind them. Use a tokenizer"
            " without gaps."
        )
    return first


def in_front(folder: pathlib.Path, names: list[str], prompt: str) -> str:
    """The prompt of a role that begins with these tokens.

    All other tokens of a text stay what they are without them, on a sample of texts.

    Raises:
      InputError: they do not.
    """
    if not names:
        return prompt
    tokenizer = reading.read(folder).tokenizer()

    def rows(front: str) -> list[list[int]]:
        found = tokenizer.encode_batch([front + text for text in PROBES])
        return [one.ids for one in found]

    ids = [tokenizer.token_to_id(name) for name in names]
    place = tokenizer.encode("a").special_tokens_mask[0]  # behind [CLS], if there is
    wanted = [[*row[:place], *ids, *row[place:]] for row in rows(prompt)]
    front = "".join(names) + prompt
    if rows(front) == wanted:
        return front
    # As the middle of a word, where a mark begins the first word of a text alone.
    raise InputError(
        f"{folder}: behind the special tokens of prompt vectors (config.adapt.prompt)"
        " this tokenizer reads other tokens than at the beginning of a text. Prompt"
        " vectors cannot be used with it; use lora."
    )
