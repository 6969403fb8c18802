"""MKQA: questions in 26 languages whose answers stand in English passages."""

import dataclasses
import functools
import unicodedata
from collections.abc import Sequence

from lsrjax import options
from lsrjax.data.reading.ids import as_id
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, repository
from lsrjax.retrieval.tasks.repository import Repository
from lsrjax.retrieval.tasks.task import Task


class Mkqa:
    """MKQA over the passages of Natural Questions, as in the paper of BGE-M3.

    A passage is relevant if it holds an answer, word by word; the metric, Success@100,
    is there called recall. Chen et al., "M3-Embedding", 2024. (`hub` with
    mteb/MKQARetrieval is another task: its documents are the answers.)
    """

    LANGUAGES = (
        *("en", "ar", "fi", "ja", "ko", "ru", "es", "sv", "he", "th", "da", "de", "fr"),
        *("it", "nl", "pl", "pt", "hu", "vi", "ms", "km", "no", "tr", "zh_cn", "zh_hk"),
        "zh_tw",
    )

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The languages, and where the data is."""

        path: str = option(
            "", "the folder of the unpacked MKQA_test-data.zip of Shitao/bge-m3-data"
        )
        corpus: str = option("BeIR/nq", "passages: a data set of the hub, or a folder")
        languages: tuple[str, ...] = option((), "of the questions; empty: all 26")

        def problem(self) -> str | None:
            """Refuses a folder that is not named."""
            if not self.path:
                return "path is empty; give the folder with LANGUAGE.jsonl."
            return None

    @staticmethod
    def parts(given: "Mkqa.Options") -> list["Mkqa.Options"]:
        """One: all languages search the same passages."""
        return [given]

    @classmethod
    def load(cls, given: "Mkqa.Options") -> Task:
        """Reads questions and answers, and the ids of the passages."""
        folder = Repository(given.path, "task.path")
        passages = Repository(given.corpus, "task.corpus")
        keys, queries, languages, answers = [], [], [], []
        for language in given.languages or cls.LANGUAGES:
            for where, row in repository.objects(folder.files(f"{language}.jsonl")[0]):
                try:
                    keys.append(f"{language}/{as_id(row['id'], where)}")
                    queries.append(str(row["question"]))
                    answers.append([_words(str(one)) for one in row["answers"]])
                except (KeyError, TypeError) as error:
                    raise InputError(
                        f"{where} is no question of MKQA ({type(error).__name__}:"
                        f" {error}): id, question and answers are needed."
                    ) from error
                languages.append(language)
        corpus = documents.in_files(passages.table("corpus", "corpus"))
        words = functools.lru_cache(2**16)(_words)
        return Task(
            queries,
            languages,
            corpus.texts,
            [],
            name="mkqa",
            query_ids=keys,
            document_ids=corpus.ids,
            metrics=("Success@100", "Success@20"),
            data={
                "questions": folder.facts(),
                "corpus": passages.facts(),
                "documents": len(corpus),
                "queries": len(keys),
            },
            judge=lambda query, text: int(_holds_one(words(text), answers[query])),
            document_language="en",
        )


def _words(text: str) -> tuple[str, ...]:
    """Words of letters, digits and marks, lower-cased, and single other signs.

    The tokens of DPR's `SimpleTokenizer`, by which it looks for answers.
    """
    import regex  # as transformers does

    text = unicodedata.normalize("NFD", text)
    found = regex.findall(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", text)
    return tuple(word.lower() for word in found)


def _holds_one(text: tuple[str, ...], answers: Sequence[tuple[str, ...]]) -> bool:
    return any(
        answer == text[start : start + len(answer)]
        for answer in answers
        if answer
        for start in range(len(text) - len(answer) + 1)
    )
