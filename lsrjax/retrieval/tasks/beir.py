"""BEIR: folders of one's own, and the data sets of the hub."""

import dataclasses

from lsrjax import options
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, parts, repository
from lsrjax.retrieval.tasks.repository import Repository
from lsrjax.retrieval.tasks.task import Task, judged_task

# Thakur et al., "BEIR", NeurIPS 2021: the public data sets of its zero-shot table.
PUBLIC = (
    *("trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana"),
    *("webis-touche2020", "quora", "dbpedia-entity", "scidocs", "fever"),
    *("climate-fever", "scifact"),
)
_MORE = ("msmarco",)


class Beir:
    """Your own folder: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The folder, and what is read of it."""

        path: str = option(
            "", "the folder; with {language} in it, one for each of the languages"
        )
        split: str = option("test", "the judgements are qrels/SPLIT.tsv")
        languages: tuple[str, ...] = option(
            ("all",), "of the queries: the name of their results"
        )
        document_language: str = option(
            "",
            "of the documents, which a model needs that encodes each text in its own;"
            " empty: that of a path with {language}",
        )
        own_ids: bool = option(
            False, "a document with the id of the query is no hit, as on BEIR itself"
        )
        metrics: tuple[str, ...] = option(
            ("nDCG@10", "R@100"), "the main one first; any that ir_measures knows"
        )

        def problem(self) -> str | None:
            """Refuses a folder that is not named."""
            if not self.path:
                return "path is empty; give the folder with corpus.jsonl."
            if "{language}" not in self.path and len(self.languages) > 1:
                return (
                    f"languages are {', '.join(self.languages)}, but path has no"
                    " {language}. Write it where the folders' names differ."
                )
            return None

    @staticmethod
    def parts(given: "Beir.Options") -> list["Beir.Options"]:
        """One for each language."""
        return parts.each(given, "languages", (), more=True)

    @staticmethod
    def load(given: "Beir.Options") -> Task:
        """Reads queries and judgements, and the ids of the corpus."""
        language = parts.the_only(given.languages, "languages")
        path = given.path.replace("{language}", language)
        folder = Repository(path, "task.path")
        corpus = folder.files("corpus.jsonl", "corpus.parquet", "corpus.tsv")
        queries = folder.files("queries.jsonl", "queries.parquet", "queries.tsv")
        names = (f"qrels/{given.split}", f"qrels.{given.split}", "qrels")
        judged = folder.files(
            *(f"{name}.{end}" for name in names for end in ("tsv", "txt", "trec"))
        )
        return judged_task(
            f"beir/{language}",
            documents.in_files(corpus),
            ((key, text, language) for key, text in documents.queries(queries)),
            repository.judgements_in(judged),
            metrics=given.metrics,
            data=folder.facts() | {"split": given.split},
            own_ids=given.own_ids,
            document_language=given.document_language
            or language * ("{language}" in given.path),
        )


class BeirHub:
    """BEIR's data sets as the hub has them: OWNER/NAME and OWNER/NAME-qrels."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The data sets, and where they are."""

        path: str = option(
            "BeIR", "their owner on the hub, or the folder with clones of them"
        )
        names: tuple[str, ...] = option(
            (), f"data sets; empty: the thirteen public ones; also {', '.join(_MORE)}"
        )
        split: str = option("", "empty: test, of msmarco validation")

    @staticmethod
    def parts(given: "BeirHub.Options") -> list["BeirHub.Options"]:
        """One for each data set."""
        return parts.each(given, "names", PUBLIC, more=True)

    @staticmethod
    def load(given: "BeirHub.Options") -> Task:
        """Reads queries and judgements, and the ids of the corpus."""
        name = parts.the_only(given.names, "names")
        split = given.split or ("validation" if name == "msmarco" else "test")
        texts = Repository(f"{given.path}/{name}", "task.path")
        judged = Repository(f"{given.path}/{name}-qrels", "task.path")
        queries = documents.queries(texts.table("queries", "queries"))
        corpus = documents.in_files(texts.table("corpus", "corpus"))
        return judged_task(
            f"beir/{name}",
            corpus,
            ((key, text, "en") for key, text in queries),
            repository.judgements_in(
                judged.files(f"{split}.tsv", f"qrels/{split}.tsv")
            ),
            metrics=("nDCG@10", "R@100"),
            data={"texts": texts.facts(), "qrels": judged.facts(), "split": split},
            # As in the package beir; the queries of ArguAna are documents.
            own_ids=True,
            document_language="en",
        )


class NanoBeir:
    """NanoBEIR: 50 queries of each of BEIR's data sets, in any language."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The data sets, and where they are."""

        dataset_id: dict[str, str] = option(
            {"en": "sentence-transformers/NanoBEIR-en"},
            "by language: a data set of the hub, or a folder, with a split for each"
            " name; or, with {name} in it, one for each: zeta-alpha-ai/{name}",
        )
        names: tuple[str, ...] = option((), "such as ('NanoMSMARCO',); empty: all")

        def problem(self) -> str | None:
            """Refuses options without data sets."""
            return None if self.dataset_id else "dataset_id is empty; name data sets."

    NAMES = tuple(
        f"Nano{name}"
        for name in (
            *("ArguAna", "ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA"),
            *("MSMARCO", "NFCorpus", "NQ", "QuoraRetrieval", "SCIDOCS", "SciFact"),
            "Touche2020",
        )
    )

    @classmethod
    def parts(cls, given: "NanoBeir.Options") -> list["NanoBeir.Options"]:
        """One for each language and data set."""
        return [
            dataclasses.replace(one, dataset_id={language: name})
            for language, name in given.dataset_id.items()
            for one in parts.each(given, "names", cls.NAMES, more=True)
        ]

    @staticmethod
    def load(given: "NanoBeir.Options") -> Task:
        """Reads a data set in one language."""
        language = parts.the_only(given.dataset_id, "dataset_id")
        name = parts.the_only(given.names, "names")
        path = given.dataset_id[language]
        data = Repository(path.replace("{name}", name), "task.dataset_id")
        split = "train" if "{name}" in path else name
        queries = documents.queries(data.table("queries", split))
        judged = repository.judgements_in(data.table("qrels", split))
        corpus = documents.in_files(data.table("corpus", split))
        return judged_task(
            f"nanobeir/{language}/{name}",
            corpus,
            ((key, text, language) for key, text in queries),
            judged,
            metrics=("nDCG@10", "RR@10", "R@100"),
            data=data.facts() | {"split": split},
            document_language=language,
        )
