"""Searches the whole corpus of a task, with texts encoded block by block."""

import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import sparse

from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.encode_texts import TextEncoder, joined
from lsrjax.retrieval.feedback import Rocchio, rocchio
from lsrjax.retrieval.kept import KeptFile
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.prefixes import Prefix
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.search import Several, TopHits
from lsrjax.retrieval.tasks.task import Task

# Documents that are encoded, and kept, at once: 300 terms of each take 10 MB, dense
# vectors of 30,000 terms, which models give early in training, 1 GB.
_BLOCK = 4096
_KEEP_SECONDS = 60.0  # between two writes of what is found so far


@dataclasses.dataclass(frozen=True)
class Searcher:
    """A retriever with everything that encoding needs.

    Attributes:
      query_length, document_length: in tokens.
      pivot_tokenizer: MILCO's, which names the terms of the pivot view.
      stated: each text is encoded in its own language, where it is known.
    """

    encoder: TextEncoder
    params: dict
    query_length: int
    document_length: int
    pivot_tokenizer: TextTokenizer | None = None
    stated: bool = False

    @classmethod
    def of(
        cls,
        model,
        config,
        poll: Callable[[], None] = lambda: None,
        *,
        stated: bool = False,
    ) -> "Searcher":
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
            stated,
        )

    @classmethod
    def portable(
        cls,
        model,
        *,
        batch_size: int = 64,
        dtype: str = "float32",
        query_length: int = 0,
        document_length: int = 0,
        stated: bool = False,
    ) -> "Searcher":
        """A `SavedModel` of `open_portable`; lengths are its own unless given.

        Raises:
          InputError: a length or a batch that the model does not take.
        """
        if batch_size < 1:
            raise InputError(f"--batch_size is {batch_size}; it has to be at least 1.")
        limit = model.spec.encoder.max_length
        given = {"query_length": query_length, "document_length": document_length}
        for flag, length in given.items():
            if length and not 2 < length <= limit:
                raise InputError(f"--{flag} is {length}; the model takes 3 to {limit}.")
        tokenizer, pivot = TextTokenizer(model.tokenizer), model.pivot_tokenizer
        return cls(
            TextEncoder(model.spec, tokenizer, batch_size=batch_size, dtype=dtype),
            jax.device_put(model.params),
            query_length or model.query_length,
            document_length or model.document_length,
            TextTokenizer(pivot) if pivot else None,
            stated,
        )

    def queries(
        self, texts: Sequence[str], languages: Sequence[str] | None = None
    ) -> dict[str, sparse.csr_matrix]:
        """The views of queries, in their languages if these are `stated`."""
        return self._encoded(texts, self.query_length, "query", languages)

    def documents(
        self, texts: Sequence[str], languages: Sequence[str] | None = None
    ) -> dict[str, sparse.csr_matrix]:
        """The views of documents, in their languages if these are `stated`."""
        return self._encoded(texts, self.document_length, "document", languages)

    def _encoded(self, texts, length: int, role: str, languages):
        own = languages if self.stated else None
        return self.encoder.encode(self.params, texts, length, role, languages=own)

    def knows(self, language: str) -> bool:
        """Whether texts in a language can be encoded."""
        if self.stated:
            try:
                self.encoder.numbers([language], "text")
            except InputError:
                return False
        return True

    def check(self, task: Task) -> None:
        """Raises an `InputError` unless the languages of a task's texts are known."""
        if self.stated:
            own = task.document_language
            self.encoder.numbers(sorted(set(task.spoken)), "query")
            self.encoder.numbers(
                [own] if isinstance(own, str) else sorted(set(own)), "document"
            )


@dataclasses.dataclass(frozen=True)
class Way:
    """How vectors are searched: which views (none: all), and how much of them.

    That is how many terms, or how many numbers of an embedding.
    """

    views: Sequence[str] = ()
    prune_queries: Pruning | None = None
    prune_documents: Pruning | None = None
    prefix: Prefix | None = None

    def queries(self, views: Mapping[str, Any]) -> Any:
        """The matrix of queries, of their views."""
        return self._joined(views, self.prune_queries)

    def documents(self, views: Mapping[str, Any]) -> Any:
        """The same of documents."""
        return self._joined(views, self.prune_documents)

    def _joined(self, views: Mapping[str, Any], pruning: Pruning | None) -> Any:
        matrix = joined({name: views[name] for name in self.views or views})
        if self.prefix is not None:
            matrix = self.prefix.apply(matrix)
        if pruning is None:
            return matrix
        if not isinstance(matrix, sparse.csr_matrix):
            raise InputError(
                "Embeddings of tokens have no terms to prune. Leave --prune_queries and"
                " --prune_documents out."
            )
        return pruning.apply(matrix)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What a system found for each query of a task, and what that costs.

    Attributes:
      hits: [Q, depth] int32 positions in the corpus, best first, -1 for none.
      scores: [Q, depth] float32.
      query_terms: [Q] active terms of each query.
      document_terms: their mean over the documents.
      index_bytes: mean bytes of a document in an index.
    """

    hits: np.ndarray
    scores: np.ndarray
    query_terms: np.ndarray | None = None
    document_terms: float = 0.0
    index_bytes: float = 0.0


def views_of(searcher: Searcher) -> dict[str, tuple[str, ...]]:
    """The evaluated views: all together under "", and each alone if several."""
    views = tuple(searcher.encoder.spec.views)
    alone = {view: (view,) for view in views} if len(views) > 1 else {}
    return {"": views, **alone}


def rank(
    task: Task,
    searcher: Searcher,
    ways: Mapping[str, Way],
    depth: int,
    *,
    lowercase: bool = False,
    kept: KeptFile | None = None,
) -> dict[str, Ranking]:
    """What a model finds in each of several ways; every text is encoded once.

    Args:
      lowercase: encode texts in lower case.
      kept: holds what is found so far, from which a search that was stopped goes on.

    Raises:
      InputError: a vector is not finite, or embeddings are to be pruned.
    """
    views = searcher.queries(_cased(task.queries, lowercase), task.spoken)
    queries = {name: way.queries(views) for name, way in ways.items()}
    return _searched(task, searcher, ways, queries, depth, lowercase, kept)


def feed_back(
    task: Task,
    searcher: Searcher,
    way: Way,
    first: Ranking,
    how: Rocchio,
    *,
    lowercase: bool = False,
    kept: KeptFile | None = None,
) -> Ranking:
    """Searches again with terms of the documents that were found first.

    Args:
      first: what `rank` found this way.
      how: as of `feedback.rocchio`.
      lowercase, kept: as of `rank`.

    Raises:
      InputError: the model's vectors are not sparse.
    """
    views = searcher.queries(_cased(task.queries, lowercase), task.spoken)
    queries = way.queries(views)
    if not searcher.encoder.spec.sparse:
        raise InputError("--feedback needs a model whose vectors have terms.")
    places, rows = np.unique(first.hits[:, : how.documents], return_inverse=True)
    used = [place for place in places.tolist() if place >= 0]
    texts = [task.corpus[place] for place in used]
    found = searcher.documents(_cased(texts, lowercase), task.spoken_at(used))
    # Row -1 for no hit stays: it is the first of the places, if it is among them.
    hits = rows.reshape(len(task.queries), -1) - int(places[0] < 0)
    documents = way.documents(found)
    asked = {"": rocchio(queries, documents, hits, how)}
    depth = first.hits.shape[1]
    return _searched(task, searcher, {"": way}, asked, depth, lowercase, kept)[""]


def _cased(texts: Sequence[str], lowercase: bool) -> Sequence[str]:
    return [text.lower() for text in texts] if lowercase else texts


def _searched(
    task: Task,
    searcher: Searcher,
    ways: Mapping[str, Way],
    queries: Mapping[str, Any],
    depth: int,
    lowercase: bool,
    kept: KeptFile | None,
) -> dict[str, Ranking]:
    depth += task.own_ids
    best = {name: TopHits(queries[name], depth) for name in ways}
    terms, size = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    start = _go_on(kept, best, terms, size) if kept else 0
    saved = time.monotonic()
    for block in blocks(task.corpus, lowercase, start):
        places = range(start, start + len(block))
        documents = searcher.documents(block, task.spoken_at(places))
        share = len(block) / len(task.corpus)
        for name, way in ways.items():
            matrix = way.documents(documents)
            best[name].add(matrix)
            terms[name] += int(text_terms(matrix).sum())
            parts = [documents[view] for view in way.views or documents]
            # Each view is stored apart, unless a part of all of them is chosen.
            whole = way.prune_documents is None and way.prefix is None
            apart = parts if whole else [matrix]
            size[name] += sum(index_bytes(part) for part in apart) * share
        start += len(block)
        if kept and time.monotonic() - saved >= _KEEP_SECONDS:
            _keep(kept, start, best, terms, size)
            saved = time.monotonic()
    return {
        name: Ranking(
            *_hits(task, best[name]),
            text_terms(queries[name]),
            terms[name] / len(task.corpus),
            size[name],
        )
        for name in ways
    }


def _keep(kept: KeptFile, start: int, best, terms, size) -> None:
    """Writes what is found in the first documents, up to `start`."""
    arrays: dict[str, Any] = {"start": start}
    for i, name in enumerate(best):
        hits, scores = best[name].best()
        arrays |= {f"hits{i}": hits, f"scores{i}": scores}
    arrays["terms"], arrays["size"] = list(terms.values()), list(size.values())
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    kept.write(buffer.getvalue())


def _go_on(kept: KeptFile, best, terms, size) -> int:
    """Restores what `_keep` wrote, if it is there; returns the documents searched."""
    content = kept.read()
    if content is None:
        return 0
    with np.load(io.BytesIO(content)) as file:
        start = int(file["start"])
        for i, name in enumerate(best):
            best[name].restore(file[f"hits{i}"], file[f"scores{i}"], start)
            terms[name], size[name] = int(file["terms"][i]), float(file["size"][i])
    kept.kept.say(f"{start:,} documents are searched already.")
    return start


def bm25(task: Task, depth: int) -> Ranking:
    """What BM25 finds, over the strings that queries and documents share."""
    hits, scores = BM25(task.corpus).search(task.queries, depth + task.own_ids)
    if task.own_ids:
        hits, scores = task.without_own(hits, scores)
    return Ranking(hits, scores)


def blocks(
    corpus: Sequence[str], lowercase: bool = False, first: int = 0
) -> Iterator[Sequence[str]]:
    """The texts from `first` on, as many at once as have vectors that fit in memory."""
    for start in range(first, len(corpus), _BLOCK):
        some = corpus[start : start + _BLOCK]
        yield _cased(some, lowercase)


def _hits(task: Task, found: TopHits) -> tuple[np.ndarray, np.ndarray]:
    return task.without_own(*found.best()) if task.own_ids else found.best()


def text_terms(matrix: sparse.csr_matrix | TokenMatrix | Several) -> np.ndarray:
    """The number [N] of each text's weights, or of its tokens with an embedding."""
    if isinstance(matrix, Several):
        return np.sum([text_terms(part) for part in matrix.parts], axis=0)
    if isinstance(matrix, TokenMatrix):
        return np.diff(matrix.starts)
    return np.bincount(matrix.nonzero()[0], minlength=matrix.shape[0])


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
