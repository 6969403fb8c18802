"""Retrieval quality of BM25 and of trained retrievers, by language."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import sparse

from lsrjax.data.examples import ENGLISH, Group, Pair
from lsrjax.data.reading.corpus import spelled_otherwise
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.encode_texts import TextEncoder, joined
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import Several, search


@dataclasses.dataclass(frozen=True)
class Task:
    """Queries, a corpus, and the relevant documents of each query.

    For each query the position of its document in the corpus, or the grades of judged
    documents by position.
    """

    queries: Sequence[str]
    languages: Sequence[str]
    corpus: Sequence[str]
    relevant: Sequence[measures.Relevant]


@dataclasses.dataclass(frozen=True)
class Searcher:
    """A retriever with everything that encoding needs; lengths are in tokens.

    MILCO's pivot tokenizer names the terms of the pivot view.
    """

    encoder: TextEncoder
    params: dict
    query_length: int
    document_length: int
    pivot_tokenizer: TextTokenizer | None = None

    @classmethod
    def of(cls, model, config, poll: Callable[[], None] = lambda: None) -> "Searcher":
        """A `SavedModel` that encodes with the lengths of a stage's config.

        `poll` is that of `TextEncoder`.
        """
        tokenizer, pivot = TextTokenizer(model.tokenizer), model.pivot_tokenizer
        return cls(
            TextEncoder(model.spec, tokenizer, dtype=config.model.dtype, poll=poll),
            model.params,
            config.data.query_length,
            config.data.document_length,
            TextTokenizer(pivot) if pivot else None,
        )

    def queries(self, texts: Sequence[str]) -> dict[str, sparse.csr_matrix]:
        """The views of queries."""
        return self.encoder.encode(self.params, texts, self.query_length, "query")

    def documents(self, texts: Sequence[str]) -> dict[str, sparse.csr_matrix]:
        """The views of documents."""
        return self.encoder.encode(self.params, texts, self.document_length)


def dev_task(source, limit: int, languages: Callable[[str], bool]) -> Task:
    """Held-out examples as a retrieval task.

    Pairs: each translation is a query for its English text among all English texts.
    Groups: the query, in each of its languages, searches for its positives among all
    documents, in English where available: those of the whole corpus, with every
    judgement, if the groups contain ids, as in a BEIR folder; else those of all groups.

    Takes `limit` queries at most, spread evenly over the examples, and of groups those
    in the languages that count.

    Raises:
      InputError: no query is in such a language, or a judgement without its document.
    """
    by_id = getattr(source, "by_id", False)
    corpus, queries = (_judged if by_id else _own)(source, languages)
    if not queries:
        raise InputError(
            "The dev data has no query in the languages of config.data.query_languages."
            " Name one that it has, or leave config.dev.source empty."
        )
    chosen = np.linspace(0, len(queries) - 1, min(limit, len(queries))).astype(int)
    texts, spoken, relevant = zip(*(queries[i] for i in chosen), strict=True)
    return Task(texts, spoken, corpus, relevant)


def _own(source, languages) -> tuple[list[str], list[tuple]]:
    corpus: dict[str, int] = {}
    queries: list[tuple] = []
    for index in range(len(source)):
        example = source[index]
        if isinstance(example, Pair):
            relevant = corpus.setdefault(example.english, len(corpus))
            queries.append((example.translation, example.language, relevant))
            continue
        grades = {
            corpus.setdefault(_english(text), len(corpus)): 1
            for text in example.positives
        }
        for text in example.negatives:
            corpus.setdefault(_english(text), len(corpus))
        queries += _asked(example.query, languages, grades)
    return list(corpus), queries


def _judged(source, languages) -> tuple[list[str], list[tuple]]:
    corpus, places = [], {}
    for place in range(len(source.documents)):
        key, text = source.documents.item(place)
        places[key] = place
        corpus.append(_english(text))
    queries: list[tuple] = []
    for index in range(len(source)):
        where, query, judged = source.judged(index)
        grades = {}
        for key, grade in judged.items():
            if grade % 1:
                raise InputError(
                    f"{where}: the document {key!r} has the grade {grade:g}. Metrics"
                    " take whole numbers: 0 for not relevant, 1 and more for relevant."
                )
            found = places.get(key, places.get(spelled_otherwise(key)))
            if found is not None:
                grades[found] = int(grade)
            elif grade > 0:
                raise InputError(
                    f"{where}: the relevant document {key!r} is not in the corpus"
                    f" ({len(corpus):,} documents). Add it, or remove its judgement."
                )
        # A query without judgements counts as 0, as in trec_eval.
        queries += _asked(query, languages, grades or {0: 0})
    return corpus, queries


def _asked(query: Mapping[str, str], languages, relevant) -> list[tuple]:
    return [
        (text, language, relevant)
        for language, text in query.items()
        if languages(language)
    ]


def _english(text: Mapping[str, str]) -> str:
    return text.get(ENGLISH) or next(iter(text.values()), "")


def cross_lingual(groups: Sequence[Group], languages: Sequence[str]) -> Task:
    """Queries in every language against the English documents."""
    corpus = [group.positives[0][ENGLISH] for group in groups]
    return _task(groups, languages, corpus)


def multilingual(groups: Sequence[Group], languages: Sequence[str], seed: int) -> Task:
    """The same queries against a corpus in which each document is in one language.

    The language of a document is drawn uniformly from its own.
    """
    rng = np.random.default_rng(seed)
    corpus = []
    for group in groups:
        texts = group.positives[0]
        own = [language for language in languages if language in texts]
        corpus.append(texts[own[rng.integers(len(own))]])
    return _task(groups, languages, corpus)


def _task(groups, languages, texts) -> Task:
    """Queries of all groups over their documents; equal texts are one document."""
    corpus: dict[str, int] = {}
    places = [corpus.setdefault(text, len(corpus)) for text in texts]
    queries = [
        (group.query[language], language, place)
        for language in languages
        for group, place in zip(groups, places, strict=True)
        if language in group.query
    ]
    wordings, of, relevant = zip(*queries, strict=True)
    return Task(wordings, of, list(corpus), relevant)


def by_language(
    task: Task, hits: np.ndarray, metrics: Sequence[str] = measures.METRICS
) -> dict[str, dict[str, float]]:
    """Mean of each metric over the queries of each language; `hits` as in `search`."""
    values = measures.per_query(hits, task.relevant, metrics)
    languages = np.array(task.languages)
    return {
        language: {m: float(values[m][languages == language].mean()) for m in metrics}
        for language in dict.fromkeys(task.languages)
    }


def bm25(
    task: Task, metrics: Sequence[str] = measures.METRICS
) -> dict[str, dict[str, float]]:
    """BM25 over the strings that queries and documents share."""
    depth = measures.required_depth(metrics)
    hits, _ = BM25(task.corpus).search(task.queries, depth)
    return by_language(task, hits, metrics)


def views_of(searcher: Searcher) -> dict[str, tuple[str, ...]]:
    """The evaluated views: all together under "", and each alone if several."""
    views = tuple(searcher.encoder.spec.views)
    alone = {view: (view,) for view in views} if len(views) > 1 else {}
    return {"": views, **alone}


def sparse_retriever(
    task: Task, searcher: Searcher, metrics: Sequence[str] = measures.METRICS
) -> dict[str, dict[str, dict[str, float]]]:
    """A retriever's quality and sparsity, with all views and with each alone.

    Returns:
      By view ("" = all together), language and metric; also the metrics `query_terms`
      and `document_terms`, the mean numbers of active terms, and `index_bytes` of a
      document.
    """
    queries = searcher.queries(task.queries)
    documents = searcher.documents(task.corpus)
    depth = measures.required_depth(metrics)
    languages = np.array(task.languages)
    results = {}
    for name, views in views_of(searcher).items():
        q = joined({view: queries[view] for view in views})
        d = joined({view: documents[view] for view in views})
        hits, _ = search(q, d, depth)
        results[name] = by_language(task, hits, metrics)
        for language, values in results[name].items():
            own = q[np.flatnonzero(languages == language)]
            values["query_terms"] = active_terms(own)
            values["document_terms"] = active_terms(d)
            values["index_bytes"] = sum(index_bytes(documents[v]) for v in views)
    return results


def active_terms(matrix: sparse.csr_matrix | TokenMatrix | Several) -> float:
    """Mean number of a text's weights, or of its tokens with an embedding."""
    if isinstance(matrix, Several):
        return sum(map(active_terms, matrix.parts))
    if isinstance(matrix, TokenMatrix):
        return matrix.mean_tokens
    return measures.active_terms(matrix)


# A posting in an inverted index is the document and its weight in 16 bits; each number
# of an embedding takes 16 bits.
_POSTING_BYTES, _NUMBER_BYTES = 4 + 2, 2


def index_bytes(matrix: sparse.csr_matrix | TokenMatrix) -> float:
    """Mean bytes of a text in an index, uncompressed.

    6 for each active term, or 2 for each number of its embeddings; for a matrix that
    may be stored either way, the smaller of both.
    """
    texts, size = matrix.shape
    if isinstance(matrix, TokenMatrix):
        return matrix.mean_tokens * size * _NUMBER_BYTES
    return min(matrix.nnz * _POSTING_BYTES / max(texts, 1), size * _NUMBER_BYTES)


_TIMED_TEXTS = 512


def encoding_speed(searcher: Searcher, texts: Sequence[str]) -> float:
    """Documents encoded per second, over a sample, without compilation."""
    places = np.linspace(0, len(texts) - 1, min(_TIMED_TEXTS, len(texts))).astype(int)
    sample = [texts[i] for i in places]
    searcher.documents(sample)
    started = time.perf_counter()
    searcher.documents(sample)
    return len(sample) / (time.perf_counter() - started)


def dev_metric(task: Task, searcher: Searcher, metric: str) -> dict[str, float]:
    """The mean of a metric over a dev task's queries, all views together."""
    queries = joined(searcher.queries(task.queries))
    documents = joined(searcher.documents(task.corpus))
    hits, _ = search(queries, documents, measures.required_depth([metric]))
    return measures.evaluate(hits, task.relevant, [metric])
