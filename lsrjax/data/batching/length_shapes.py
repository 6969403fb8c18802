"""Batches in a few fixed shapes with little padding.

The texts that one device encodes are sorted by length and cut into parts, and each
part is padded to a length of its own: short texts do not pay for long ones. Which parts
there are is fitted to the lengths of the first batches, once; every batch then takes
the cheapest shape of a short table that holds it. So a run compiles at most as many
steps as the table has rows.

Axes: S samples (a device's texts of a batch), n texts of a device, L tokens.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.tokenization import TokenIds

# Share of the texts that may be longer than in all samples.
_SLACK = 0.05


@dataclasses.dataclass(frozen=True)
class Shape:
    """The parts that a device's texts are cut into, shortest first.

    Attributes:
      parts: (texts, tokens) of each.
    """

    parts: tuple[tuple[int, int], ...]

    @property
    def slots(self) -> int:
        """Tokens with padding."""
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

    The first shape holds all of the samples, the second has some room besides, the last
    holds whatever may come.

    Args:
      lengths_Sn: tokens of the texts of each sample.
      max_length: tokens of the longest text there may be.
      parts: the most there may be.
      multiple: lengths are multiples of it, or `max_length`.
      chunks: parts that each divide into as many equal pieces, as far as n does.
    """
    sorted_Sn = np.sort(lengths_Sn, axis=1)
    n = sorted_Sn.shape[1]

    def rounded(tokens_n):
        return np.minimum(-(-tokens_n // multiple) * multiple, max_length)

    longest_n = sorted_Sn.max(axis=0)
    tight = _cheapest(rounded(longest_n), parts, chunks)
    # Whatever a shape holds, the next one holds too: of the shapes that several
    # processes need for a batch, the largest serves all.
    allowed_n = np.repeat(
        [tokens for _, tokens in tight.parts], [texts for texts, _ in tight.parts]
    )
    # With room for a few more long texts than any sample had: a batch for the last
    # shape is slow, and a shape more to compile.
    longer = np.minimum(np.arange(n) + math.ceil(_SLACK * n), n - 1)
    needed_n = np.maximum(rounded(longest_n[longer]), allowed_n)
    ample = _cheapest(needed_n, parts, chunks)
    return tuple(dict.fromkeys([tight, ample, Shape(((n, max_length),))]))


def _cheapest(tokens_n: np.ndarray, parts: int, chunks: int) -> Shape:
    """The fewest slots with at most `parts` parts; text i needs `tokens_n[i]`."""
    n = len(tokens_n)
    allowed = np.arange(n % chunks or chunks, n + 1, chunks)
    # A part ends best where the last text of the next one needs more.
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
) -> dict:
    """A device's texts as the arrays of a shape.

    Args:
      texts: token ids of the texts of each name, n in all.
      shape: one that holds them.
      pad_id: stands in the padding.
      first: the number in the batch of the first text of each name; by default those of
        a batch of one device.
      query: the name of the texts that are queries.

    Returns:
      `{"parts": ({"ids", "mask", "query", "number"}, …), "place": {name: …}}`: arrays
      [texts, tokens] int32 of ids and mask, [texts] of whether a text is a query and
      which text of the batch it is; and where the texts of a name are in the parts laid
      end to end, [texts of the name] int32.
    """
    rows = [row for own in texts.values() for row in own]
    sizes = [len(own) for own in texts.values()]
    if first is None:
        first = dict(zip(texts, np.cumsum([0, *sizes[:-1]]), strict=True))
    number = np.concatenate(
        [first[name] + np.arange(len(own)) for name, own in texts.items()]
    ).astype(np.int32)
    is_query = np.repeat([name == query for name in texts], sizes)
    lengths = np.array([len(row) for row in rows], np.int32)
    text = np.argsort(lengths, kind="stable")
    parts, start = [], 0
    for count, tokens in shape.parts:
        chosen = text[start : start + count]
        mask = np.arange(tokens) < lengths[chosen, None]
        ids = np.full((count, tokens), pad_id, np.int32)
        ids[mask] = np.concatenate([np.asarray(rows[i], np.int32) for i in chosen])
        part = {"ids": ids, "mask": mask.astype(np.int32)}
        parts.append(part | {"query": is_query[chosen], "number": number[chosen]})
        start += count
    place = np.argsort(text, kind="stable").astype(np.int32)
    ends = np.cumsum(sizes)[:-1]
    return {
        "parts": tuple(parts),
        "place": dict(zip(texts, np.split(place, ends), strict=True)),
    }


def end_to_end(cuts: Sequence[Any]) -> Any:
    """The arrays of several devices' cuts, of one structure, laid end to end."""
    first = cuts[0]
    if isinstance(first, dict):
        return {name: end_to_end([own[name] for own in cuts]) for name in first}
    if isinstance(first, tuple):
        return tuple(map(end_to_end, zip(*cuts, strict=True)))
    return np.concatenate(cuts)
