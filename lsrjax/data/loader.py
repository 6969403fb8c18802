"""Batches: batch i is a pure function of (seed, i), so the position is the step."""

import dataclasses
import functools
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import grain
import numpy as np

from lsrjax.data.sources import ANY, ENGLISH, Group, Pair, Text
from lsrjax.data.tokenization import TextTokenizer, pad
from lsrjax.errors import InputError

# What a draw is for: streams of random numbers that must not repeat one another.
_ORDER, _WINDOW, _EXAMPLE = range(3)


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples make up a window, a fixed number of batches.

    The examples follow each other epoch after epoch, each epoch in its own random
    order; a window may span two.

    Attributes:
      examples: their number.
      batch_size: examples in a batch.
      seed: of the order.
      window: batches in a window.
    """

    examples: int
    batch_size: int
    seed: int
    window: int

    def __getitem__(self, window: int) -> list[tuple[int, int]]:
        """(epoch, example) of each example of the window."""
        count = self.window * self.batch_size
        positions = np.arange(window * count, (window + 1) * count)
        epochs, places = np.divmod(positions, self.examples)
        members = []
        for epoch in np.unique(epochs).tolist():
            chosen = self._permutation(epoch)[places[epochs == epoch]]
            members += [(epoch, example) for example in chosen.tolist()]
        return members

    @functools.lru_cache(maxsize=4)  # noqa: B019  (one order per program)
    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, _ORDER, epoch))
        return rng.permutation(self.examples)


@dataclasses.dataclass(frozen=True)
class TextField:
    """How one text of a batch is tokenized.

    Attributes:
      tokenizer: the tokenizer.
      max_length: tokens, special ones included.
      buckets: lengths a batch may be padded to.
    """

    tokenizer: TextTokenizer
    max_length: int
    buckets: Sequence[int]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids."""
        return self.tokenizer.ids(texts, self.max_length)

    def pad(self, rows: Sequence[Sequence[int]], longest: int = 0) -> dict:
        """Ids and mask, [B, L], in the smallest bucket that also holds `longest`."""
        return pad(rows, self.tokenizer.pad_id, self.max_length, self.buckets, longest)


def wording(text: Text, language: str = ENGLISH) -> str:
    """The text in a language; texts of unstated language count as any."""
    return text[language] if language in text else text[ANY]


def draw_language(
    languages: Iterable[str], weights: Mapping[str, float], rng: np.random.Generator
) -> str:
    """One of the languages, drawn by weight.

    Args:
      languages: those there are, for example those of a text.
      weights: language to weight; `*` stands for every language not named. Where all
        of the languages weigh 0, they weigh the same.
      rng: the generator.
    """
    languages = list(languages)
    rest = weights.get(ANY, 0.0)
    shares = np.array([weights.get(language, rest) for language in languages])
    if shares.sum() == 0:
        shares = np.ones(len(languages))
    return languages[rng.choice(len(languages), p=shares / shares.sum())]


# A drawn example: token ids of its texts by name, and its targets by name.
Drawn = dict[str, list[list[int]] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """Pairs to the texts of the alignment loss.

    The batch is `{"texts": {"translation", "english"}, "teacher_text"}`; each text is
    `{"ids", "mask"}`, [B, L] int32, with one L for all, so that a run compiles one step
    for each bucket.
    """

    student: TextField
    teacher: TextField

    def draw(self, pairs: Sequence[Pair], rngs) -> list[Drawn]:
        """Token ids of the texts of each pair; there is nothing to draw."""
        english = [pair.english for pair in pairs]
        texts = {
            "translation": self.student.ids([pair.translation for pair in pairs]),
            "english": self.student.ids(english),
            "teacher": self.teacher.ids(english),
        }
        return [
            {name: [rows[i]] for name, rows in texts.items()} for i in range(len(pairs))
        ]

    def collate(self, drawn: Sequence[Drawn]) -> dict:
        """The batch of drawn pairs."""
        longest = max(size(example) for example in drawn)
        texts = {
            name: field.pad([row for d in drawn for row in d[name]], longest)
            for name, field in (
                ("translation", self.student),
                ("english", self.student),
                ("teacher", self.teacher),
            )
        }
        return {"teacher_text": texts.pop("teacher"), "texts": texts}


@dataclasses.dataclass(frozen=True)
class GroupBatches:
    """Groups to the texts and scores of the ranking losses.

    The batch is `{"texts": {"query": [B, L], "document": [B * G, L]}}` and, with
    `with_scores`, `{"targets": {"scores": [B, G] float32}}`. The first document of a
    group is a positive one, the rest negatives, all drawn without repetition; which,
    and in which language each is shown, is a function of (seed, epoch, example).

    Attributes:
      query: how queries are tokenized.
      document: how documents are.
      group_size: G.
      mixing: how documents' languages are drawn, as in Multilingual
        Translate-Distill: "passages" (each on its own) or "entries" (one for all
        documents of a query, from those that all of them exist in). The query's
        language is drawn on its own.
      query_languages: weights by language.
      document_languages: weights by language.
      with_scores: the teacher's scores go with the batch.
    """

    query: TextField
    document: TextField
    group_size: int
    mixing: str
    query_languages: Mapping[str, float]
    document_languages: Mapping[str, float]
    with_scores: bool

    def draw(
        self, groups: Sequence[Group], rngs: Sequence[np.random.Generator]
    ) -> list[Drawn]:
        """Draws documents and languages of each group, and tokenizes them."""
        queries, documents, drawn = [], [], []
        for group, rng in zip(groups, rngs, strict=True):
            chosen = self._choose(group, rng)
            texts = [[*group.positives, *group.negatives][i] for i in chosen]
            language = draw_language(group.query, self.query_languages, rng)
            queries.append(group.query[language])
            documents += self._word(group.id, texts, rng)
            drawn.append({"scores": group.scores[chosen]} if self.with_scores else {})
        query_ids, document_ids = self.query.ids(queries), self.document.ids(documents)
        for place, example in enumerate(drawn):
            first = place * self.group_size
            example["query"] = [query_ids[place]]
            example["document"] = document_ids[first : first + self.group_size]
        return drawn

    def collate(self, drawn: Sequence[Drawn]) -> dict:
        """The batch of drawn groups."""
        batch = {
            "texts": {
                name: field.pad([row for d in drawn for row in d[name]])
                for name, field in (("query", self.query), ("document", self.document))
            }
        }
        if self.with_scores:
            batch["targets"] = {"scores": np.stack([d["scores"] for d in drawn])}
        return batch

    def _word(self, name: str, texts: Sequence[Text], rng) -> list[str]:
        """A wording of each of a group's documents, by the mixing."""
        weights = self.document_languages
        if self.mixing == "passages":
            return [text[draw_language(text, weights, rng)] for text in texts]
        shared = [
            language for language in texts[0] if all(language in t for t in texts)
        ]
        if not shared:
            raise InputError(
                f"{name}: its documents have no language in common, which"
                " config.data.mixing = 'entries' needs. Use 'passages', or translate"
                " all documents."
            )
        language = draw_language(shared, weights, rng)
        return [text[language] for text in texts]

    def _choose(self, group: Group, rng: np.random.Generator) -> list[int]:
        need = self.group_size - 1
        if len(group.negatives) < need:
            raise InputError(
                f"{group.id}: {len(group.negatives)} negatives, but a group of"
                f" {self.group_size} documents needs {need}. Lower"
                " config.data.group_size, mine negatives (config.prepare.negatives),"
                " or remove the row."
            )
        if self.with_scores and group.scores is None:
            raise InputError(
                f"{group.id}: no teacher scores (pos_scores, neg_scores), which the"
                " loss needs. Add them, or let config.prepare.scores compute them."
            )
        P = len(group.positives)
        negatives = P + rng.choice(len(group.negatives), need, replace=False)
        return [int(rng.integers(P)), *negatives.tolist()]


def size(drawn: Drawn) -> int:
    """Tokens of an example's longest text."""
    return max(
        len(row) for rows in drawn.values() if isinstance(rows, list) for row in rows
    )


class Batches:
    """Random access to batches: batch i is a pure function of (seed, i).

    A window of batches is drawn and tokenized at once and sorted by length before it is
    cut into batches (which are then shuffled), so that a batch holds texts of about one
    length and little padding.
    """

    def __init__(self, source, order: Order, build: PairBatches | GroupBatches):
        """Batches of examples.

        Args:
          source: the examples.
          order: which of them make up which window.
          build: examples to arrays.
        """
        self._source = source
        self._order = order
        self._build = build
        # Several threads ask for batches of one window; the first makes it.
        self._lock = threading.Lock()
        self._window = functools.lru_cache(maxsize=2)(self._make_window)

    def __len__(self) -> int:
        return sys.maxsize  # without end

    def __getitem__(self, index: int) -> dict:
        """Batch `index`."""
        window, place = divmod(index, self._order.window)
        with self._lock:
            drawn = self._window(window)
        first = place * self._order.batch_size
        return self._build.collate(drawn[first : first + self._order.batch_size])

    def _make_window(self, window: int) -> list[Drawn]:
        order = self._order
        members = order[window]
        drawn = self._build.draw(
            [self._source[example] for _, example in members],
            [np.random.default_rng((order.seed, _EXAMPLE, *m)) for m in members],
        )
        by_size = np.argsort([size(example) for example in drawn], kind="stable")
        batches = by_size.reshape(order.window, order.batch_size)
        rng = np.random.default_rng((order.seed, _WINDOW, window))
        return [drawn[i] for i in batches[rng.permutation(order.window)].ravel()]


def stream(batches: Batches, start: int, *, threads: int, prefetch: int) -> Iterator:
    """The batches from number `start` on, made ahead in threads."""
    dataset = grain.MapDataset.source(_Indices(start)).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


@dataclasses.dataclass(frozen=True)
class _Indices:
    start: int

    def __len__(self) -> int:
        return sys.maxsize - self.start

    def __getitem__(self, position: int) -> int:
        return self.start + position
