"""Data sets of the hub in the layout of mteb: corpus, queries and qrels of a language.

Their configurations are LANGUAGE-corpus, LANGUAGE-queries and LANGUAGE-qrels; in a data
set of one language corpus, queries, and default or qrels.
"""

import dataclasses
import re

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, parts, repository
from lsrjax.retrieval.tasks.repository import Repository
from lsrjax.retrieval.tasks.task import Task, judged_task
from lsrjax.retrieval.tasks.wikipedia import Miracl


class Hub:
    """Any retrieval data set of mteb on the hub, by its id."""

    LANGUAGES: tuple[str, ...] = ()

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The data set, and what is read of it."""

        path: str = option("", "a data set of the hub, mteb/NAME, or a folder")
        languages: tuple[str, ...] = option(
            (), "as its configurations begin; empty: it has one language"
        )
        split: str = option("test", "of the judgements")
        metrics: tuple[str, ...] = option(
            ("nDCG@10", "R@100"), "the main one first; any that ir_measures knows"
        )

        def problem(self) -> str | None:
            """Refuses a data set that is not named."""
            return None if self.path else "path is empty; name a data set, mteb/NAME."

    @classmethod
    def parts(cls, given) -> list:
        """One for each language."""
        known = cls.LANGUAGES or given.languages or ("all",)
        return parts.each(given, "languages", known)

    @staticmethod
    def load(given) -> Task:
        """Reads queries and judgements of a language, and the ids of its corpus."""
        language = parts.the_only(given.languages, "languages")
        data = Repository(given.path, "task.path")
        before = "" if language == "all" else f"{language}-"
        # A split that only the judgements have: queries and corpus have one.
        judged = repository.judgements_in(_judged(data, before, given.split))
        queries = documents.queries(data.table(f"{before}queries", given.split))
        corpus = documents.in_files(data.table(f"{before}corpus", given.split))
        name = re.split(r"[/@]", given.path.rstrip("/"))[-1]
        return judged_task(
            f"{name}/{language}",
            corpus,
            ((key, text, language) for key, text in queries),
            judged,
            metrics=given.metrics,
            data=data.facts() | {"split": given.split},
            document_language=language,
        )


def _judged(data: Repository, before: str, split: str):
    if before:
        return data.table(f"{before}qrels", split)
    try:
        return data.table("qrels", split)
    except InputError:
        return data.table("default", split)


class MiraclHard(Hub):
    """MIRACL with hard negatives: the corpus is what three retrievers find."""

    LANGUAGES = Miracl.LANGUAGES

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The languages, and where the data is."""

        path: str = option(
            "mteb/MIRACLRetrievalHardNegatives", "a data set of the hub, or a folder"
        )
        languages: tuple[str, ...] = option((), "empty: all 18")
        split: str = option("dev", "of the judgements")
        metrics: tuple[str, ...] = option(("nDCG@10", "R@100"), "the main one first")
