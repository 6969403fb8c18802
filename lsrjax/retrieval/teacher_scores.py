"""A teacher's scores of queries and their documents, computed once, in English."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lsrjax.data.batching.drawing import wording, wording_language
from lsrjax.data.examples import Group, Items, Text
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.format_options import averaged
from lsrjax.retrieval import maxsim
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.encode_texts import joined
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.mine_negatives import Find, by_bm25, mine
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.search import Several


@dataclasses.dataclass(frozen=True)
class Lexical:
    """BM25 as a teacher; `terms` splits texts, see `bm25.TERMS`."""

    terms: Callable[[str], list[str]]


Scorer = Searcher | PairScorer | Lexical


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several teachers, whose scores of a query's documents are averaged.

    Hofstätter et al. 2020 (arXiv 2010.02666) average them as they are; with
    `normalization` "minmax", each teacher's are between 0 and 1 (Geng et al. 2024,
    arXiv 2411.04403).

    Attributes:
      members: the teachers.
      weights: of each, > 0.
      normalization: of each one's scores, from `NORMALIZATIONS`.
    """

    members: Sequence[Scorer]
    weights: Sequence[float]
    normalization: str = "none"

    def averaged(self, scores_TQK: Sequence[np.ndarray]) -> np.ndarray:
        """The mean [Q, K] float32; NaN stays where there is no document."""
        found = np.full(scores_TQK[0].shape, np.nan, np.float32)
        for row, own_TK in zip(found, np.stack(scores_TQK, axis=1), strict=True):
            known = ~np.isnan(own_TK[0])
            if known.any():
                row[known] = averaged(
                    own_TK[:, known], self.normalization, self.weights
                )
        return found


class Corpus(Items[Text]):
    """The documents of a collection, and those of a source that it lacks."""

    def __init__(self, collection: Items[Text], own: Items[Text]):
        self._collection, self._own = collection, own

    def __len__(self) -> int:
        return len(self._collection) + len(self._own)

    def __getitem__(self, place: int) -> Text:
        more = place - len(self._collection)
        return self._collection[place] if more < 0 else self._own[more]


def corpus_of(source, whole: bool = False) -> tuple[Items[Text], np.ndarray]:
    """The distinct documents of a source of groups, and each first positive's position.

    English wordings are compared. With `whole`, all documents of the source's
    collections come first.
    """
    collection: Items[Text] = getattr(source, "documents", ()) if whole else ()
    places: dict[str, int] = {}
    for place in range(len(collection)):
        if text := usable(collection, place):
            places.setdefault(text, place)
    own: list[Text] = []
    positives = []
    for index in range(len(source)):
        group: Group = source[index]
        for document in (*group.positives, *group.negatives):
            new = len(collection) + len(own)
            if places.setdefault(wording(document), new) == new:
                own.append(document)
        positives.append(places[wording(group.positives[0])])
    return Corpus(collection, own) if collection else own, np.array(positives)


def usable(corpus: Items[Text], place: int) -> str:
    """The wording of a document of a collection; empty if it cannot be read."""
    try:
        text = wording(corpus[place])
    except (BadRecord, KeyError):
        return ""
    return text if text.strip() else ""


def languages_of(source, corpus: Sequence[Text]) -> dict[str, str]:
    """The language of each wording of a source's queries and of its documents."""
    texts = [source[i].query for i in range(len(source))]
    texts += [corpus[i] for i in range(len(corpus)) if usable(corpus, i)]
    return {wording(text): wording_language(text) for text in reversed(texts)}


def prepare(
    source,
    corpus: Sequence[Text],
    positives: np.ndarray,
    *,
    mined,
    teacher: Scorer | Ensemble | None,
    seed: int,
    find: Find = by_bm25,
) -> dict[str, np.ndarray]:
    """Negatives and teacher scores for every example of a source of groups.

    Args:
      source: Q groups.
      corpus: their distinct documents, from `corpus_of`.
      positives: [Q] positions of the first positives, from `corpus_of`.
      mined: a stage's `prepare` config, to mine negatives from the corpus; None: the
        groups' own negatives.
      teacher: scores the documents; None leaves the scores NaN.
      find: finds the documents to draw mined negatives from.

    Returns:
      `negatives` [Q, K] int32 positions in the corpus, -1 if a row has fewer, and
      `scores` [Q, 1 + K] float32 of the positive and the negatives.
    """
    queries = [wording(source[i].query) for i in range(len(source))]
    texts = [usable(corpus, place) for place in range(len(corpus))]
    if mined:
        # Equal texts count once; documents without a text are never negatives.
        first: dict[str, int] = {}
        for place, text in enumerate(texts):
            if text:
                first.setdefault(text, place)
        documents, known = list(first), np.array(list(first.values()), int)
        negatives = known[
            mine(
                queries,
                documents,
                np.searchsorted(known, positives),
                depth=mined.depth,
                count=mined.count,
                exclude=_barred(source, queries, documents),
                seed=seed,
                find=find,
            )
        ]
    else:
        negatives = _given(source, texts)
    places_QK = np.concatenate([positives[:, None], negatives], axis=1)
    scores = np.full(places_QK.shape, np.nan, np.float32)
    if teacher is not None:
        scores = _of_places(teacher, queries, texts, places_QK)
    return {"negatives": negatives.astype(np.int32), "scores": scores}


def _of_places(
    teacher: Scorer | Ensemble,
    queries: Sequence[str],
    texts: Sequence[str],
    places_QK: np.ndarray,
) -> np.ndarray:
    """The scores of documents by place in a corpus; of -1 NaN."""
    if isinstance(teacher, Ensemble):
        members = teacher.members
        each = [_of_places(one, queries, texts, places_QK) for one in members]
        return teacher.averaged(each)
    if isinstance(teacher, Lexical):
        index = BM25(texts, terms=teacher.terms)
        return _scores(index.queries(queries), index.documents, places_QK)
    # Only a few documents of a large corpus may have been drawn.
    used, numbered = np.unique(places_QK, return_inverse=True)
    used, none = used[used >= 0], int(used[0] < 0)
    asked = [texts[place] for place in used]
    return score(teacher, queries, asked, numbered.reshape(places_QK.shape) - none)


def _places(source, texts: Sequence[str], field: str) -> list[list[int]]:
    places = {text: place for place, text in enumerate(texts)}
    return [
        [places[wording(text)] for text in getattr(source[i], field)]
        for i in range(len(source))
    ]


def _barred(source, queries: Sequence[str], texts: Sequence[str]) -> list[set[int]]:
    """The positives of all rows with a query's text, by place in `texts`.

    Data of pairs has a row for each of a query's positives.
    """
    together: dict[str, set[int]] = {}
    for query, own in zip(queries, _places(source, texts, "positives"), strict=True):
        together.setdefault(query, set()).update(own)
    return [together[query] for query in queries]


def _given(source, texts: Sequence[str]) -> np.ndarray:
    rows = _places(source, texts, "negatives")
    negatives = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, chosen in zip(negatives, rows, strict=True):
        row[: len(chosen)] = chosen
    return negatives


def score(
    teacher: Searcher | PairScorer,
    queries: Sequence[str],
    corpus: Sequence[str],
    documents_QK: np.ndarray,
) -> np.ndarray:
    """The teacher's score of each query with each of its documents, [Q, K] float32.

    The documents are positions in the corpus; -1 gives NaN.
    """
    if isinstance(teacher, PairScorer):
        return _read_together(teacher, queries, corpus, documents_QK)
    q = joined(teacher.queries(queries))
    d = joined(teacher.documents(corpus))
    if isinstance(q, Several) and isinstance(d, Several):
        parts = zip(q.parts, d.parts, strict=True)
        return np.sum([_scores(*part, documents_QK) for part in parts], axis=0)
    return _scores(q, d, documents_QK)


def ragged(
    model: Searcher | PairScorer | BM25,
    queries: Sequence[str],
    texts: Sequence[str],
    places: Sequence[Sequence[int]],
) -> list[list[float]]:
    """A model's score of each query with each of its documents, by place in `texts`.

    BM25 is an index of `texts`.
    """
    used = sorted({place for row in places for place in row})
    number = {place: i for i, place in enumerate(used)}
    most = max(map(len, places), default=0)
    if not most:
        return [[] for _ in places]
    grid = np.full((len(places), most), -1, np.int64)
    for row, own in zip(grid, places, strict=True):
        row[: len(own)] = [number[place] for place in own]
    if isinstance(model, BM25):
        found = _scores(model.queries(queries), model.documents[used], grid)
    else:
        found = score(model, queries, [texts[place] for place in used], grid)
    return [
        # The shortest decimals of float32 values.
        [float(str(value)) for value in row[: len(own)]]
        for row, own in zip(found, places, strict=True)
    ]


def _read_together(scorer: PairScorer, queries, corpus, documents_QK) -> np.ndarray:
    scores = np.full(documents_QK.shape, np.nan, np.float32)
    rows, places = np.nonzero(documents_QK >= 0)
    documents = documents_QK[rows, places]
    pairs = [(queries[q], corpus[d]) for q, d in zip(rows, documents, strict=True)]
    scores[rows, places] = scorer.scores(pairs)
    return scores


def _scores(q, d, documents_QK: np.ndarray) -> np.ndarray:
    scores = np.empty(documents_QK.shape, np.float32)
    if isinstance(d, TokenMatrix):
        for row, places in enumerate(documents_QK):
            scores[row] = maxsim.scores(q[row : row + 1], d[places])[0]
        return np.where(documents_QK < 0, np.nan, scores)
    for place in range(documents_QK.shape[1]):
        products = q.multiply(d[documents_QK[:, place]])
        scores[:, place] = np.asarray(products.sum(axis=1)).ravel()
    return np.where(documents_QK < 0, np.nan, scores)
