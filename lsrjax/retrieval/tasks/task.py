"""What a retriever is evaluated on: a corpus, queries, and graded judgements."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.reading.corpus import spelled_otherwise
from lsrjax.errors import InputError
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval.tasks.documents import Documents

# Query to document to grade.
Judgements = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
    """Queries, a corpus, and the judged documents of each query.

    Attributes:
      queries: texts [Q].
      languages: of each query; results are reported by language.
      corpus: texts [N], in memory or read on demand.
      relevant: of each query the position of its document in the corpus, or the grades
        of judged documents by position; above 0 is relevant.
      name: such as "miracl/sw".
      query_ids: [Q]; empty if the queries have no ids.
      document_ids: [N]; empty if the documents have no ids.
      metrics: those that the task's paper reports, the main one first.
      data: where the texts and judgements are from: paths or ids, revisions, digests.
      own_ids: whether a document with the id of the query is no hit, as BEIR has it.
      judge: the grade of a document's text for a query by its position, of tasks whose
        `relevant` is empty: only documents that are found are judged.
      apart: languages that are reported, but not part of the mean over languages.
      query_language: that all queries are in; empty: the `languages` of each.
      document_language: that all documents are in, or of each [N]; empty: not stated.
    """

    queries: Sequence[str]
    languages: Sequence[str]
    corpus: Sequence[str]
    relevant: Sequence[measures.Relevant]
    name: str = ""
    query_ids: Sequence[str] = ()
    document_ids: Sequence[str] = ()
    metrics: Sequence[str] = measures.METRICS
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own_ids: bool = False
    judge: Callable[[int, str], int] | None = None
    apart: Sequence[str] = ()
    query_language: str = ""
    document_language: str | Sequence[str] = ""

    @property
    def spoken(self) -> Sequence[str]:
        """The language of each query's text [Q]."""
        own = self.query_language
        return [own] * len(self.queries) if own else self.languages

    def spoken_at(self, places: Sequence[int]) -> list[str]:
        """The languages of documents by position; empty or `*` if not stated."""
        own = self.document_language
        return [own if isinstance(own, str) else own[place] for place in places]

    def judged(self, hits: np.ndarray) -> Sequence[measures.Relevant]:
        """The relevant documents of each query, among `hits` [Q, depth] if need be."""
        if self.judge is None:
            return self.relevant
        return [
            {
                place: self.judge(query, self.corpus[place])
                for place in row
                if place >= 0
            }
            or {0: 0}
            for query, row in enumerate(hits.tolist())
        ]

    def without_own(
        self, hits: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The hits [Q, depth - 1] without documents that have the query's id."""
        places = {key: place for place, key in enumerate(self.document_ids)}
        own = np.array([places.get(key, -2) for key in self.query_ids])
        dropped = hits == own[:, None]
        dropped[~dropped.any(axis=1), -1] = True
        shape = (len(hits), hits.shape[1] - 1)
        return hits[~dropped].reshape(shape), scores[~dropped].reshape(shape)

    def only(self, chosen: Sequence[int]) -> "Task":
        """The task with some of its queries, by position; needs `relevant`."""
        return dataclasses.replace(
            self,
            queries=[self.queries[i] for i in chosen],
            languages=[self.languages[i] for i in chosen],
            relevant=[self.relevant[i] for i in chosen],
            query_ids=[self.query_ids[i] for i in chosen] if self.query_ids else (),
        )


def judged_task(
    name: str,
    documents: Documents,
    queries: Iterable[tuple[str, str, str]],
    judgements: Judgements,
    **more: Any,
) -> Task:
    """A task of the queries that have judgements, in the order of `queries`.

    Args:
      name: also stands in errors.
      documents: the whole corpus.
      queries: id, text and language of each; those without judgements are left out.
      judgements: by the ids of queries and documents; whole grades.
      **more: further fields of `Task`.

    Raises:
      InputError: a judged query is missing or empty, a query occurs twice, a relevant
        document is not in the corpus, or a grade is not a whole number.
    """
    asked: dict[str, tuple[str, str]] = {}
    for key, text, language in queries:
        if key not in judgements and spelled_otherwise(key) not in judgements:
            continue
        if asked.setdefault(key, (text, language)) != (text, language):
            raise InputError(f"{name}: the query {key!r} occurs twice. Remove one.")
        if not text.strip():
            raise InputError(f"{name}: the query {key!r} has no text. Fill it in.")
    # By query, its id in the judgements; of 7 and 7.0, that of the same spelling.
    judged_as = {
        key: key if key in judgements else spelled_otherwise(key)
        for key in asked
        if key in judgements or spelled_otherwise(key) not in asked
    }
    found = set(judged_as.values())
    if missing := [key for key in judgements if key not in found]:
        swapped = len(documents.places(missing)) == len(missing)
        if swapped and len(missing) == len(judgements):
            raise InputError(
                f"{name}: the ids of queries in the judgements, {missing[0]!r} for one,"
                " are those of documents. Are two columns of the judgements swapped,"
                " or the files of queries and documents?"
            )
        raise InputError(
            f"{name}: {len(missing):,} of {len(judgements):,} judged queries are not"
            f" among the queries, {missing[0]!r} for one. Take queries and judgements"
            " of the same split and release."
        )
    judged = {document for of in judgements.values() for document in of}
    places = documents.places(judged)
    count = len(documents)
    relevant = [
        graded(f"{name}, query {key!r}", judgements[own], places, count)
        for key, own in judged_as.items()
    ]
    data = {
        "documents": count,
        "queries": len(judged_as),
        "judgements": sum(map(len, judgements.values())),
        **({"repeated_ids": documents.repeated} if documents.repeated else {}),
        **more.pop("data", {}),
    }
    return Task(
        queries=[asked[key][0] for key in judged_as],
        languages=[asked[key][1] for key in judged_as],
        corpus=documents.texts,
        relevant=relevant,
        name=name,
        query_ids=list(judged_as),
        document_ids=documents.ids,
        data=data,
        **more,
    )


def graded(
    where: str, judged: Mapping[str, float], places: Mapping[str, int], documents: int
) -> dict[int, int]:
    """The grades of a query's judged documents by position in the corpus.

    Args:
      where: the query, for errors.
      judged: grades by id.
      places: positions by id.
      documents: of the corpus.

    Raises:
      InputError: a grade is not a whole number or too large, a document has two, or a
        relevant document is missing.
    """
    grades: dict[int, int] = {}
    for key, grade in judged.items():
        if grade % 1 or abs(grade) > measures.LARGEST_GRADE:
            raise InputError(
                f"{where}: the document {key!r} has the grade {grade:g}. Metrics take"
                " whole numbers: 0 for not relevant, 1 and more for relevant, up to"
                f" {measures.LARGEST_GRADE:,}."
            )
        found = places.get(key, places.get(spelled_otherwise(key)))
        if found is not None:
            if grades.setdefault(found, int(grade)) != grade:
                raise InputError(
                    f"{where}: the document {key!r} is judged {grade:g}, but"
                    f" {grades[found]} as {spelled_otherwise(key)!r}. Remove one of the"
                    " two."
                )
        elif grade > 0:
            raise InputError(
                f"{where}: the relevant document {key!r} is not in the corpus"
                f" ({documents:,} documents). Take corpus and judgements of the same"
                " release, or remove the judgement."
            )
    # A query with no judged document left counts as 0, as in trec_eval.
    return grades or {0: 0}
