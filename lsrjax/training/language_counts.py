"""How a stage's texts and tokens are divided among languages."""

import pathlib
from collections.abc import Iterator, Mapping

from lsrjax import json_files
from lsrjax.data.batching.loader import Batches
from lsrjax.data.batching.turns import Turns

FILE = "languages.json"
_NAMES = {"query": "queries", "document": "documents", "translation": "translations"}


def stated(batches: Batches | Turns) -> dict[str, dict[str, tuple[int, int]]]:
    """Texts and tokens of the first batches, by the name of the text and language.

    The batches are those that the shapes are fitted to, of some thousand examples: a
    small data set comes more than once. None of texts that are all in one language, or
    of unstated language.
    """
    return {
        name: dict(sorted(found.items(), key=lambda one: (-one[1][0], one[0])))
        for name, found in batches.by_language.items()
        if name in _NAMES and len(found) > 1
    }


def notes(batches: Batches | Turns) -> Iterator[str]:
    """A line for each kind of text: each language's share, and tokens of a text."""
    for name, found in stated(batches).items():
        total = sum(texts for texts, _ in found.values())
        each = (
            f"{language} {texts / total:.1%} ({tokens / texts:.1f} tokens)"
            for language, (texts, tokens) in found.items()
        )
        yield (
            f"  languages of the first batches ({total:,} {_NAMES[name]}, repeats"
            f" counted): {', '.join(each)}"
        )


def write(folder: pathlib.Path, batches: Batches | Turns) -> None:
    """Writes them to a stage's `languages.json`, for its report."""
    values = {
        name: {
            language: {"texts": texts, "tokens": tokens}
            for language, (texts, tokens) in found.items()
        }
        for name, found in stated(batches).items()
    }
    if values:
        json_files.write_json(folder / FILE, values)


def rows(values: Mapping) -> Iterator[tuple[str, str, str, str, str]]:
    """The rows of a table, from what `write` has written.

    Yields:
      Text, language, its share of the texts and of the tokens, and tokens of a text.
    """
    for name, found in values.items():
        all_texts = sum(int(one["texts"]) for one in found.values())
        all_tokens = sum(int(one["tokens"]) for one in found.values())
        for language, one in found.items():
            texts, tokens = int(one["texts"]), int(one["tokens"])
            yield (
                _NAMES.get(name, name),
                language,
                f"{texts / all_texts:.1%}",
                f"{tokens / all_tokens:.1%}",
                f"{tokens / texts:.1f}",
            )
