"""Batches in a few fixed shapes with little padding.

The texts of one device are sorted by length and cut into parts, each padded to its own
length, so that short texts do not pay for long ones. The parts are fitted once, to the
lengths of the first batches; every batch then uses the cheapest shape that fits from a
short table. So a run compiles at most as many steps as the table has rows.

Axes: S samples (a device's texts of a batch), n texts of a device, L tokens.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.tokenization import TokenIds

# Share of the texts by which the second shape allows more long ones than all samples.
_SLACK = 0.05


@dataclasses.dataclass(frozen=True)
class Shape:
    """The parts (texts, tokens) that a device's texts are cut into, shortest first."""

    parts: tuple[tuple[int, int], ...]

    @property
    def slots(self) -> int:
        """Tokens, including padding."""
        return sum(texts * tokens for texts, tokens in self.parts)

    def holds(self, lengths: np.ndarray) -> bool:
        """Whether n texts of these lengths, ascending, fit."""
        last = np.cumsum([texts for texts, _ in self.parts]) - 1
        return bool((lengths[last] <= [tokens for _, tokens in self.parts]).all())

    def __str__(self) -> str:
        return " ".join(f"{texts}x{tokens}" for texts, tokens in self.parts)


def fit(
    lengths_Sn: np.ndarray,
    max_length: int,
    *,
    parts: int,
    multiple: int,
    chunks: int = 1,
) -> tuple[Shape, ...]:
    """A table of shapes for texts like these, cheapest first.

    The first shape fits all of the samples, the second leaves some room, the last fits
    any texts.

    Args:
      lengths_Sn: tokens of the texts of each sample.
      max_length: tokens of the longest possible text.
      parts: the most parts of a shape.
      multiple: lengths are multiples of it, or `max_length`.
      chunks: each part divides into this many equal pieces, as far as n does.
    """
    sorted_Sn = np.sort(lengths_Sn, axis=1)
    n = sorted_Sn.shape[1]

    def rounded(tokens_n):
        return np.minimum(-(-tokens_n // multiple) * multiple, max_length)

    longest_n = sorted_Sn.max(axis=0)
    tight = _cheapest(rounded(longest_n), parts, chunks)
    # Each shape fits whatever the one before it fits: of the shapes that several
    # processes need for a batch, the largest works for all.
    allowed_n = np.repeat(
        [tokens for _, tokens in tight.parts], [texts for texts, _ in tight.parts]
    )
    # With room for a few more long texts than in any sample: a batch that needs the
    # last shape is slow, and one more to compile.
    longer = np.minimum(np.arange(n) + math.ceil(_SLACK * n), n - 1)
    needed_n = np.maximum(rounded(longest_n[longer]), allowed_n)
    ample = _cheapest(needed_n, parts, chunks)
    return tuple(dict.fromkeys([tight, ample, Shape(((n, max_length),))]))


def _cheapest(tokens_n: np.ndarray, parts: int, chunks: int) -> Shape:
    """The shape of fewest slots in at most `parts` parts for lengths `tokens_n`."""
    n = len(tokens_n)
    allowed = np.arange(n % chunks or chunks, n + 1, chunks)
    # A part should end only where the next one needs more.
    longest = tokens_n[allowed - 1]
    ends = allowed[np.append(np.diff(longest) > 0, True)].tolist()
    # best[j]: slots and parts of the texts before ends[j], in the parts so far.
    best = [(end * int(tokens_n[end - 1]), (end,)) for end in ends]
    for _ in range(parts - 1):
        longer = []
        for j, end in enumerate(ends):
            tokens = int(tokens_n[end - 1])
            options = [
                (slots + (end - cut[-1]) * tokens, (*cut, end))
                for slots, cut in best[:j]
            ]
            longer.append(min([best[j], *options]))
        best = longer
    _, cut = best[-1]
    starts = (0, *cut[:-1])
    return Shape(
        tuple(
            (end - start, int(tokens_n[end - 1]))
            for start, end in zip(starts, cut, strict=True)
        )
    )


def cut(
    texts: Mapping[str, Sequence[TokenIds]],
    shape: Shape,
    pad_id: int,
    *,
    first: Mapping[str, int] | None = None,
    query: str = "query",
    languages: Mapping[str, Sequence[int]] | None = None,
) -> dict:
    """A device's texts as the arrays of a shape.

    Args:
      texts: token ids of the texts of each name, n in all.
      languages: their numbers, for an encoder that computes by them.
      first: the number in the batch of the first text of each name; by default as in a
        batch of one device.

    Returns:
      `{"parts": ({"ids", "mask", "query", "number"}, …), "place": {name: …}}`: arrays
      [texts, tokens] int32 of ids and mask, [texts] of whether a text is a query and
      of its number in the batch, and maybe its "language"; and the places of a name's
      texts in the parts, end to end, [texts of the name] int32.
    """
    rows = [row for own in texts.values() for row in own]
    sizes = [len(own) for own in texts.values()]
    if first is None:
        first = dict(zip(texts, np.cumsum([0, *sizes[:-1]]), strict=True))
    number = np.concatenate(
        [first[name] + np.arange(len(own)) for name, own in texts.items()]
    ).astype(np.int32)
    is_query = np.repeat([name == query for name in texts], sizes)
    facts = {"query": is_query, "number": number}
    if languages is not None:
        spoken = [one for name in texts for one in languages[name]]
        facts["language"] = np.array(spoken, np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    text = np.argsort(lengths, kind="stable")
    parts, start = [], 0
    for count, tokens in shape.parts:
        chosen = text[start : start + count]
        mask = np.arange(tokens) < lengths[chosen, None]
        ids = np.full((count, tokens), pad_id, np.int32)
        ids[mask] = np.concatenate([np.asarray(rows[i], np.int32) for i in chosen])
        part = {"ids": ids, "mask": mask.astype(np.int32)}
        parts.append(part | {name: of[chosen] for name, of in facts.items()})
        start += count
    place = np.argsort(text, kind="stable").astype(np.int32)
    ends = np.cumsum(sizes)[:-1]
    return {
        "parts": tuple(parts),
        "place": dict(zip(texts, np.split(place, ends), strict=True)),
    }


def end_to_end(cuts: Sequence[Any]) -> Any:
    """Concatenates the arrays of several devices' cuts, which have one structure."""
    first = cuts[0]
    if isinstance(first, dict):
        return {name: end_to_end([own[name] for own in cuts]) for name in first}
    if isinstance(first, tuple):
        return tuple(map(end_to_end, zip(*cuts, strict=True)))
    return np.concatenate(cuts)
