"""Formats of one or two lines of JSON for each text, appended as texts are encoded.

A format makes a text's lines of a `Row`, whose values are JSON already: writing keeps
up with a device that encodes thousands of texts a second.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.vector_formats.jsonl import shortest
from lsrjax.retrieval.vector_formats.vectors import SPARSE, About, Matrix


@dataclasses.dataclass(frozen=True)
class Row:
    """A text's vector as pieces of JSON; names and id as they are if `Lines.plain`.

    Attributes:
      number: of the text among all, from 0.
      id: of the text.
      embedding: the list of numbers, or of such lists for tokens; empty for terms.
      columns: of the terms, in ascending order.
      names: of the terms, each with its colon, or a blank if `Lines.plain`.
      weights: of the terms.
      strongest: the places of the terms, the largest weight first.
    """

    number: int
    id: str
    embedding: str = ""
    columns: Sequence[int] = ()
    names: Sequence[str] = ()
    weights: Sequence[str] = ()
    strongest: Sequence[int] = ()

    @property
    def named(self) -> str:
        """By the names of terms, the strongest first; or the embedding."""
        terms = [self.names[i] + self.weights[i] for i in self.strongest]
        return self.embedding or f"{{{', '.join(terms)}}}"

    @property
    def numbered(self) -> str:
        """By the numbers of terms, `{"indices": …, "values": …}`; or the embedding."""
        indices, values = ", ".join(map(str, self.columns)), ", ".join(self.weights)
        lists = f'{{"indices": [{indices}], "values": [{values}]}}'
        return self.embedding or lists

    @property
    def keyed(self) -> str:
        """By the numbers of terms, `{"3": 1.5}`; or the embedding."""
        pairs = zip(self.columns, self.weights, strict=True)
        listed = ", ".join([f'"{column}": {weight}' for column, weight in pairs])
        return self.embedding or f"{{{listed}}}"


@dataclasses.dataclass(frozen=True)
class Lines:
    """A format of lines.

    Attributes:
      reads: the program that reads it.
      lines: makes the lines of a text, each with its newline.
      kinds: of vectors that it can hold.
      quantize: the factor of weights that have to be whole numbers; 0: floats.
      positive: weights have to be above 0.
      unfit: what the program does not take in a name of a term, a regular expression;
        such a term is called `#` and its column's number.
      most_terms: of a text; 0: any number.
      most_weight: the largest sum of a text's weights; 0: any.
      plain: lines are no JSON.
      floats: whole numbers are written as floats, too.
      suffix: of a file's name.
    """

    reads: str
    lines: Callable[[Row], str]
    kinds: tuple[str, ...] = (SPARSE,)
    quantize: float = 0
    positive: bool = False
    unfit: str = ""
    most_terms: int = 0
    most_weight: float = 0
    plain: bool = False
    floats: bool = False
    suffix: str = ".jsonl"

    def pieces(self, kind: str) -> tuple[str, ...]:
        """The files that texts are appended to."""
        return ("lines",)

    def appender(
        self, about: About, whole: bool
    ) -> Callable[[Matrix, Sequence[str], int], Mapping[str, bytes]]:
        """A function of vectors, ids and the first text's number: what they append.

        `whole`: weights are whole numbers.
        """
        given = self._names(about.terms or ())
        names = [f"{n} " if self.plain else f"{_quoted(n)}: " for n in given]
        written: Callable[[str], str] = str if self.plain else _quoted

        def append(matrix: Matrix, ids: Sequence[str], first: int):
            if about.kind == SPARSE:
                self._check(matrix, ids)
            exact = whole and not self.floats
            rows = _rows(matrix, [*map(written, ids)], first, names, about.kind, exact)
            return {"lines": "".join(map(self.lines, rows)).encode()}

        return append

    def _names(self, terms: Sequence[str]) -> Iterator[str]:
        taken = set(terms)
        for column, name in enumerate(terms):
            if self.unfit and re.search(self.unfit, name):
                name = f"#{column}"
                while name in taken:  # the vocabulary has a token #417
                    name = f"#{name}"
            yield name

    def _check(self, matrix: Any, ids: Sequence[str]) -> None:
        """Refuses what the program would refuse, or leave out in silence."""
        if self.positive and (matrix.data < 0).any():
            place = np.flatnonzero(matrix.data < 0)[0]
            row = np.searchsorted(matrix.indptr, place, side="right") - 1
            raise InputError(
                f"The vector of {ids[row]!r} has the weight {matrix.data[place]}, and"
                f" {self.reads} takes weights above 0 only. Choose another --format."
            )
        terms = np.diff(matrix.indptr)
        if self.most_terms and (terms > self.most_terms).any():
            row = int(np.argmax(terms))
            raise InputError(
                f"The vector of {ids[row]!r} has {terms[row]:,} terms, and {self.reads}"
                f" takes {self.most_terms:,}. Add --prune top:{self.most_terms}."
            )
        if self.most_weight:
            weights = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
            if (weights > self.most_weight).any():
                row = int(np.argmax(weights))
                raise InputError(
                    f"The weights of {ids[row]!r} add up to {weights[row]:,.0f}:"
                    f" {self.reads} repeats a term as often as it weighs, which takes"
                    f" {self.most_weight:,} at most. Choose a smaller --quantize."
                )

    def assembled(self, folder: pathlib.Path, about: About) -> pathlib.Path:
        """Makes the file of the pieces in a folder."""
        return folder / "lines"


def _rows(
    matrix: Any,
    ids: Sequence[str],
    first: int,
    names: Sequence[str],
    kind: str,
    whole: bool,
) -> Iterator[Row]:
    if kind != SPARSE:
        dense = matrix if isinstance(matrix, TokenMatrix) else matrix.toarray()
        for row, key in enumerate(ids):
            if isinstance(dense, TokenMatrix):
                tokens = dense[row : row + 1].tokens_TD
                text = f"[{', '.join(map(_listed, tokens))}]"
            else:
                text = _listed(dense[row])
            yield Row(first + row, key, text)
        return
    for row, key in enumerate(ids):
        places = slice(matrix.indptr[row], matrix.indptr[row + 1])
        columns, weights = matrix.indices[places], matrix.data[places]
        order = np.argsort(-weights, kind="stable").tolist()
        numbers = columns.tolist()
        yield Row(
            first + row,
            key,
            columns=numbers,
            names=[names[column] for column in numbers],
            weights=shortest(weights, whole),
            strongest=order,
        )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _listed(embedding: np.ndarray) -> str:
    return f"[{', '.join(shortest(embedding, False))}]"


def jsonl(row: Row) -> str:
    """Id and vector."""
    return f'{{"id": {row.id}, "vector": {row.named}}}\n'


def anserini(row: Row) -> str:
    """A line of Anserini's JsonVectorCollection."""
    return f'{{"id": {row.id}, "contents": "", "vector": {row.named}}}\n'


def anserini_topics(row: Row) -> str:
    """A line of Anserini's TsvStringTopicReader: a term as often as it weighs.

    None of a query without terms, at which the reader gives up the file.
    """
    terms = "".join([row.names[i] * int(row.weights[i]) for i in row.strongest])
    if not terms:
        return ""
    if re.search(r"^$|^ |[\x00-\x1f]", row.id):
        raise InputError(
            f"The id {row.id!r} is empty, begins with a blank or has a control"
            " character such as a tab, which no file of topics can hold. Rename it."
        )
    return f"{row.id}\t{terms[:-1]}\n"


def seismic(row: Row) -> str:
    """A line of `SeismicIndex.build`."""
    return f'{{"id": {row.id}, "content": "", "vector": {row.named}}}\n'


def bulk(row: Row) -> str:
    """An action and a document of the `_bulk` API of OpenSearch and Elasticsearch."""
    return f'{{"index": {{"_id": {row.id}}}}}\n{{"vector": {row.named}}}\n'


def qdrant(row: Row) -> str:
    """A point of Qdrant, whose ids are numbers: the text's own is in its payload."""
    return (
        f'{{"id": {row.number}, "payload": {{"id": {row.id}}},'
        f' "vector": {{"text": {row.numbered}}}}}\n'
    )


def milvus(row: Row) -> str:
    """A row of `MilvusClient.insert`; none without weights, which Milvus refuses."""
    if not row.embedding and not row.columns:
        return ""
    return f'{{"id": {row.id}, "vector": {row.keyed}}}\n'
