"""Hard negatives of training rows from a whole corpus, with what made them hard.

Like `mine_hard_negatives` of sentence-transformers, for any retriever and BM25.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.batching.drawing import wording
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval import metrics, teacher_scores
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.encode_texts import joined
from lsrjax.retrieval.kept import KeptFile
from lsrjax.retrieval.mine_negatives import BLOCK, Hits
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.search import Best, search
from lsrjax.retrieval.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which hits of a query may be its negatives, and how many are taken.

    Margins and the highest score are those of NV-Retriever (Moreira et al. 2024) as
    sentence-transformers has them: of several positives, the best one counts.
    """

    count: int = option(7, "negatives of a query, at most", above=0, high=2**16)
    from_rank: int = option(
        1, "best rank of a negative; 1 is the best hit that is no positive", above=0
    )
    to_rank: int = option(100, "worst rank of a negative", above=0, high=2**20)
    depth: int = option(
        0, "hits searched for a query; 0: to_rank and the positives", low=0, high=2**20
    )
    absolute_margin: float = option(
        -math.inf,
        "a negative scores this much less than the positive, at least; -inf: any",
        infinite=True,
    )
    relative_margin: float = option(
        -math.inf,
        "the same as a share of the positive's score, as .05 (NV-Retriever); -inf: any",
        infinite=True,
    )
    max_score: float = option(
        math.inf, "highest score of a negative; inf: any", infinite=True
    )
    sampling: str = option(
        "top",
        "of the hits left: top (the first) | random",
        choices=("top", "random"),
    )
    filter_margin: float = option(
        0.0,
        "with a filter: its score of a negative is this much less than of the positive",
    )

    def check(self) -> None:
        """Raises InputError for ranks that leave too few hits."""
        if self.to_rank - self.from_rank + 1 < self.count:
            raise InputError(
                f"--from_rank {self.from_rank} and --to_rank {self.to_rank} leave"
                f" fewer hits than --count {self.count}. Raise --to_rank."
            )

    def allowed(self, scores: np.ndarray, positive: float) -> np.ndarray:
        """Which hits, by their scores, may be negatives beside the positive's score."""
        below = scores <= self.max_score
        if self.absolute_margin > -math.inf:
            below &= scores + self.absolute_margin <= positive
        if self.relative_margin > -math.inf:
            below &= scores <= positive - abs(positive) * self.relative_margin
        return below

    def take(self, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The negatives of the places in the hits that are left, best first."""
        if self.sampling == "random" and len(places) > self.count:
            places = np.sort(rng.choice(places, self.count, replace=False))
        return places[: self.count]


@dataclasses.dataclass(frozen=True)
class Asked:
    """Queries with positives, over the distinct documents of a corpus.

    Attributes:
      texts: N documents' texts.
      ids: of a place in `texts`, the document's id; None if it has none.
      queries: Q texts.
      positives: of each query, places in `texts`.
      barred: of each query, places that are no negatives: the positives of all rows
        with its text.
    """

    texts: Sequence[str]
    ids: Callable[[int], str | None]
    queries: Sequence[str]
    positives: Sequence[list[int]]
    barred: Sequence[set[int]]

    @classmethod
    def of(cls, source) -> "Asked":
        """Collects the documents of a source's corpus and of its rows."""
        corpus, _ = teacher_scores.corpus_of(source, whole=True)
        first: dict[str, int] = {}
        for place in range(len(corpus)):
            if text := teacher_scores.usable(corpus, place):
                first.setdefault(text, place)
        known = list(first.values())
        number = {text: i for i, text in enumerate(first)}
        collection: Any = getattr(source, "documents", ())
        queries, positives = [], []
        together: dict[str, set[int]] = {}
        for index in range(len(source)):
            group = source[index]
            queries.append(wording(group.query))
            own = [number[wording(text)] for text in group.positives]
            positives.append(list(dict.fromkeys(own)))
            together.setdefault(queries[-1], set()).update(own)

        def ids(place: int) -> str | None:
            inside = hasattr(collection, "item") and known[place] < len(collection)
            return collection.item(known[place])[0] if inside else None

        barred = [together[query] for query in queries]
        return cls(list(first), ids, queries, positives, barred)

    @classmethod
    def of_task(cls, task: Task) -> "Asked":
        """Collects the documents of a benchmark, and the queries with a positive.

        A document that is judged not to be relevant may be a negative.

        Raises:
          InputError: only documents that are found are judged.
        """
        if task.judge is not None:
            raise InputError(
                f"{task.name} has no judgements before a search, so no positives. Name"
                " a --task with judgements, or training rows in --data."
            )
        texts: dict[str, int] = {}
        known: list[int] = []  # places in the corpus
        number: list[int] = []
        for place, text in enumerate(task.corpus):
            if text.strip() and text not in texts:
                texts[text] = len(known)
                known.append(place)
            number.append(texts.get(text, -1))
        places = {key: place for place, key in enumerate(task.document_ids)}
        queries, positives = [], []
        together: dict[str, set[int]] = {}
        for query, relevant in enumerate(task.relevant):
            own = dict.fromkeys(number[place] for place in _relevant(relevant))
            own.pop(-1, None)
            if not own:
                continue
            queries.append(task.queries[query])
            positives.append(list(own))
            barred = together.setdefault(queries[-1], set())
            barred.update(own)
            if task.own_ids and task.query_ids[query] in places:
                barred.add(number[places[task.query_ids[query]]])

        def ids(place: int) -> str | None:
            return task.document_ids[known[place]] if task.document_ids else None

        barred_of = [together[query] for query in queries]
        return cls(list(texts), ids, queries, positives, barred_of)

    def depth(self, rules: Rules) -> int:
        """Hits to search for."""
        most = max(map(len, self.barred), default=0)
        return min(rules.depth or rules.to_rank + most, len(self.texts))


def _relevant(judged: metrics.Relevant) -> list[int]:
    """The places of a query's relevant documents."""
    if isinstance(judged, Mapping):
        return [place for place, grade in judged.items() if grade > 0]
    return list(judged) if isinstance(judged, Collection) else [int(judged)]


def find(
    asked: Asked,
    model: Searcher,
    depth: int,
    kept: KeptFile,
    say: Callable[[str], None] = lambda text: None,
) -> Hits:
    """Hits and scores [Q, depth] of a retriever, as `search` gives them.

    Memory does not grow with the corpus: after each block of documents the best hits
    so far are in the file `kept`, from which a program that was stopped goes on.
    """
    queries = joined(model.queries(asked.queries))
    best, start = Best(len(asked.queries), depth), 0
    if content := kept.read():
        with np.load(io.BytesIO(content)) as file:
            start = int(file["start"])
            best.add(slice(None), file["scores"], file["hits"])
        say(f"{start:,} of {len(asked.texts):,} documents are searched already.")
    while start < len(asked.texts):
        block = asked.texts[start : start + BLOCK]
        hits, scores = search(queries, joined(model.documents(block)), depth)
        best.add(slice(None), scores, hits + start)  # no hit scores 0, and is left out
        start += len(block)
        hits, scores = best.hits()
        buffer = io.BytesIO()
        np.savez(buffer, start=np.array(start), hits=hits, scores=scores)
        kept.write(buffer.getvalue())
        say(f"{start:,} of {len(asked.texts):,} documents searched")
    return best.hits()


@dataclasses.dataclass(frozen=True)
class Mined:
    """The negatives of one query: places in the corpus, ranks from 1, scores.

    `filtered` has the filter's scores of the positives and of the negatives.
    """

    places: list[int]
    ranks: list[int]
    scores: list[float]
    positive_scores: list[float]
    filtered: tuple[list[float], list[float]] | None = None


def choose(
    asked: Asked,
    rows: slice,
    hits: np.ndarray,
    scores: np.ndarray,
    rules: Rules,
    seed: int,
    model: Searcher | BM25,
    scorer: PairScorer | Searcher | None = None,
) -> Iterator[Mined]:
    """The negatives of some queries; row i depends on the hits and (seed, i) only.

    Args:
      rows: of the queries.
      hits, scores: [Q of rows, depth] from `find` or BM25.
      model: that found the hits.
      scorer: keeps hits that it scores less than the positive, by `filter_margin`.
    """
    positives = asked.positives[rows]
    known = teacher_scores.ragged(model, asked.queries[rows], asked.texts, positives)
    candidates = []
    for i, own in enumerate(known):
        barred = asked.barred[rows.start + i]
        free = [n for n, h in enumerate(hits[i].tolist()) if h >= 0 and h not in barred]
        ranked = np.array(free[rules.from_rank - 1 : rules.to_rank], int)
        allowed = rules.allowed(scores[i][ranked], max(own))
        rank_of = {n: rank for rank, n in enumerate(free, start=1)}
        candidates.append((ranked[allowed], rank_of))
    filtered = None
    if scorer is not None:
        filtered = _filtered(asked, rows, hits, candidates, scorer)
    for i, (left, rank_of) in enumerate(candidates):
        if filtered:
            of_positives, of_hits = filtered[i]
            most = max(of_positives) - rules.filter_margin
            left = left[[of_hits[n] <= most for n in left.tolist()]]
        rng = np.random.default_rng((seed, rows.start + i))
        taken = rules.take(left, rng).tolist()
        yield Mined(
            hits[i][taken].tolist(),
            [rank_of[n] for n in taken],
            [float(str(score)) for score in scores[i][taken]],
            known[i],
            (filtered[i][0], [filtered[i][1][n] for n in taken]) if filtered else None,
        )


def _filtered(asked, rows, hits, candidates, scorer) -> list:
    """The filter's scores: of each query's positives, and of its hits by position."""
    positives = asked.positives[rows]
    places = [
        [*own, *row[left].tolist()]
        for own, row, (left, _) in zip(positives, hits, candidates, strict=True)
    ]
    found = teacher_scores.ragged(scorer, asked.queries[rows], asked.texts, places)
    return [
        (of[: len(own)], dict(zip(left.tolist(), of[len(own) :], strict=True)))
        for own, (left, _), of in zip(positives, candidates, found, strict=True)
    ]
