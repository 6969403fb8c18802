"""The texts of a corpus in order, each with its number, read by ranges."""

import ast
import hashlib
import itertools
import os
import pathlib
from typing import Any

from lsrjax import paths
from lsrjax.data.examples import ANY
from lsrjax.data.reading import corpus, plain
from lsrjax.data.reading.texts import QUERY_FIELDS, TEXT_FIELDS, PlainTexts
from lsrjax.errors import InputError


class NumberedTexts:
    """Ids and texts by number, from what `data.corpus` accepts, or a .txt file.

    Memory: 40 bytes a text while the ids are compared, 24 after it; of a .txt file,
    whose ids are the numbers of its lines from 0, none.

    Attributes:
      languages: that the files are stated to be in; `*`: there is none.
      facts: JSON values that change with the texts: names, number and digest.
    """

    def __init__(self, files: str, field: str, role: str = "document"):
        """Indexes the files.

        Args:
          files: a path, folder or pattern, or a Python literal: a list of them or
            another value of `data.corpus`.
          field: the flag, for messages.
          role: "query" or "document": the text of a row that has both.

        Raises:
          InputError: no such file, no text in it, a broken one, an id with two texts
            (names both places), or a text in several languages.
        """
        local = pathlib.Path(paths.local(files, field))
        self._lines: PlainTexts | None = None
        self._documents: corpus.Documents | None = None
        self.languages: tuple[str, ...] = (ANY,)
        if plain.ending(local) == ".txt" and local.is_file():
            self._lines = PlainTexts(local)
            found = [local]
        elif plain.ending(local) == ".txt" and "*" not in files:
            raise InputError(f"{local} is not a file (from {pathlib.Path.cwd()}).")
        else:
            places = _places(files, field)
            if not corpus.parse(places):
                raise InputError(f"{field} is {files!r}, which names no file of texts.")
            fields = QUERY_FIELDS if role == "query" else TEXT_FIELDS
            read = corpus.Corpus(places, field, fields=fields)
            self._documents = _one_language(read, field)
            self.languages = tuple(read.languages)
            found = corpus.paths(places, field)
        if not len(self):
            raise InputError(f"{field} {files} has no text.")
        self.facts = {
            "texts": ", ".join(path.name for path in found) or files,
            "number": len(self),
            "digest": _digest(found),
        }

    def __len__(self) -> int:
        return len(self._lines or self._documents or ())

    def read(self, first: int, end: int) -> tuple[list[str], list[str]]:
        """Ids and texts of a range, possibly empty; InputError if one is broken."""
        ids, texts, _ = self.stated(first, end)
        return ids, texts

    def stated(self, first: int, end: int) -> tuple[list[str], list[str], list[str]]:
        """As `read`, with each text's language; `*` if it is not stated."""
        if self._lines is not None:
            found = [(key, text, ANY) for key, text in self._lines.read(first, end)]
        else:
            assert self._documents is not None
            items = map(self._documents.item, range(first, end))
            found = [
                (key, text, language)
                for key, by_language in items
                for language, text in itertools.islice(by_language.items(), 1)
            ]
        ids, texts, spoken = ([one[i] for one in found] for i in range(3))
        return ids, texts, spoken


def _places(files: str, field: str) -> Any:
    if not files.startswith(("[", "{")) or os.path.exists(files):
        return files
    try:
        places = ast.literal_eval(files)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(
            f"{field}: {files!r} is no Python literal ({error})."
        ) from error
    if complaint := corpus.problem(places):
        raise InputError(f"{field} is {files!r}; {complaint}.")
    return places


def _one_language(found: corpus.Corpus, field: str) -> corpus.Documents:
    documents = found.documents
    if len(found.languages) > 1:
        for place in range(len(documents)):
            key, text = documents.item(place)
            if len(text) > 1:
                raise InputError(
                    f"{field}: the text {key!r} is there in {', '.join(text)}. Encode"
                    " one language at a time, each to its own --out."
                )
    return documents


def _digest(found: list[pathlib.Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in found:
        with open(path, "rb") as file:
            own = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        digest.update(own.digest())
    return digest.hexdigest()
