"""MIRACL and Mr. TyDi: passages of Wikipedia, a corpus for each language."""

import dataclasses

from lsrjax import options
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, parts, repository
from lsrjax.retrieval.tasks.repository import Repository
from lsrjax.retrieval.tasks.task import Task, judged_task


class Miracl:
    """MIRACL: questions of native speakers in 18 languages."""

    LANGUAGES = (
        *("ar", "bn", "de", "en", "es", "fa", "fi", "fr", "hi"),
        *("id", "ja", "ko", "ru", "sw", "te", "th", "yo", "zh"),
    )

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The languages, and where the data is."""

        path: str = option("miracl/miracl", "topics and judgements: hub id or folder")
        corpus: str = option("miracl/miracl-corpus", "passages: hub id or folder")
        languages: tuple[str, ...] = option((), "empty: all 18")
        split: str = option("dev", "dev or train; the others have no public judgements")

    @classmethod
    def parts(cls, given: "Miracl.Options") -> list["Miracl.Options"]:
        """One for each language."""
        return parts.each(given, "languages", cls.LANGUAGES)

    @staticmethod
    def load(given: "Miracl.Options") -> Task:
        """Reads topics and judgements of a language, and the ids of its corpus.

        The Korean corpus and judgements have ids twice; as in mteb and FlagEmbedding,
        which read them into dictionaries, the last one counts.
        """
        language = parts.the_only(given.languages, "languages")
        asked = Repository(given.path, "task.path")
        passages = Repository(given.corpus, "task.corpus")
        inside, tail = f"miracl-v1.0-{language}", f"{language}-{given.split}.tsv"
        topics = asked.files(f"{inside}/topics/topics.miracl-v1.0-{tail}")
        qrels = asked.files(f"{inside}/qrels/qrels.miracl-v1.0-{tail}")
        corpus = passages.files(f"miracl-corpus-v1.0-{language}/docs-*.jsonl")
        return judged_task(
            f"miracl/{language}",
            documents.in_files(corpus, last_counts=True),
            ((key, text, language) for key, text in repository.topics(topics[0])),
            repository.judgements_in(qrels, last_counts=True),
            metrics=("nDCG@10", "R@100"),
            data=_facts(asked, passages, given.split),
            document_language=language,
        )


class MrTydi:
    """Mr. TyDi: questions of native speakers in 11 languages."""

    LANGUAGES = {
        "ar": "arabic",
        "bn": "bengali",
        "en": "english",
        "fi": "finnish",
        "id": "indonesian",
        "ja": "japanese",
        "ko": "korean",
        "ru": "russian",
        "sw": "swahili",
        "te": "telugu",
        "th": "thai",
    }

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The languages, and where the data is."""

        path: str = option("castorini/mr-tydi", "topics and judgements: id or folder")
        corpus: str = option("castorini/mr-tydi-corpus", "passages: hub id or folder")
        languages: tuple[str, ...] = option((), "empty: all 11")
        split: str = option("test", "test, dev or train")

    @classmethod
    def parts(cls, given: "MrTydi.Options") -> list["MrTydi.Options"]:
        """One for each language."""
        return parts.each(given, "languages", tuple(cls.LANGUAGES))

    @classmethod
    def load(cls, given: "MrTydi.Options") -> Task:
        """Reads topics and judgements of a language, and the ids of its corpus."""
        language = parts.the_only(given.languages, "languages")
        asked = Repository(given.path, "task.path")
        passages = Repository(given.corpus, "task.corpus")
        inside = f"mrtydi-v1.1-{cls.LANGUAGES[language]}"
        # The packed releases hold the same files as topic.SPLIT.tsv.
        topics = asked.files(
            f"{inside}/ir-format-data/topics.{given.split}.txt",
            f"{inside}/topic.{given.split}.tsv",
        )
        qrels = asked.files(
            f"{inside}/ir-format-data/qrels.{given.split}.txt",
            f"{inside}/qrels.{given.split}.txt",
        )
        corpus = passages.files(
            f"{inside}/corpus.jsonl", f"{inside}/collection/docs.jsonl"
        )
        return judged_task(
            f"mr_tydi/{language}",
            documents.in_files(corpus),
            ((key, text, language) for key, text in repository.topics(topics[0])),
            repository.judgements_in(qrels),
            metrics=("RR@100", "R@100", "nDCG@10"),
            data=_facts(asked, passages, given.split),
            document_language=language,
        )


def _facts(asked: Repository, passages: Repository, split: str) -> dict:
    return {"topics": asked.facts(), "corpus": passages.facts(), "split": split}
