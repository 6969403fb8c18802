"""The special tokens that a tokenizer puts around a text."""

import json
import pathlib
from typing import Any

import tokenizers

from lsrjax.errors import InputError
from lsrjax.tokenizer import reading
from lsrjax.tokenizer.files import TOKENIZER
from lsrjax.tokenizer.writing import temporary_folder, write_tokenizer

CHOICES = ("", "yes", "no")


def with_ends(folder: pathlib.Path, bos: str, eos: str, where: str) -> pathlib.Path:
    """The folder of a tokenizer whose texts begin with BOS and end with EOS, or do not.

    They are part of `tokenizer.json`, so that every program puts them there.

    Args:
      folder: of a tokenizer.
      bos: "yes", "no" or, as the files have it, "".
      eos: the same.
      where: the group of both in a config, for errors.

    Returns:
      The same folder if it does so already; another one is removed when the process
      ends.

    Raises:
      InputError: the tokenizer does not name the token.
    """
    if not (bos or eos):
        return folder
    read = reading.read(folder)
    tokenizer = read.tokenizer()
    one = tokenizer.encode("a")
    texts = [i for i, added in enumerate(one.special_tokens_mask) if not added]
    first, last = (texts[0], texts[-1] + 1) if texts else (len(one.ids),) * 2
    there = one.tokens[:first], one.tokens[last:]

    def around(field: str, found: list[str], roles: tuple[str, ...]) -> list[str]:
        choice = {"add_bos": bos, "add_eos": eos}[field]
        if choice != "yes":
            return [] if choice == "no" else found
        named = [read.roles[role] for role in roles if role in read.roles]
        named = [name for name in named if tokenizer.token_to_id(name) is not None]
        if not named:
            raise InputError(
                f"{where}.{field} is 'yes', and the tokenizer of {folder} names no"
                f" {' or '.join(roles)} of its vocabulary. Name one in its"
                " tokenizer_config.json."
            )
        if set(named) & set(found):
            return found
        return [named[0], *found] if field == "add_bos" else [*found, named[0]]

    front = around("add_bos", there[0], ("bos_token", "cls_token"))
    behind = around("add_eos", there[1], ("eos_token", "sep_token"))
    if (front, behind) == there:
        return folder
    made = temporary_folder()
    write_tokenizer(made, folder)
    content = json.loads((made / TOKENIZER).read_text(encoding="utf-8"))
    kept = _without_template(content.get("post_processor"))
    template = _template(tokenizer, front, behind)
    content["post_processor"] = (
        {"type": "Sequence", "processors": [*kept, template]} if kept else template
    )
    text = json.dumps(content, ensure_ascii=False)
    (made / TOKENIZER).write_text(text, encoding="utf-8")
    return made


def _template(tokenizer: tokenizers.Tokenizer, front: list[str], behind: list[str]):
    """The post-processor that puts tokens around each text of a pair, too."""

    def around(text: str, kind: int) -> list[dict[str, Any]]:
        def special(names):
            return [{"SpecialToken": {"id": x, "type_id": kind}} for x in names]

        inner = {"Sequence": {"id": text, "type_id": kind}}
        return [*special(front), inner, *special(behind)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [tokenizer.token_to_id(name)], "tokens": [name]}
            for name in dict.fromkeys([*front, *behind])
        },
    }


def _without_template(post: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What else a post-processor does: it leaves spaces out of tokens' offsets."""
    if post is None:
        return []
    if post["type"] == "Sequence":
        return [one for part in post["processors"] for one in _without_template(part)]
    if post["type"] == "ByteLevel":
        return [post]
    if post["type"] == "RobertaProcessing":
        keys = ("trim_offsets", "add_prefix_space")
        return [{"type": "ByteLevel", "use_regex": True} | {k: post[k] for k in keys}]
    return []
