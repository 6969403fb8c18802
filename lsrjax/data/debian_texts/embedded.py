"""The data set that ships with the package: Debian descriptions in 13 languages.

Its data card is `README.md`; `make.py` made it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from lsrjax.data.examples import ENGLISH, Group, InMemory, Pair, Text

_FOLDER = Path(__file__).resolve().parent
ENGLISH_TOKENIZER = _FOLDER / "english_tokenizer"
MULTILINGUAL_TOKENIZER = _FOLDER / "multilingual_tokenizer"
SPLITS = ("train", "dev", "test")
LANGUAGES = (
    ("en",)
    + ("da", "de", "es", "fr", "it", "ja", "ko", "pl", "pt", "ru", "uk", "zh")
)  # fmt: skip


def path() -> Path:
    """Folder of the embedded data set: Parquet files, tokenizers, data card."""
    return _FOLDER


@dataclass(frozen=True)
class Split:
    """One split of the embedded data set.

    Attributes:
        languages: ISO 639-1 codes, English first, then sorted.
        rows: columns id, package, group, lang, title, text; equally long lists in the
            order of (lang, package, id).
        titles: language -> id -> title.
        texts: language -> id -> text.
    """

    name: str
    languages: tuple[str, ...]
    rows: dict[str, list[str]]
    titles: dict[str, dict[str, str]]
    texts: dict[str, dict[str, str]]

    def ids(self, lang: str) -> list[str]:
        """Ids of a language in the order of the rows; ValueError if it is missing."""
        if lang not in self.titles:
            raise ValueError(
                f"the {self.name} split has no language {lang!r}; it has "
                f"{', '.join(self.languages)}"
            )
        return list(self.titles[lang])


def load(split: str) -> Split:
    """Reads one split, "train", "dev" or "test", into memory; otherwise ValueError."""
    if split not in SPLITS:
        raise ValueError(
            f"the embedded data has no split {split!r}; choose one of "
            f"{', '.join(SPLITS)}"
        )
    rows = pq.read_table(_FOLDER / f"{split}.parquet").to_pydict()
    languages = tuple(sorted(set(rows["lang"]), key=lambda lang: (lang != "en", lang)))
    titles: dict[str, dict[str, str]] = {lang: {} for lang in languages}
    texts: dict[str, dict[str, str]] = {lang: {} for lang in languages}
    for row_id, lang, title, text in zip(
        rows["id"], rows["lang"], rows["title"], rows["text"], strict=True
    ):
        titles[lang][row_id] = title
        texts[lang][row_id] = text
    return Split(split, languages, rows, titles, texts)


def examples(kind: str, split: str, fields: Sequence[str] = ("title", "text")):
    """The data set's examples: pairs of translations, or title -> text.

    Args:
      kind: "pair" (English and a translation of the same title or text) or "group"
        (query: a title, positive: the text, each in all of its languages).
      fields: for pairs: "title", "text" or both.
    """
    data = load(split)
    wordings = {"title": data.titles, "text": data.texts}
    if kind == "pair":
        return InMemory(
            [
                Pair(f"{name}/{field}/{language}", english, translation, language)
                for field in fields
                for language in data.languages
                if language != ENGLISH
                for name, translation in wordings[field][language].items()
                if (english := wordings[field][ENGLISH].get(name))
            ],
            "embedded",
        )
    return InMemory(
        [
            Group(
                id=name,
                query=_all_languages(data, "titles", name),
                positives=[_all_languages(data, "texts", name)],
                negatives=[],
            )
            for name in data.texts[ENGLISH]
        ],
        "embedded",
    )


def _all_languages(data, field: str, name: str) -> Text:
    by_language = getattr(data, field)
    return {
        language: by_language[language][name]
        for language in data.languages
        if name in by_language[language]
    }
