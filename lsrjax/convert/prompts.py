"""Converts between our markers and other programs' prompts.

Here a prompt is text before a text, and a marker the id of a token after the first one
([CLS] [unused0] ...), or in front where a tokenizer begins no text with a special
token. sentence-transformers has only prompts: a marker becomes the prompt "[unused0]",
so its tokenizer must keep that token in one piece. A sample of texts is tokenized both
ways to check that they agree.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.errors import InputError
from lsrjax.tokenizer import prompt_tokens, reading
from lsrjax.tokenizer.ask_transformers import PROBES
from lsrjax.tokenizer.writing import write_tokenizer

ROLES = ("query", "document")
# Begins the names of what a table of query weights has beyond the tokenizer's tokens.
NO_TOKEN = "<no token "


class Tokens:
    """The tokens of a folder's tokenizer."""

    def __init__(self, folder: pathlib.Path, content: dict | None = None):
        """Reads the tokenizer; `content` overrides its `tokenizer.json`."""
        self.reading = reading.read(folder)
        if content is None:
            content = json.loads(self.reading.json)
        self.content = content | {"truncation": None, "padding": None}
        read = dataclasses.replace(self.reading, json=json.dumps(self.content))
        try:
            self.library = read.tokenizer()
        except Exception as error:  # the library raises bare Exception
            raise InputError(
                f"The tokenizer of {folder} cannot be changed so: {error}."
            ) from error

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token to id."""
        return self.library.get_vocab()

    @property
    def special(self) -> dict[str, int]:
        """The special tokens."""
        added = self.library.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(added.items()) if token.special}

    def token(self, number: int) -> str:
        """The token of an id, or an empty string."""
        return self.library.id_to_token(number) or ""

    def role(self, name: str) -> str | None:
        """The token of a role, for example `mask_token`."""
        return self.reading.roles.get(name)

    def ids(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text with special tokens around it."""
        return [encoding.ids for encoding in self.library.encode_batch(list(texts))]


def _marked(rows: list[list[int]], marker: int, place: int = 1) -> list[list[int]]:
    return [[*row[:place], marker, *row[place:]] for row in rows]


def _registered(tokens: Tokens, markers: Iterable[int]) -> dict:
    """The tokenizer's JSON with the markers as special tokens, never split."""
    there = {token["id"] for token in tokens.content.get("added_tokens", ())}
    added = [
        {
            "id": marker,
            "content": tokens.token(marker),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for marker in sorted(set(markers) - there)
    ]
    whole = [*tokens.content.get("added_tokens", ()), *added]
    return tokens.content | {"added_tokens": sorted(whole, key=lambda t: t["id"])}


def write_prompts(
    folder: pathlib.Path, model: SavedModel, *, max_length: int
) -> dict[str, str]:
    """Writes a tokenizer of `max_length` tokens that keeps a model's markers whole.

    Returns:
      The prompts of "query" and "document", including a marker's token.

    Raises:
      InputError: the tokenizer cannot read a marker from text.
    """
    write_tokenizer(folder, model.tokenizer, max_length=max_length)
    own = Tokens(model.tokenizer)
    spec = model.spec
    prompts = {role: getattr(spec, f"{role}_prompt") for role in ROLES}
    markers = {role: getattr(spec, f"{role}_marker") for role in ROLES}
    markers = {role: marker for role, marker in markers.items() if marker >= 0}
    if not markers:
        return prompts
    wanted = {
        role: _marked(
            own.ids(prompts[role] + text for text in PROBES), marker, spec.marker_place
        )
        for role, marker in markers.items()
    }
    plain = own.ids(PROBES)
    copied = Tokens(folder)
    contents = [copied.content]
    # As an added token, a word would become the marker wherever it occurs in a text.
    if not any(own.token(m).isalnum() for m in markers.values()):
        contents.append(_registered(copied, markers.values()))
    # A special token needs no space after it, a word of the vocabulary does.
    for content in contents:
        found = Tokens(folder, content)
        for space in ("", " "):
            written = {
                role: own.token(marker) + space + prompts[role]
                for role, marker in markers.items()
            }
            if found.ids(PROBES) == plain and all(
                found.ids(written[role] + text for text in PROBES) == wanted[role]
                for role in markers
            ):
                text = json.dumps(content, ensure_ascii=False)
                (folder / "tokenizer.json").write_text(text, encoding="utf-8")
                return prompts | written
    names = " and ".join(repr(own.token(m)) for m in markers.values())
    raise InputError(
        f"{model.name}: the tokenizer does not read the marker {names} before a text"
        " as that token, and sentence-transformers has no other way to set it. Train"
        " with a marker that is no word, such as [unused0] of BERT, or with a prompt."
    )


def split_prompt(prompt: str, tokens: Tokens) -> tuple[int, str]:
    """The marker (-1 without one) in another program's prompt, and the rest of it."""
    wanted = tokens.ids(prompt + text for text in PROBES)
    for token, marker in tokens.special.items():
        if not prompt.startswith(token) or prompt_tokens.is_name(token):
            continue
        behind = prompt.removeprefix(token)
        for rest in (behind.removeprefix(" "), behind):
            if _marked(tokens.ids(rest + text for text in PROBES), marker) == wanted:
                return marker, rest
    return -1, prompt
