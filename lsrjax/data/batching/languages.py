"""The languages of examples: batches of one, and each one's share of the draws."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.batching.mixing import MixedOrder, set_weights
from lsrjax.data.examples import ANY, Group, Items, Pair
from lsrjax.errors import InputError

_SHOWN = 12  # languages named in an error


def languages_of(example: Pair | Group) -> tuple[str, ...]:
    """The languages of an example's query, or of its translation; `*` if unstated."""
    return (example.language,) if isinstance(example, Pair) else tuple(example.query)


def shown_in(example: Any, language: str) -> Any:
    """The example with its query in one language; None if it does not exist in it."""
    if language not in languages_of(example):
        return None
    if isinstance(example, Pair):
        return example
    return dataclasses.replace(example, query={language: example.query[language]})


@dataclasses.dataclass(frozen=True)
class Part:
    """The examples of one data set that exist in a language, by their numbers."""

    language: str
    numbers: np.ndarray


def parts_of(source: Items, sizes: Sequence[int]) -> list[list[Part]]:
    """The examples of each data set by language; reads all of them.

    Args:
      source: the data sets, one after the other.
      sizes: the number of examples of each.
    """
    parts, start = [], 0
    for size in sizes:
        found: dict[str, list[int]] = {}
        for number in range(start, start + size):
            for language in languages_of(source[number]):
                found.setdefault(language, []).append(number)
        start += size
        parts.append(
            [Part(name, np.array(own, np.int64)) for name, own in sorted(found.items())]
        )
    return parts


class InLanguages(Items[Any]):
    """The examples of a source once in each of their languages, part after part."""

    def __init__(self, source: Any, parts: Sequence[Part]):
        """`parts` are of the source, or of one with other examples in a few places."""
        self._source, self._parts = source, parts
        self._ends = np.cumsum([len(part.numbers) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        """The example in its part's language.

        An example that was replaced by one in another language is replaced again, by
        the next one in the part's.
        """
        part, at = self._at(index)
        count = len(part.numbers)
        for place in range(at, at + count):
            example = self._source[int(part.numbers[place % count])]
            if (shown := shown_in(example, part.language)) is not None:
                return shown
        raise InputError(
            f"No example is left in the language {part.language!r}: all of its records"
            " are bad, see bad_records.jsonl. Put them right, or remove them."
        )

    def place(self, index: int) -> dict:
        """Where an example is, for messages."""
        part, at = self._at(index)
        return self._source.place(int(part.numbers[at]))

    def _at(self, index: int) -> tuple[Part, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        k = int(np.searchsorted(self._ends, index, side="right"))
        part = self._parts[k]
        return part, index - int(self._ends[k]) + len(part.numbers)


class LanguageOrder(MixedOrder):
    """Like `MixedOrder`, over the languages of each data set.

    Examples are numbered as `of` numbers them: one that exists in several languages has
    a number in each.
    """

    def __init__(self, parts: Sequence[Part], *args: Any, **options: Any):
        """Mixes the parts, with the other arguments of `MixedOrder`."""
        super().__init__([len(part.numbers) for part in parts], *args, **options)
        self.parts = parts

    def of(self, source: Items) -> InLanguages:
        """The source's examples in the languages that they are numbered by."""
        return InLanguages(source, self.parts)


def scheduled(data: Any, sets: Sequence) -> bool:
    """Whether the languages of a stage's `data` have shares of the draws.

    Otherwise each query's language is drawn when the query is.
    """
    return asked(data) or (weighted(data) and any(named_by(one) for one in sets))


def asked(data: Any) -> bool:
    """Whether they have, whatever the data sets are."""
    return data.batches_from == "language" or data.language_temperature != 1


def weighted(data: Any) -> bool:
    """Whether languages of queries have weights of their own."""
    return set(data.query_languages) != {ANY}


def named_by(source: Any) -> bool:
    """Whether the rows of a data set name the language that they are in."""
    return getattr(source, "names_languages", False)


def shares(
    sizes: Mapping[str, int], weights: Mapping[str, float], temperature: float
) -> list[float]:
    """Shares in proportion to weight x n^(1/T) of the languages of a data set.

    With all weights 1, T = 1 / alpha of XLM-R (Conneau et al. 2020, section 3).

    Args:
      sizes: examples by language.
      weights: by language; `*` is for every language not named.
      temperature: T > 0; inf: n does not matter.

    Returns:
      Numbers that sum to 1, or zeros if all weights are 0.
    """
    rest, most = weights.get(ANY, 0.0), max(sizes.values())
    found = [
        # Relative to the largest, since n^(1/T) could overflow.
        weights.get(language, rest) * math.exp(math.log(n / most) / temperature)
        for language, n in sizes.items()
    ]
    total = sum(found)
    return [one / total for one in found] if total else found


def order_of(
    data: Any,
    by_set: Sequence[Sequence[Part]],
    batch_size: int,
    seed: int,
    others: Collection[str] = (),
) -> LanguageOrder:
    """The order of the examples of a stage's `data`, by language.

    Args:
      by_set: from `parts_of`.
      others: languages that may have weights, such as those of dev data.

    Raises:
      InputError: no example states its language, none of a data set is in a language
        that counts, a language with a weight does not occur, or a batch of one language
        would hold an example twice.
    """
    _check_names(data, {part.language for parts in by_set for part in parts}, others)
    sizes = [sum(len(part.numbers) for part in parts) for parts in by_set]
    chosen: list[Part] = []
    weights: list[float] = []
    for parts, own in zip(by_set, set_weights(data, sizes), strict=True):
        counts = {part.language: len(part.numbers) for part in parts}
        given = shares(counts, data.query_languages, data.language_temperature)
        if not any(given):
            raise InputError(
                "config.data.query_languages is"
                f" {dict(data.query_languages)!r}, but the queries are in"
                f" {', '.join(counts)}: no language that counts. Name one of them."
            )
        taken = [(p, own * s) for p, s in zip(parts, given, strict=True) if s > 0]
        chosen += [part for part, _ in taken]
        weights += [share for _, share in taken]
    one = data.batches_from == "language"
    if one:
        _check_sizes(chosen, batch_size)
    return LanguageOrder(chosen, batch_size, seed, weights=weights, one=one)


def _check_names(data: Any, found: set[str], others: Collection[str]) -> None:
    if found == {ANY}:
        asked = {name: data[name] for name in ("batches_from", "language_temperature")}
        said = ", ".join(f"data.{name} = {value!r}" for name, value in asked.items())
        raise InputError(
            f"config.{said} would have no effect: no example states its language. Add a"
            " column language to the rows, or leave these fields as they are."
        )
    unknown = set(data.query_languages) - found - {ANY, *others}
    if unknown:
        raise InputError(
            f"config.data.query_languages names {', '.join(sorted(unknown))}, but the"
            f" texts are in {', '.join(sorted(found))}. Name only these, or add texts."
        )


def _check_sizes(parts: Sequence[Part], batch_size: int) -> None:
    few = {p.language: len(p.numbers) for p in parts if len(p.numbers) < batch_size}
    if not few:
        return
    rest = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
    named = [f"{name} ({count:,})" for name, count in list(few.items())[:_SHOWN]]
    raise InputError(
        f"config.data.batches_from is 'language', but a batch has {batch_size:,}"
        f" examples, and fewer are in {', '.join(named)}{rest}: a query would be its"
        " own negative. Leave these languages out with config.data.query_languages ="
        f" { ({name: 0 for name in list(few)[:1]} | {ANY: 1})!r}, or lower"
        " config.batch_size."
    )
