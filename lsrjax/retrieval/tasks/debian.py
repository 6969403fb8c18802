"""The embedded texts: titles of Debian's packages look for their descriptions."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from lsrjax import options
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ENGLISH, Group
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks.task import Task


class Debian:
    """The embedded texts of 13 languages; needs no files."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The language of the documents, and the split."""

        documents: str = option(
            "english",
            "english, or mixed: each document in one of its languages",
            choices=("english", "mixed"),
        )
        split: str = option("test", "test, dev or train", choices=embedded.SPLITS)
        seed: int = option(0, "draws the languages of mixed documents", low=0)
        languages: tuple[str, ...] = option((), "of the queries; empty: all 13")

    @staticmethod
    def parts(given: "Debian.Options") -> list["Debian.Options"]:
        """One: all queries search the same corpus."""
        return [given]

    @staticmethod
    def load(given: "Debian.Options") -> Task:
        """The queries of each language over the documents of all groups."""
        groups = list(embedded.examples("group", given.split))
        known = languages_of(groups)
        if unknown := [one for one in given.languages if one not in known]:
            raise InputError(
                f"task.languages has {unknown[0]!r}; there are {', '.join(known)}."
            )
        task = (
            cross_lingual(groups, known)
            if given.documents == "english"
            else multilingual(groups, known, given.seed)
        )
        if given.languages:
            chosen = enumerate(task.languages)
            task = task.only([i for i, one in chosen if one in given.languages])
        file = embedded.path() / f"{given.split}.parquet"
        data = {
            "source": "embedded",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "split": given.split,
            "documents": len(task.corpus),
            "queries": len(task.queries),
            "judgements": len(task.queries),
            "mean": f"over all languages but {ENGLISH}",
        }
        name = f"debian/{given.documents}"
        return dataclasses.replace(task, name=name, data=data, apart=(ENGLISH,))


def languages_of(groups: Sequence[Group]) -> list[str]:
    """The languages of queries, English first."""
    found = {language for group in groups for language in group.query}
    return sorted(found, key=lambda language: (language != ENGLISH, language))


def cross_lingual(groups: Sequence[Group], languages: Sequence[str]) -> Task:
    """Queries in every language against the English documents."""
    corpus = [(ENGLISH, group.positives[0][ENGLISH]) for group in groups]
    return _task(groups, languages, corpus)


def multilingual(groups: Sequence[Group], languages: Sequence[str], seed: int) -> Task:
    """The same queries against a corpus in which each document is in one language.

    The language of a document is drawn uniformly from its own.
    """
    rng = np.random.default_rng(seed)
    corpus = []
    for group in groups:
        texts = group.positives[0]
        own = [language for language in languages if language in texts]
        language = own[rng.integers(len(own))]
        corpus.append((language, texts[language]))
    return _task(groups, languages, corpus)


def _task(groups, languages, texts) -> Task:
    """Queries of all groups over their documents; equal texts are one document.

    `texts` are the languages and wordings of the groups' documents.
    """
    corpus: dict[str, int] = {}
    ids: dict[str, str] = {}
    spoken: dict[str, str] = {}
    for group, (language, text) in zip(groups, texts, strict=True):
        corpus.setdefault(text, len(corpus))
        ids.setdefault(text, group.id)
        spoken.setdefault(text, language)
    asked = [
        (f"{group.id}/{language}", group.query[language], language, corpus[text])
        for language in languages
        for group, (_, text) in zip(groups, texts, strict=True)
        if language in group.query
    ]
    keys, wordings, of, relevant = zip(*asked, strict=True)
    return Task(
        wordings,
        of,
        list(corpus),
        relevant,
        query_ids=keys,
        document_ids=[*ids.values()],
        document_language=[*spoken.values()],
    )
