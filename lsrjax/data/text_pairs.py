"""Queries and positives that are made of a plain text alone.

Texts are cut between words: runs of characters without a space, and in scripts that put
no spaces between words each character on its own. To add a way, write it here and add a
line to `PAIRS`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from lsrjax.data.reading.bad_records import EMPTY, BadRecord
from lsrjax.options import Chosen, Options, option

# Of scripts without spaces between words: Thai, Lao, Burmese, Khmer; kana; Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
# Lines, and what ends in the marks of Latin, Indic, Arabic, Armenian, CJK, … scripts.
_SENTENCE = re.compile(
    r"\S.*?(?:[.!?…।؟։](?=\s)|[。！？｡]|(?=\s*\n)|(?=\s*\Z))", re.DOTALL
)

Span = tuple[int, int]  # first character, and the one after the last


@dataclasses.dataclass(frozen=True)
class PlainText:
    """A text with its title, which may be empty; `where` names it in errors."""

    title: str
    text: str
    where: str


def words(text: str) -> list[Span]:
    """Where each word of a text is, in order."""
    return [found.span() for found in _WORD.finditer(text)]


def sentences(text: str) -> list[Span]:
    """Where each sentence of a text is, in order."""
    return [found.span() for found in _SENTENCE.finditer(text)]


def _share(value: float) -> str | None:
    return None if 0 < value <= 1 else "give a share above 0 and at most 1"


@dataclasses.dataclass(frozen=True)
class CropsOptions(Options):
    """Of `crops`."""

    shortest: float = option(0.1, "share of the text's words", problem=_share)
    longest: float = option(0.5, "share of the text's words", problem=_share)
    words: int = option(4, "at least, where the text has as many", above=0)

    def problem(self) -> str | None:
        """Refuses a range without numbers."""
        if self.shortest <= self.longest:
            return None
        return f"shortest is {self.shortest}, more than longest, {self.longest}."


def crops(text: PlainText, options: CropsOptions, rng) -> tuple[str, str]:
    """Two spans of the text, drawn independently (Contriever, Izacard et al. 2022)."""
    found = words(text.text)

    def crop() -> str:
        share = rng.uniform(options.shortest, options.longest)
        count = max(round(share * len(found)), options.words)
        return _cut(text.text, found, *_place(len(found), count, rng))

    return crop(), crop()


@dataclasses.dataclass(frozen=True)
class ClozeOptions(Options):
    """Of `cloze`."""

    keep: float = option(0.1, "how often the sentence stays in its text", low=0, high=1)


def cloze(text: PlainText, options: ClozeOptions, rng) -> tuple[str, str]:
    """A sentence, and the text without it (inverse cloze, Lee et al. 2019).

    Of a text of one sentence, a third of its words are taken for one.
    """
    found, number, keep = sentences(text.text), rng.random(), rng.random()
    first, last = found[int(number * len(found))]
    if len(found) == 1:
        own = words(text.text)
        count = max(len(own) // 3, 1)
        begin = int(number * (len(own) - count + 1))
        first, last = own[begin][0], own[begin + count - 1][1]
    sentence = text.text[first:last]
    rest = f"{text.text[:first].rstrip()} {text.text[last:].lstrip()}".strip()
    return sentence, rest if rest and keep >= options.keep else text.text


def title(text: PlainText, options: Options, rng) -> tuple[str, str]:
    """The title, and the text."""
    if not text.title.strip():
        raise BadRecord(
            EMPTY,
            f"{text.where} has no title, which the source's pairs = 'title' takes for"
            " the query. Give it one, or choose other pairs.",
        )
    return text.title, text.text


@dataclasses.dataclass(frozen=True)
class SpanOptions(Options):
    """Of `span`."""

    lengths: tuple[tuple[int, ...], ...] = option(
        ((1, 1), (4, 16), (16, 64), (64, 128)),
        "words of a span, from and to, of each grain; one is drawn",
        problem=lambda value: _ranges(value),
    )


def _ranges(value: tuple) -> str | None:
    if value and all(len(one) == 2 and 0 < one[0] <= one[1] for one in value):
        return None
    return "give pairs of numbers of words, the smaller one first"


def span(text: PlainText, options: SpanOptions, rng) -> tuple[str, str]:
    """A word, phrase, sentence or paragraph, and its text (CSP, Ma et al. 2022)."""
    found = words(text.text)
    least, most = options.lengths[rng.integers(len(options.lengths))]
    count = int(rng.integers(least, most + 1))
    return _cut(text.text, found, *_place(len(found), count, rng)), text.text


@dataclasses.dataclass(frozen=True)
class RecurringOptions(Options):
    """Of `recurring`."""

    longest: int = option(10, "words of the span that occurs twice", above=1, high=64)
    window: tuple[int, ...] = option(
        (5, 30),
        "words of the query, from and to",
        problem=lambda value: None if len(value) == 2 else _ranges(()),
    )
    passage: int = option(100, "words of the positive", above=0)
    keep: float = option(0.5, "how often the span stays in the query", low=0, high=1)


def recurring(text: PlainText, options: RecurringOptions, rng) -> tuple[str, str]:
    """Surroundings of two occurrences of a span (Spider, Ram et al. 2022).

    The query is a window around one occurrence of a span of at least two words, with
    or without it, the positive a passage around another that does not overlap the
    window, where the text is long enough. A text without such a span gives `crops`.
    """
    found = words(text.text)
    twice = _recurring(text.text, found, options.longest)
    if not twice:
        return crops(text, CropsOptions(), rng)
    places, length = twice[rng.integers(len(twice))]
    one, other = rng.permutation(len(places))[:2]
    least, most = options.window
    size = max(int(rng.integers(least, most + 1)), length + 1)
    begin, end = _around(places[one], length, size, len(found))
    query = _cut(text.text, found, begin, end)
    if rng.random() >= options.keep:
        parts = ((begin, places[one]), (places[one] + length, end))
        kept = [_cut(text.text, found, *part) for part in parts if part[0] < part[1]]
        query = " ".join(kept) or query
    # The passage ends where the window begins, or the other way round.
    size = max(options.passage, length)
    first, last = _around(places[other], length, size, len(found))
    if places[other] < places[one]:
        last = max(min(last, begin), places[other] + length)
    else:
        first = min(max(first, end), places[other])
    return query, _cut(text.text, found, first, last)


def _recurring(text: str, found: list[Span], longest: int) -> list:
    """The spans that occur twice without overlap: their places, and words in each.

    Of spans within each other, the longer one.
    """
    spelled = [text[first:last].lower().strip(_MARKS) for first, last in found]
    pairs = list(zip(spelled, spelled[1:], strict=False))
    often = Counter(pairs)
    chosen: list[tuple[list[int], int]] = []
    taken = np.zeros(len(found), bool)
    for length in range(min(longest, len(found) // 2), 1, -1):
        places: dict[tuple[str, ...], list[int]] = {}
        for place in range(len(found) - length + 1):
            if often[pairs[place]] == 1:
                continue
            own = tuple(spelled[place : place + length])
            before = places.setdefault(own, [])
            free = not before or place >= before[-1] + length
            if all(own) and free and not taken[place : place + length].any():
                before.append(place)
        for some in places.values():
            if len(some) > 1:
                chosen.append((some, length))
                for place in some:
                    taken[place : place + length] = True
    return chosen


_MARKS = ".,;:!?()[]{}\"'«»“”„…、。，；：！？（）「」"


def _around(place: int, length: int, size: int, total: int) -> Span:
    """`size` words of `total` with a span about in their middle."""
    begin = min(max(place - (size - length) // 2, 0), max(total - size, 0))
    return min(begin, place), max(min(begin + size, total), place + length)


def _place(total: int, count: int, rng) -> Span:
    """`count` words in a row of `total`, or all of fewer."""
    count = min(count, total)
    begin = int(rng.integers(total - count + 1))
    return begin, begin + count


def _cut(text: str, found: list[Span], begin: int, end: int) -> str:
    return text[found[begin][0] : found[end - 1][1]]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """An entry of `PAIRS`.

    Attributes:
      fn: `(PlainText, options, a generator of random numbers) -> (query, positive)`;
        the text has a word. BadRecord if there is none of this text.
      Options: a dataclass of its options.
    """

    fn: Callable[[PlainText, Any, np.random.Generator], tuple[str, str]]
    Options: type[Options] = Options


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes pairs of texts.

    Attributes:
      pairs: an entry of `PAIRS` with its options.
      longest: words that a pair is made of, drawn first from longer texts; 0: all.
    """

    pairs: Chosen
    longest: int = 0

    def __call__(self, text: PlainText, rng: np.random.Generator) -> tuple[str, str]:
        """The query and the positive of a text.

        Raises:
          BadRecord: the text has no words, or lacks what the pair is made of.
        """
        found = words(text.text)
        if not found:
            raise BadRecord(
                EMPTY, f"{text.where} has no words. Fill it in, or remove it."
            )
        if 0 < self.longest < len(found):
            stretch = _place(len(found), self.longest, rng)
            own = _cut(text.text, found, *stretch)
            text = dataclasses.replace(text, text=own)
        return self.pairs.entry.fn(text, self.pairs.options, rng)


PAIRS: dict[str, Pairs] = {
    "crops": Pairs(crops, CropsOptions),
    "cloze": Pairs(cloze, ClozeOptions),
    "title": Pairs(title),
    "span": Pairs(span, SpanOptions),
    "recurring": Pairs(recurring, RecurringOptions),
}
