"""CLEF's ad-hoc tasks of 2000 to 2009: newspapers, in the SGML of TREC."""

import dataclasses
import html
import pathlib
import re
from collections.abc import Iterator, Sequence

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, parts, repository
from lsrjax.retrieval.tasks.repository import Repository
from lsrjax.retrieval.tasks.task import Task, judged_task

_DOCUMENT = re.compile(r"<DOC>(.*?)</DOC>", re.DOTALL | re.IGNORECASE)
_NAME = re.compile(r"<DOCNO>(.*?)</DOCNO>", re.DOTALL | re.IGNORECASE)
_TOPIC = re.compile(r"<top(?:ic)?\b[^>]*>(.*?)</top(?:ic)?>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(
    r"<(?:num|identifier)>\s*(?:Number:)?(.*?)</(?:num|identifier)>",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"<[^>]*>")
# Fields of a document that are no text of it.
_ASIDE = re.compile(
    r"<(DOCID|DATE|PAGE|LENGTH|TYPE|ACCOUNT|EDITION|SECTION)\b[^>]*>.*?</\1>",
    re.DOTALL | re.IGNORECASE,
)


class Clef:
    """CLEF: queries of a language look for newspaper articles of another one.

    ELDA sells the collections: the folder has `documents/LANG/` with files of `<DOC>`,
    `topics/LANG*` with `<top>` or `<topic>`, and `qrels/LANG*`, as TREC writes them.
    """

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The folder, and what is read of it."""

        path: str = option("", "the folder with documents/, topics/ and qrels/")
        languages: tuple[str, ...] = option(
            (), "of the documents, such as ('de', 'fi'); each has a folder"
        )
        queries: str = option("en", "the language of the topics; own: the documents'")
        fields: tuple[str, ...] = option(
            ("title", "desc"), "of a topic, joined to the query; maybe with narr"
        )
        encoding: str = option("utf-8", "of documents and topics, such as latin-1")

        def problem(self) -> str | None:
            """Refuses a folder or languages that are not named."""
            if not self.path:
                return "path is empty; give the folder of the collection."
            if not self.languages:
                return "languages is empty; name those of documents/."
            return None

    @staticmethod
    def parts(given: "Clef.Options") -> list["Clef.Options"]:
        """One for each language of documents."""
        return parts.each(given, "languages", (), more=True)

    @staticmethod
    def load(given: "Clef.Options") -> Task:
        """Reads topics, judgements and all documents of a language into memory."""
        language = parts.the_only(given.languages, "languages")
        asked = language if given.queries == "own" else given.queries
        folder = Repository(given.path, "task.path")
        files = folder.files(f"documents/{language}/**/*")
        topics = folder.files(f"topics/{asked}*")
        qrels = folder.files(f"qrels/{language}*")
        return judged_task(
            f"clef/{asked}-{language}",
            documents.in_memory(_articles(files, given.encoding), f"clef/{language}"),
            (
                (key, text, language)
                for key, text in _topics(topics, given.fields, given.encoding)
            ),
            repository.judgements_in(qrels),
            metrics=("AP", "nDCG@10", "R@100"),
            data=folder.facts(),
            query_language=asked,
            document_language=language,
        )


def _text(path: pathlib.Path, encoding: str) -> str:
    try:
        return path.read_text(encoding)
    except (OSError, UnicodeDecodeError, LookupError) as error:
        raise InputError(
            f"{path} cannot be read as {encoding} ({error}). Set task.encoding, for old"
            " releases latin-1, and unpack files."
        ) from error


def _plain(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def _articles(
    files: Sequence[pathlib.Path], encoding: str
) -> Iterator[tuple[str, str]]:
    for path in files:
        found = 0
        for match in _DOCUMENT.finditer(_text(path, encoding)):
            name = _NAME.search(match[1])
            if name is None:
                raise InputError(f"{path}: a <DOC> has no <DOCNO>: {match[1][:80]!r}.")
            found += 1
            rest = match[1][: name.start()] + match[1][name.end() :]
            yield name[1].strip(), _plain(_ASIDE.sub(" ", rest))
        if not found:
            raise InputError(f"{path} has no <DOC>…</DOC>. Is it packed? Unpack it.")


def _topics(
    files: Sequence[pathlib.Path], fields: Sequence[str], encoding: str
) -> Iterator[tuple[str, str]]:
    """Id and text of topics: `<DE-title>` of 2000 to 2007, later `<title>`."""
    for path in files:
        for match in _TOPIC.finditer(_text(path, encoding)):
            number = _NUMBER.search(match[1])
            if number is None:
                raise InputError(f"{path}: a topic has no number: {match[1][:80]!r}.")
            parts_of = (
                re.search(
                    rf"<(?:\w\w-)?({field}\w*)>(.*?)</(?:\w\w-)?\1>",
                    match[1],
                    re.DOTALL | re.IGNORECASE,
                )
                for field in fields
            )
            text = " ".join(_plain(part[2]) for part in parts_of if part)
            yield number[1].strip(), text
