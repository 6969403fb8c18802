"""Cuts long texts before they are tokenized, if that changes no token.

A tokenizer reads all of a text before it truncates. Whether a text may be cut so that
the tokens before the cut are those of the whole text depends on the tokenizer. Here
texts are cut at the spaces between two words, if

- words are split at spaces before any other step, so that no word and no token crosses
  the cut: the pre-tokenizer does so, and no added token contains a space;
- each step of the normalizer depends on one character, or on those that combine with
  it, and normalizes the spaces and the letters around them independently.

Any other tokenizer reads whole texts.
"""

import itertools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import tokenizers

# Characters read at first for each token needed.
_CHARACTERS = 16
_LEAST = 1024
_GROWTH = 4
# Candidate places to cut.
_TRIES = 200
_SPACES = re.compile(r"(?<=[^\s])[ \n\r\t\u3000]{1,4}(?=[^\s])")

_LOCAL_NORMALIZERS = {
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Strip",
    "StripAccents",
}
# Pre-tokenizers that split at spaces and drop them, and those that keep them.
_DROP_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_KEEP_SPACES = {"ByteLevel": "use_regex", "Metaspace": "split"}
# May precede these: they split by kinds of characters, and keep all of them.
_BY_CHARACTER = {"Digits", "Punctuation"}
# Letters, numbers, punctuation and symbols, by the first letter of their category.
_VISIBLE = "LNPS"


def first_size(max_length: int) -> int:
    """Characters to read at first for this many tokens."""
    return max(_LEAST, _CHARACTERS * max_length)


def next_size(size: int) -> int:
    """Characters to read after `size` of them gave too few tokens."""
    return _GROWTH * size


class Cutter:
    """Finds places where texts may be cut for one tokenizer."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, content: Mapping[str, Any]):
        """Determines whether a tokenizer that truncates at the end allows cuts."""
        self._normalizer = tokenizer.normalizer
        self._splitter = _splitter(content.get("pre_tokenizer"))
        self._able = (
            self._splitter is not None
            and _is_local(content.get("normalizer"))
            and not content["model"].get("dropout")
            and not any(
                _has_space(token.content)
                or (token.normalized and _has_space(self._normal(token.content)))
                for token in tokenizer.get_added_tokens_decoder().values()
            )
        )

    def _normal(self, text: str) -> str:
        return self._normalizer.normalize_str(text) if self._normalizer else text

    def cut(self, text: str, size: int) -> str:
        """The beginning of a text, whose tokens are the first ones of the whole text.

        It has `size` characters or a few more; the whole text if it cannot be cut.
        """
        if not self._able:
            return text
        for found in itertools.islice(_SPACES.finditer(text, size), _TRIES):
            start = found.start()
            while start and unicodedata.category(text[start - 1])[0] == "M":
                start -= 1
            before = text[max(start - 1, 0) : found.start()]
            if self._is_safe(before, found[0], text[found.end()]):
                return text[: found.start()]
        return text

    def _is_safe(self, before: str, spaces: str, after: str) -> bool:
        """Whether a letter with its marks, spaces and a letter are independent."""
        for character in (before[0], after):
            if unicodedata.category(character)[0] not in _VISIBLE:
                return False
        first, last = self._normal(before), self._normal(after)
        whole = self._normal(before + spaces + after)
        between = whole[len(first) : len(whole) - len(last)]
        if not between or whole != first + between + last:
            return False
        if self._splitter in _DROP_SPACES:
            return between.isspace()
        if _has_space(first + last):
            return False
        kept = " ▁" if self._splitter == "Metaspace" else spaces
        return set(between) <= set(kept)


def _has_space(text: str) -> bool:
    return any(map(str.isspace, text))


def _is_local(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    kind = normalizer["type"]
    if kind == "Sequence":
        return all(map(_is_local, normalizer["normalizers"]))
    if kind == "Replace":
        pattern = normalizer["pattern"]
        if "String" in pattern:
            return not _has_space(pattern["String"] + normalizer["content"])
        # That of converted SentencePiece models.
        return pattern.get("Regex") == " {2,}"
    return kind in _LOCAL_NORMALIZERS


def _splitter(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The kind of the step that splits at spaces first; None: no step does."""
    parts = [pre_tokenizer] if pre_tokenizer else []
    if pre_tokenizer and pre_tokenizer["type"] == "Sequence":
        parts = pre_tokenizer["pretokenizers"]
    for part in parts:
        kind = part["type"]
        if kind in _DROP_SPACES:
            return kind
        if kind in _KEEP_SPACES and part.get(_KEEP_SPACES[kind], True):
            return kind
        if kind not in _BY_CHARACTER:
            return None
    return None
