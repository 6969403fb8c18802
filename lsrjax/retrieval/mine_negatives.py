"""Hard negatives: documents that rank high but that are not relevant."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.errors import InputError
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.encode_texts import joined
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.search import TopHits

# Documents encoded and searched at once.
BLOCK = 65_536
Hits = tuple[np.ndarray, np.ndarray]
# Queries, documents and a depth to hits and scores, as of `search`.
Find = Callable[[Sequence[str], Sequence[str], int], Hits]


def by_bm25(queries: Sequence[str], documents: Sequence[str], depth: int) -> Hits:
    """The best hits of BM25, as `search` gives them."""
    return BM25(documents).search(queries, depth)


def by_model(
    model: Searcher,
    kept: list | None = None,
    languages: Mapping[str, str] | None = None,
) -> Find:
    """The best hits of a retriever.

    Args:
      languages: of the texts, for a model that encodes each in its own.
      kept: keeps the encoded documents for a later search of the same ones by a model
        whose documents are frozen; None: memory does not grow with the corpus.
    """

    def stated(texts: Sequence[str]) -> list[str] | None:
        return None if languages is None else [languages[text] for text in texts]

    def encoded(documents: Sequence[str]) -> Iterable[Any]:
        for number, start in enumerate(range(0, len(documents), BLOCK)):
            if kept is not None and number < len(kept):
                yield kept[number]
                continue
            texts = documents[start : start + BLOCK]
            block = joined(model.documents(texts, stated(texts)))
            if kept is not None:
                kept.append(block)
            yield block

    def find(queries: Sequence[str], documents: Sequence[str], depth: int) -> Hits:
        found = TopHits(joined(model.queries(queries, stated(queries))), depth)
        for block in encoded(documents):
            found.add(block)
        return found.best()

    return find


def mine(
    queries: Sequence[str],
    corpus_texts: Sequence[str],
    positives: Sequence[int] | np.ndarray,
    *,
    depth: int = 100,
    count: int = 7,
    groups: Sequence | np.ndarray | None = None,
    exclude: Sequence[Collection[int]] | None = None,
    seed: int,
    find: Find = by_bm25,
) -> np.ndarray:
    """Draws negatives for each query from its best hits.

    The positive, documents with the positive's text, and those excluded by `groups` or
    `exclude` are never drawn. If fewer than `count` hits remain, random documents of
    the corpus fill the row. Row i depends on the texts and on (seed, i) only, so that
    mining can be repeated.

    Args:
        queries: Q texts.
        corpus_texts: N texts.
        positives: for each query the index of its relevant document.
        depth: hits of a query to draw from.
        count: negatives of a query.
        groups: [N] labels; documents with the positive's label are not drawn.
        exclude: for each query further documents that are not drawn.
        find: finds the hits.

    Returns:
        [Q, count] int32 document indices, the drawn hits first, distinct in each row.

    Raises:
        InputError: the corpus has fewer than `count` allowed documents for a query.
        ValueError: lengths differ, or a positive is not in the corpus.
    """
    _check(len(queries), len(corpus_texts), positives, groups, exclude)
    hits, _ = find(queries, corpus_texts, depth)
    same_text = _members(corpus_texts)
    same_group = {} if groups is None else _members(groups)
    negatives = np.empty((len(queries), count), np.int32)
    for i, positive in enumerate(positives):
        barred = set(same_text[corpus_texts[positive]])
        if groups is not None:
            barred.update(same_group[groups[positive]])
        if exclude is not None:
            barred.update(int(doc) for doc in exclude[i])
        rng = np.random.default_rng((seed, i))
        negatives[i] = _draw(hits[i], barred, len(corpus_texts), count, rng, i)
    return negatives


def _draw(
    hits: np.ndarray,
    barred: set[int],
    corpus_size: int,
    count: int,
    rng: np.random.Generator,
    query: int,
) -> list[int]:
    hard = [doc for doc in hits.tolist() if doc >= 0 and doc not in barred]
    drawn = rng.permutation(hard)[:count].astype(int).tolist()
    if len(drawn) < count:
        taken = barred | set(drawn)
        rest = [doc for doc in range(corpus_size) if doc not in taken]
        missing = count - len(drawn)
        if missing > len(rest):
            raise InputError(
                f"mine: query {query} needs {count} negatives, but only "
                f"{len(drawn) + len(rest)} of the {corpus_size} documents may be drawn "
                "for it. Lower config.prepare.count (and config.data.group_size), or "
                "train on more data."
            )
        drawn += rng.choice(rest, missing, replace=False).tolist()
    return drawn


def _members(labels: Sequence | np.ndarray) -> dict:
    members: dict = {}
    for doc, label in enumerate(labels):
        members.setdefault(label, []).append(doc)
    return members


def _check(
    queries: int,
    corpus_size: int,
    positives: Sequence[int] | np.ndarray,
    groups: Sequence | np.ndarray | None,
    exclude: Sequence[Collection[int]] | None,
) -> None:
    for name, found, wanted in (
        ("positives", len(positives), queries),
        ("groups", corpus_size if groups is None else len(groups), corpus_size),
        ("exclude", queries if exclude is None else len(exclude), queries),
    ):
        if found != wanted:
            raise ValueError(f"mine: {name} has {found} entries, expected {wanted}.")
    for i, positive in enumerate(positives):
        if not 0 <= positive < corpus_size:
            raise ValueError(
                f"mine: the positive of query {i} is document {positive}, outside the "
                f"corpus of {corpus_size} documents."
            )
