"""Cuts long texts before they are tokenized, if that changes no token.

A tokenizer reads all of a text before it truncates. Whether a text may be cut so that
the tokens before the cut are those of the whole text depends on the tokenizer. Here
texts are cut at the spaces between two words, if

- words are split at spaces before any other step, so that no word and no token crosses
  the cut: the pre-tokenizer does so, and no added token contains a space;
- each step of the normalizer depends on one character, or on those that combine with
  it, and normalizes the spaces and the letters around them independently.

Where there are no such spaces, they are cut between two letters that combine with
nothing: where the pre-tokenizer splits by kinds of characters (punctuation,
ideographs), or inside a word, whose tokens are then compared (`Cutter.settled`). What a
word that is too long for WordPiece consists of is left out. Any other tokenizer reads
whole texts.
"""

import dataclasses
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
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
# Characters looked at for a place between two letters.
_LETTERS = 2000
# A text is read to the end if it is not this many times as long as its beginning.
_WORTH = 2
# Letters that join the one before or behind them: Hangul jamo, half-width marks,
# letters that Unicode counts as marks or as prefixes. And what stands for a space.
_JOINING = re.compile(
    "[\u0d4e\u0e33\u0eb3\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff\uff61-\uffef\u2581]"
)
_SIMPLE = ("Lu", "Ll", "Lo", "Nd", "Pc", "Pd", "Ps", "Pe", "Po")
_BEHAVIORS = ("Isolated", "Contiguous")


def first_size(max_length: int) -> int:
    """Characters to read at first for this many tokens."""
    return max(_LEAST, _CHARACTERS * max_length)


def next_size(size: int) -> int:
    """Characters to read after `size` of them gave too few tokens."""
    return _GROWTH * size


@dataclasses.dataclass(frozen=True)
class Part:
    """What is read of a text.

    Attributes:
      whole: it has all of the text's tokens, not only the first ones.
      inside: it ends inside a word, whose last tokens may not be the text's.
    """

    text: str
    whole: bool = False
    inside: bool = False


class Cutter:
    """Finds places where texts may be cut for one tokenizer."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, content: Mapping[str, Any]):
        """Determines which cuts a tokenizer without truncation allows."""
        self._tokenizer = tokenizer
        self._normalizer = tokenizer.normalizer
        self._added = tuple(tokenizer.get_added_tokens_decoder().values())
        steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
        self._splitter = _splitter(steps)
        self._able = (
            self._splitter is not None
            and all(map(_is_local, _steps(content.get("normalizer"), "normalizers")))
            and not content["model"].get("dropout")
            and not any(
                _has_space(token.content)
                or (token.normalized and _has_space(self._normal(token.content)))
                for token in self._added
            )
        )
        by_letter = self._able and all(map(_is_by_letter, steps))
        by_letter &= all(
            map(_is_by_letter, _steps(content.get("normalizer"), "normalizers"))
        )
        self._by_letter = by_letter
        self._longest = _longest(content["model"]) if by_letter else 0
        self._margin = 8 + max([len(token.content) for token in self._added] or [0])
        self._run = self._find_run(content["model"], steps) if by_letter else None
        self._splits = functools.lru_cache(2**16)(self._find_split)

    def _normal(self, text: str) -> str:
        return self._normalizer.normalize_str(text) if self._normalizer else text

    def part(self, text: str, size: int) -> Part:
        """As much of a text as has its first tokens: `size` characters or a few more.

        The whole text if it cannot be cut.
        """
        if len(text) <= _WORTH * size:
            return Part(text, whole=True)
        part = self.cut(text, size)
        if len(part) <= _WORTH * size:
            return Part(part)
        # There are fewer characters for a token where there are no spaces.
        if inside := self._inside(text, max(size // 4, 1), len(part)):
            return Part(inside, inside=True)
        return Part(self._shortened(part), whole=part == text)

    def cut(self, text: str, size: int) -> str:
        """The beginning of a text, whose tokens are the first ones of the whole text.

        It has `size` characters or a few more; the whole text if it cannot be cut.
        """
        return text[: next(self._places(text, size), len(text))]

    def _places(self, text: str, size: int) -> Iterator[int]:
        if self._able:
            yield from self._between_words(text, size, _WORTH * size)
            yield from self._between_letters(text, size, split=True)
            yield from self._between_words(text, _WORTH * size, len(text))

    def tail(self, text: str, size: int) -> tuple[str, int]:
        """The end of a text, and where in it tokens begin to be those of the text.

        The end begins between two words, since a tokenizer may prepend something to it;
        its tokens from the next place between words on are the last ones of the text.
        """
        places: list[int] = []
        least = len(text)
        while self._able and len(places) < 2 and least > 0 and size < len(text):
            least = max(len(text) - _WORTH * size, 0)
            places = [*self._between_words(text, least, len(text) - size)]
            size *= _GROWTH
        if len(places) < 2:
            return text, 0
        return text[places[-2] :], places[-1] - places[-2]

    def _between_words(self, text: str, start: int, end: int) -> Iterator[int]:
        for found in itertools.islice(_SPACES.finditer(text, start, end), _TRIES):
            first = found.start()
            while first and unicodedata.category(text[first - 1])[0] == "M":
                first -= 1
            before = text[max(first - 1, 0) : found.start()]
            if before and self._is_safe(before, found[0], text[found.end()]):
                yield found.start()

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

    def _between_letters(self, text: str, start: int, *, split: bool) -> Iterator[int]:
        """Places between two letters, where the pre-tokenizer splits or does not."""
        if not self._by_letter:
            return
        # The letter behind a place has no mark, which might change its kind.
        for at in range(max(start, 2), min(start + _LETTERS, len(text) - 1)):
            if (
                self._splits(text[at - 1], text[at]) is split
                and _is_simple(text[at + 1])
                # 're is one word of some pre-tokenizers, and 'r none.
                and "'" not in self._normal(text[at - 2 : at])
                and not self._is_near_added(text, at)
            ):
                yield at

    def _find_split(self, before: str, after: str) -> bool | None:
        """Whether two letters are parts of two words; None: they may join."""
        if not (_is_simple(before) and _is_simple(after)):
            return None
        first, last = self._normal(before), self._normal(after)
        whole = first + last
        if not first or not last or self._normal(before + after) != whole:
            return None
        pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(whole)
        return not any(start < len(first) < end for _, (start, end) in pieces)

    def _is_near_added(self, text: str, at: int) -> bool:
        near = text[max(at - self._margin, 0) : at + self._margin]
        normal = self._normal(near)
        return any(
            token.content in near
            or (token.normalized and self._normal(token.content) in normal)
            for token in self._added
        )

    def _inside(self, text: str, size: int, otherwise: int) -> str | None:
        """A beginning that ends inside a word; None if `otherwise` takes no longer."""
        if not self._longest or (1 + self._longest) * size >= otherwise:
            return None
        places = self._between_letters(text, size, split=False)
        at = next(places, None)
        return None if at is None else text[:at]

    def settled(self, part: str) -> tuple[tokenizers.Encoding, int]:
        """Tokens of a part that ends inside a word, and how many are the text's, too.

        Let no token be longer than n characters. Then one of the text's tokens ends at
        one of the last n places of the part. If it ends at place p, those up to it are
        the tokens of the characters before p: in a unigram model, the best way to p
        depends on nothing behind it; in BPE, no merge crosses p, so that those before p
        are chosen in the same order. So what all n beginnings have in common, the text
        has as well.
        """
        encoding = self._tokenizer.encode(part, add_special_tokens=False)
        words = encoding.word_ids
        first = words.index(words[-1]) if words else 0
        own = encoding.ids[first:]
        word = self._word(part[encoding.offsets[first][0] :], own) if own else ""
        count = len(own) if len(word) > self._longest else 0
        for end in range(len(word) - self._longest + 1, len(word)):
            if not count:
                break
            pairs = zip(self._ids(word[:end]), own[:count], strict=False)
            count = sum(
                1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pairs)
            )
        return encoding, first + count

    def _word(self, raw: str, ids: Sequence[int]) -> str:
        """The characters that the model reads as a word; empty if it reads others."""
        pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(self._normal(raw))
        last = pieces[-1][0] if pieces else ""
        # Marks of a space before the word, which it need not have.
        words = (last, last[1:]) if last[:1] in ("▁", "Ġ") else (last,)
        return next((word for word in words if self._ids(word) == ids), "")

    def _ids(self, word: str) -> list[int]:
        return [token.id for token in self._tokenizer.model.tokenize(word)]

    def _find_run(self, model: Mapping[str, Any], steps) -> re.Pattern | None:
        """What WordPiece reads as one unknown token however long it is."""
        if (
            model["type"] != "WordPiece"
            or {one["type"] for one in steps} - _DROP_SPACES
        ):
            return None
        named = [token.content for token in self._added]
        named += [self._normal(content) for content in named]
        if any(map(str.isalnum, named)):
            return None
        kept = model["max_input_chars_per_word"] + 1 + self._margin
        return re.compile(rf"([^\W_]{{{kept}}})([^\W_]+)([^\W_]{{{self._margin}}})")

    def _shortened(self, text: str) -> str:
        """The text, of whose unknown long words only the ends are left."""

        def ends(found: re.Match) -> str:
            # Each is a letter of its own, as ideographs are not.
            known = all(map(self._is_letter, set(found[0])))
            return found[1] + found[3] if known else found[0]

        return self._run.sub(ends, text) if self._run else text

    def _is_letter(self, character: str) -> bool:
        normal = self._normal(character)
        return _is_simple(character) and len(normal) == 1 and normal.isalnum()


def _has_space(text: str) -> bool:
    return any(map(str.isspace, text))


def _is_simple(character: str) -> bool:
    """Whether a character combines with none around it but marks behind it."""
    return (
        unicodedata.category(character) in _SIMPLE
        and character < "\U00010000"
        and not _JOINING.match(character)
        and unicodedata.category(unicodedata.normalize("NFKD", character)[0]) in _SIMPLE
    )


def _steps(step: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be sequences."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [one for part in step[parts] for one in _steps(part, parts)]


def _is_local(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        pattern = step["pattern"]
        if "String" in pattern:
            return not _has_space(pattern["String"] + step["content"])
        # That of converted SentencePiece models.
        return pattern.get("Regex") == " {2,}"
    return step["type"] in _LOCAL_NORMALIZERS


def _is_by_letter(step: Mapping[str, Any]) -> bool:
    """Whether a step looks at kinds of characters only, but for spaces."""
    kind = step["type"]
    if kind == "Replace":
        replaced = step["pattern"].get("String", "")
        return len(replaced) < 2
    if kind == "Punctuation":
        return step.get("behavior", "Isolated") in _BEHAVIORS
    if kind in _KEEP_SPACES:
        return step.get(_KEEP_SPACES[kind], True)
    return kind in _DROP_SPACES | _BY_CHARACTER | _LOCAL_NORMALIZERS


def _longest(model: Mapping[str, Any]) -> int:
    """Characters of the longest token; 0 if tokens depend on what is behind them."""
    if model["type"] == "Unigram":
        if model.keys() - {"type", "vocab", "unk_id", "byte_fallback"}:
            return 0
        return max(len(token) for token, _ in model["vocab"])
    options = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model["type"] != "BPE" or any(map(model.get, options)):
        return 0
    return max(map(len, model["vocab"]))


def _splitter(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The kind of the step that splits at spaces first; None: no step does."""
    for step in steps:
        kind = step["type"]
        if kind in _DROP_SPACES:
            return kind
        if kind in _KEEP_SPACES and step.get(_KEEP_SPACES[kind], True):
            return kind
        if kind not in _BY_CHARACTER:
            return None
    return None
