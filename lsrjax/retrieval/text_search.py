"""Searches an index with texts: encodes them, ranks, fuses, and says why."""

import dataclasses
import numbers
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax import options
from lsrjax.data.tokenization import TextField
from lsrjax.errors import InputError
from lsrjax.retrieval import matches, terms
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.encode_texts import joined
from lsrjax.retrieval.engines.engine import Documents, Hits
from lsrjax.retrieval.feedback import Rocchio, rocchio
from lsrjax.retrieval.fusion import FUSIONS, check_weights
from lsrjax.retrieval.index_folder import Index
from lsrjax.retrieval.matches import Match
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.search import Several
from lsrjax.retrieval.vector_formats.vectors import DENSE, SPARSE, TOKENS

MODEL, BM25_NAME = "model", "bm25"
RunScores = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How texts are searched.

    Attributes:
      rankings: "model", "bm25", a view of the model, which searches alone; or a run: by
        the id of a query, the score of each document by its id.
      fusion: makes one ranking of several; by default reciprocal ranks.
      prune: of queries.
      feedback: of queries, from the documents that they find.
    """

    rankings: Sequence[str | RunScores] = (MODEL,)
    fusion: options.Chosen | None = None
    prune: Pruning | None = None
    feedback: Rocchio | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """Hits of Q queries: arrays as `Index.search` returns them, vectors, seconds."""

    hits: np.ndarray
    scores: np.ndarray
    queries: Documents
    encoding: float
    searching: float


@dataclasses.dataclass(frozen=True)
class Hit:
    """A document that was found; `text` is None if the index has no texts.

    Attributes:
      number: of the document in the index, from 0.
    """

    number: int
    id: str
    score: float
    text: str | None
    matches: Sequence[Match]


class TextSearch:
    """An index with the model that encodes its queries."""

    def __init__(self, index: Index, searcher: Searcher, plan: Plan = Plan()):  # noqa: B008
        """Raises InputError if the index or the model cannot do what is planned."""
        self.index, self._searcher, self._plan = index, searcher, plan
        self._spec = searcher.encoder.spec
        self._kinds = searcher.encoder.kinds()
        self._check()
        self._fusion = None
        if len(plan.rankings) > 1:
            self._fusion = plan.fusion or options.resolve(FUSIONS, "rrf", "--fusion")
        self._bm25 = None
        if BM25_NAME in plan.rankings:
            assert index.texts is not None  # checked above
            self._bm25 = BM25(index.texts[:])
        self._numbers: dict[str, int] = {}
        if any(not isinstance(name, str) for name in plan.rankings):
            self._numbers = {key: row for row, key in enumerate(index.ids[:])}

    def _check(self) -> None:
        plan, spec = self._plan, self._spec
        views = [*spec.views] if spec.sparse and len(spec.views) > 1 else []
        known = [MODEL, BM25_NAME, *views]
        named = [name for name in plan.rankings if isinstance(name, str)]
        for name in named:
            if name not in known:
                raise InputError(
                    f"--rank {name!r} is none of this model: {', '.join(known)}, or a"
                    " file that ends in .trec or .trec.gz."
                )
        if not plan.rankings or len(set(named)) < len(named):
            raise InputError(f"--rank names one twice, or none: {', '.join(named)}.")
        if plan.fusion:
            check_weights(plan.fusion, len(plan.rankings))
        if BM25_NAME in named and self.index.texts is None:
            raise InputError(
                f"--rank bm25 needs texts, and {self.index.name} was built without."
                " Build it with --texts, and without --no_texts."
            )
        sparse_only = {"--prune_queries": plan.prune, "--feedback": plan.feedback}
        for flag, value in sparse_only.items():
            if value is not None and self.index.kind != SPARSE:
                raise InputError(
                    f"{flag} is for sparse vectors; those of {self.index.name} are"
                    f" {self.index.kind}. Leave it out."
                )

    def ranked(
        self, texts: Sequence[str], depth: int, keys: Sequence[str] = ()
    ) -> Found:
        """The best documents of each text.

        Args:
          keys: ids of the texts, by which runs know them.

        Raises:
          InputError: `depth` is not a number from 1 on.
        """
        if not isinstance(depth, numbers.Integral) or depth < 1:
            raise InputError(f"depth is {depth!r}; it has to be a number from 1 on.")
        # Places that no document can take would only cost memory.
        most = max(1, len(self.index))
        depth = min(int(depth), most)
        started = time.perf_counter()
        queries = self._encoded(texts)
        encoded = time.perf_counter()
        deep = min(self._fusion.options.candidates, most) if self._fusion else depth
        if self._plan.feedback is not None:
            first, _ = self.index.search(queries, self._plan.feedback.documents)
            stored = _Stored(self.index)
            queries = rocchio(queries, stored, first, self._plan.feedback)
        found = [
            self._ranking(one, texts, queries, deep)
            if isinstance(one, str)
            else self._run(one, keys, deep)
            for one in self._plan.rankings
        ]
        hits, scores = found[0]
        if self._fusion:
            hits, scores = self._fusion.entry.fuse(found, depth, self._fusion.options)
        seconds = encoded - started, time.perf_counter() - encoded
        return Found(hits, scores, queries, *seconds)

    def search(self, texts: Sequence[str], depth: int = 10) -> list[list[Hit]]:
        """The best documents of each text, with the terms that matched."""
        return self.described(texts, self.ranked(texts, depth))

    def described(self, texts: Sequence[str], found: Found) -> list[list[Hit]]:
        """The hits of `ranked` with ids, texts and the terms that matched."""
        return [
            [
                Hit(
                    int(number),
                    self.index.ids[number],
                    float(score),
                    self.index.texts[number] if self.index.texts else None,
                    self._matches(text, found.queries[row : row + 1], int(number)),
                )
                for number, score in zip(
                    found.hits[row], found.scores[row], strict=True
                )
                if number >= 0
            ]
            for row, text in enumerate(texts)
        ]

    def strongest(
        self, found: Found, row: int, most: int
    ) -> dict[str, list[tuple[str, float]]]:
        """A query's terms by view with their weights, the largest first.

        Args:
          found: of `ranked`, with the query in this row.
          row: of the query.
          most: terms of a view.

        Returns:
          Nothing for vectors without terms.
        """
        return self._terms(found.queries, row, most)

    def document_terms(self, number: int) -> dict[str, list[tuple[str, float]]]:
        """All terms of a document by view with their weights, the largest first.

        Nothing for vectors and views without terms. `number` is that of a `Hit`.
        """
        return self._terms(self.index.engine.vectors(np.array([number])), 0, None)

    def _terms(
        self, vectors: Documents, row: int, most: int | None
    ) -> dict[str, list[tuple[str, float]]]:
        if self.index.kind != SPARSE or not isinstance(vectors, sparse.csr_matrix):
            return {}
        names, start = self._names(), 0
        views = {}
        for view, size in self._spec.views.items():
            own = vectors[row, start : start + size].tocsr()
            order = np.argsort(-own.data, kind="stable")[:most]
            if view not in terms.HASHED:
                views[view] = [
                    (names[start + own.indices[i]], float(own.data[i])) for i in order
                ]
            start += size
        return views

    def _encoded(self, texts: Sequence[str]) -> Documents:
        queries = joined(self._searcher.queries(texts), apart=not self._spec.sparse)
        if isinstance(queries, sparse.csr_matrix):
            queries.sort_indices()
            if self._plan.prune is not None:
                queries = self._plan.prune.apply(queries)
        return queries

    def _ranking(self, name: str, texts, queries: Documents, depth: int) -> Hits:
        if name == BM25_NAME:
            assert self._bm25 is not None
            return self._bm25.search(texts, depth)
        if name != MODEL:
            queries = self._only(name, queries)
        return self.index.search(queries, depth)

    def _only(self, view: str, queries: sparse.csr_matrix) -> sparse.csr_matrix:
        """The queries without the weights of other views."""
        end = np.cumsum([*self._spec.views.values()])[[*self._spec.views].index(view)]
        inside = queries.indices < end
        inside &= queries.indices >= end - self._spec.views[view]
        kept = queries.copy()
        kept.data[~inside] = 0
        kept.eliminate_zeros()
        return kept

    def _run(self, run: RunScores, keys: Sequence[str], depth: int) -> Hits:
        hits = np.full((len(keys), depth), -1, np.int32)
        scores = np.zeros((len(keys), depth), np.float32)
        if not any(key in run for key in keys):
            raise InputError(
                f"--rank: a run has none of the {len(keys):,} queries, such as"
                f" {keys[0]!r}. Take a run of the same queries."
            )
        for row, key in enumerate(keys):
            best = sorted(run.get(key, {}).items(), key=lambda one: -one[1])[:depth]
            for rank, (document, score) in enumerate(best):
                number = self._numbers.get(document)
                if number is None:
                    raise InputError(
                        f"--rank: a run has the document {document!r} for the query"
                        f" {key!r}, which {self.index.name} lacks. Take a run over the"
                        " same documents."
                    )
                hits[row, rank], scores[row, rank] = number, score
        return hits, scores

    def _matches(self, text: str, query: Documents, number: int) -> list[Match]:
        document = self.index.engine.vectors(np.array([number]))
        if self.index.kind == SPARSE:
            return matches.of_terms(query, document, self._spec.views, self._names())
        views = [*self._spec.views]
        if not isinstance(query, Several) or not isinstance(document, Several):
            return self._of_view(text, views[0], query, document, number)
        found: list[Match] = []
        for view, own, its in zip(views, query.parts, document.parts, strict=True):
            found += self._of_view(text, view, own, its, number)
        return found

    def _of_view(self, text, view: str, query, document, number: int) -> list[Match]:
        kind = self._kinds[view]
        if kind == DENSE:
            # The numbers of an embedding have no names.
            product = float((query @ document.T).toarray()[0, 0])
            return [Match(view, "similarity", 1.0, product)]
        searcher = self._searcher
        if kind == TOKENS:
            stored = self.index.texts[number] if self.index.texts else ""
            ours = self._tokens(text, "query", searcher.query_length)
            theirs = self._tokens(stored, "document", searcher.document_length)
            return matches.of_tokens(query, document, view, ours, theirs)
        tokenizer, pivot = searcher.encoder.tokenizer, searcher.pivot_tokenizer
        names = terms.names_of(self._spec, tokenizer, pivot, [view])
        return matches.of_terms(query, document, {view: len(names)}, names)

    def _names(self) -> Sequence[str]:
        if self.index.terms is not None:
            return self.index.terms
        searcher = self._searcher
        tokenizer = searcher.encoder.tokenizer
        return terms.names_of(self._spec, tokenizer, searcher.pivot_tokenizer)

    def _tokens(self, text: str, role: str, length: int) -> list[str]:
        tokenizer = self._searcher.encoder.tokenizer
        (ids,) = TextField.of(self._spec, tokenizer, role, length).ids([text])
        return [tokenizer.token(i) for i in ids]


class _Stored:
    """The vectors of an index, by the numbers of documents."""

    def __init__(self, index: Index):
        self._index = index

    def __getitem__(self, numbers: np.ndarray) -> Any:
        return self._index.engine.vectors(numbers)
