"""MLDR: long documents in 13 languages."""

import dataclasses

from lsrjax import options
from lsrjax.data.reading.ids import as_id
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, parts, repository
from lsrjax.retrieval.tasks.repository import Repository
from lsrjax.retrieval.tasks.task import Task, judged_task


class Mldr:
    """MLDR: questions about paragraphs of long documents, of 13 languages."""

    LANGUAGES = (
        *("ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "pt", "ru", "th"),
        "zh",
    )

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The languages, and where the data is."""

        path: str = option("Shitao/MLDR", "a data set of the hub, or a folder")
        languages: tuple[str, ...] = option((), "empty: all 13")
        split: str = option("test", "dev or test", choices=("dev", "test", "train"))

    @classmethod
    def parts(cls, given: "Mldr.Options") -> list["Mldr.Options"]:
        """One for each language."""
        return parts.each(given, "languages", cls.LANGUAGES)

    @staticmethod
    def load(given: "Mldr.Options") -> Task:
        """Reads the queries of a language, and the ids of its corpus.

        The judgements are the `positive_passages` of each query; only their ids count.
        """
        language = parts.the_only(given.languages, "languages")
        data = Repository(given.path, "task.path")
        inside = f"mldr-v1.0-{language}"
        (asked,) = data.files(f"{inside}/{given.split}.jsonl")
        queries, judged = [], {}
        for where, row in repository.objects(asked):
            try:
                key, text = as_id(row["query_id"], where), row["query"]
                relevant = [
                    as_id(one["docid"], where) for one in row["positive_passages"]
                ]
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"{where} is no query of MLDR ({type(error).__name__}: {error}):"
                    " query_id, query and positive_passages with docid are needed."
                ) from error
            queries.append((key, str(text), language))
            judged[key] = dict.fromkeys(relevant, 1.0)
        return judged_task(
            f"mldr/{language}",
            documents.in_files(data.files(f"{inside}/corpus.jsonl")),
            queries,
            judged,
            metrics=("nDCG@10", "R@100"),
            data=data.facts() | {"split": given.split},
            document_language=language,
        )
