"""NeuCLIR and HC4: news in Persian, Russian and Chinese, with graded judgements."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, parts, repository
from lsrjax.retrieval.tasks.repository import Repository
from lsrjax.retrieval.tasks.task import Task, judged_task

# As the collections name them, and as models and configs do.
LANGUAGES = {"fas": "fa", "rus": "ru", "zho": "zh"}
_MLIR = "mlir"
_PARTS = (*LANGUAGES.values(), _MLIR)


def _three(language: str) -> str:
    return next(three for three, two in LANGUAGES.items() if two == language)


def _files(folder: Repository, language: str, *patterns: str) -> list[pathlib.Path]:
    """The files of a language, or of all; patterns have {} for its three letters."""
    searched = [*LANGUAGES] if language == _MLIR else [_three(language)]
    return [
        path
        for three in searched
        for path in folder.files(*(one.format(three) for one in patterns))
    ]


def _queries(topics, language: str, source: str, fields) -> Iterator[tuple[str, str]]:
    """Id and text of each topic, in English or in the language of the documents.

    A topic has its wordings under `topics`: English, and translations by people or
    machines.
    """
    wanted = "eng" if source == "english" else _three(language)
    for path in topics:
        for where, topic in repository.objects(path):
            try:
                yield str(topic["topic_id"]), _wording(topic, wanted, source, fields)
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"{where} is no topic of NeuCLIR ({type(error).__name__}: {error}):"
                    f" topic_id and topics with lang {wanted!r}, source and"
                    f" {' and '.join(fields)} are needed."
                ) from error


def _wording(topic: dict[str, Any], wanted: str, source: str, fields) -> str:
    for one in topic["topics"]:
        by_people = one.get("source") == "human translation"
        if one["lang"] == wanted and (
            wanted == "eng" or by_people == (source == "human")
        ):
            return " ".join(one[field] for field in fields if one[field])
    return ""  # an error only if it is judged


@dataclasses.dataclass(frozen=True)
class CollectionOptions(options.Options):
    """The languages, and where the data is."""

    path: str = option("", "the folder of topics and judgements, as released")
    corpus: str = option("neuclir/neuclir1", "documents: hub id or folder")
    languages: tuple[str, ...] = option(
        (),
        "of the documents: fa, ru, zh, and mlir, all three at once; empty: each of the"
        " four",
    )
    query: str = option(
        "english",
        "queries in English, or in the documents' language as translated",
        choices=("english", "human", "machine"),
    )
    fields: tuple[str, ...] = option(
        ("topic_title", "topic_description"), "of a topic, joined to the query"
    )

    def problem(self) -> str | None:
        """Refuses a folder that is not named, and queries in no one language."""
        if not self.path:
            return "path is empty; give the folder of topics and judgements."
        if self.query != "english" and (not self.languages or _MLIR in self.languages):
            return (
                "query is not english, but mlir has no one language of documents; set"
                " languages to some of fa, ru, zh."
            )
        return None


class Neuclir:
    """NeuCLIR of TREC 2022 and 2023: English queries, by language and in all at once.

    `path` holds the files of TREC: 2022 `topics.*.jsonl` and `2022-qrels.LANG` or
    `2022-qrels.all`; 2023 `neuclir-2023-topics.*.jsonl` and `qrels.final.gains.LANG`
    (unpacked). The documents are neuclir/neuclir1 of the hub.
    """

    @dataclasses.dataclass(frozen=True)
    class Options(CollectionOptions):
        """Those of both collections, and the year."""

        year: int = option(2022, "of the track", choices=(2022, 2023))

    PATTERNS = {
        2022: (
            ("*topics.0720*.jsonl", "*2022*topics*.jsonl", "topics*.jsonl"),
            "2022-qrels.{}",
        ),
        2023: (("*2023-topics*.jsonl", "*2023*topics*.jsonl"), "*qrels.final.gains.{}"),
    }

    @staticmethod
    def parts(given) -> list:
        """One for each language, and one for all documents together."""
        return parts.each(given, "languages", _PARTS)

    @classmethod
    def load(cls, given) -> Task:
        """Reads topics and judgements, and the ids of the corpus."""
        topics, qrels = cls.PATTERNS[given.year]
        folder = Repository(given.path, "task.path")
        language = parts.the_only(given.languages, "languages")
        return _load(
            f"neuclir{given.year}/{language}",
            given,
            folder,
            folder.files(*topics, *(f"**/{one}" for one in topics)),
            _files(folder, language, qrels, f"**/{qrels}"),
            ("data/{}-*.jsonl", "{}/*docs*.jsonl"),
        )


class Hc4:
    """HC4: Common Crawl news with English topics, by language and in all at once.

    `path` is `resources/hc4` of hltcoe/HC4, `corpus` the folder that its script fills:
    `LANG/hc4_docs.jsonl`.
    """

    @dataclasses.dataclass(frozen=True)
    class Options(CollectionOptions):
        """Those of both collections."""

        corpus: str = option("hc4", "the folder with LANG/hc4_docs.jsonl")

    @staticmethod
    def parts(given) -> list:
        """One for each language, and one for all documents together."""
        return parts.each(given, "languages", _PARTS)

    @staticmethod
    def load(given) -> Task:
        """Reads topics and judgements of the test split, and the ids of the corpus."""
        folder = Repository(given.path, "task.path")
        language = parts.the_only(given.languages, "languages")
        return _load(
            f"hc4/{language}",
            given,
            folder,
            folder.files("test.topics*.jsonl"),
            _files(folder, language, "{}/test.qrels*.txt"),
            ("{}/hc4_docs.jsonl", "{}/*docs*.jsonl"),
        )


def _load(name, given, folder, topics, qrels, layout) -> Task:
    language = parts.the_only(given.languages, "languages")
    collection = Repository(given.corpus, "task.corpus")
    files = [
        (one, path)
        for one in (LANGUAGES.values() if language == _MLIR else [language])
        for path in _files(collection, one, *layout)
    ]
    corpus = documents.in_files([path for _, path in files])
    texts = corpus.texts
    assert isinstance(texts, documents.Texts)  # of files
    asked = _queries(topics, language, given.query, given.fields)
    return judged_task(
        name,
        corpus,
        ((key, text, language) for key, text in asked),
        repository.judgements_in(qrels),
        metrics=("nDCG@20", "AP", "R@1000", "R@100"),
        data={"topics": folder.facts(), "corpus": collection.facts()},
        query_language="en" if given.query == "english" else language,
        document_language=[files[texts.file(i)][0] for i in range(len(texts))],
    )
