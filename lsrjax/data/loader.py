"""Batches: batch i is a pure function of (seed, i), so the position is the step."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from lsrjax.data.sources import ANY, ENGLISH, Group, Pair, Text
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError

# What a draw is for: streams of random numbers that must not repeat one another.
_ORDER, _WINDOW, _EXAMPLE = range(3)


class BatchOrder:
    """Which examples make up batch i.

    The examples follow each other epoch after epoch, each epoch in its own random
    order; a batch may span two. Within a window of `window` batches the examples are
    sorted by size before they are cut into batches (and the batches shuffled), so that
    a batch holds texts of about one length and little padding.
    """

    def __init__(
        self, sizes: np.ndarray, batch_size: int, seed: int, window: int, start: int = 0
    ):
        """The order of the batches from number `start` on.

        Args:
          sizes: [number of examples], anything that grows with the tokens.
          batch_size: examples in a batch.
          seed: of the order.
          window: batches sorted together; 1 switches sorting off.
          start: the batch that position 0 gives.
        """
        self._sizes = sizes
        self._batch_size = batch_size
        self._seed = seed
        self._window = window
        self._start = start
        self._permutation = functools.lru_cache(maxsize=4)(self._make_permutation)
        self._batches = functools.lru_cache(maxsize=4)(self._make_window)

    def __len__(self) -> int:
        return 2**62 // self._batch_size  # without end

    def __getitem__(self, position: int) -> list[tuple[int, int]]:
        """(epoch, example) of each example of the batch."""
        window, place = divmod(position + self._start, self._window)
        epochs, examples = self._batches(window)
        return list(zip(epochs[place], examples[place], strict=True))

    def _make_permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, _ORDER, epoch))
        return rng.permutation(len(self._sizes))

    def _make_window(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        count = self._window * self._batch_size
        positions = np.arange(window * count, (window + 1) * count)
        epochs, places = np.divmod(positions, len(self._sizes))
        examples = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            examples[here] = self._permutation(int(epoch))[places[here]]
        by_size = np.argsort(self._sizes[examples], kind="stable")
        batches = by_size.reshape(self._window, self._batch_size)
        rng = np.random.default_rng((self._seed, _WINDOW, window))
        batches = batches[rng.permutation(self._window)]
        return epochs[batches], examples[batches]


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

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        return self.tokenizer.batch(texts, self.max_length, self.buckets)


def wording(text: Text, language: str = ENGLISH) -> str:
    """The text in a language; texts of unstated language count as any."""
    return text[language] if language in text else text[ANY]


def draw_language(
    text: Text, weights: Mapping[str, float], rng: np.random.Generator
) -> str:
    """One of the text's languages, drawn by weight.

    Args:
      text: the wordings.
      weights: language to weight; `*` stands for every language not named. Where all
        of the text's languages weigh 0, they weigh the same.
      rng: the generator.
    """
    languages = list(text)
    rest = weights.get(ANY, 0.0)
    shares = np.array([weights.get(language, rest) for language in languages])
    if shares.sum() == 0:
        shares = np.ones(len(languages))
    return languages[rng.choice(len(languages), p=shares / shares.sum())]


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """Pairs to the texts of the alignment loss.

    The batch is `{"texts": {"translation", "english"}, "teacher_text"}`; each text is
    `{"ids", "mask"}`, [B, L] int32.
    """

    student: TextField
    teacher: TextField

    def __call__(self, pairs: Sequence[Pair], rngs) -> dict:
        english = [pair.english for pair in pairs]
        return {
            "texts": {
                "translation": self.student([pair.translation for pair in pairs]),
                "english": self.student(english),
            },
            "teacher_text": self.teacher(english),
        }


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
      mixing: "passages" (each document's language is drawn on its own) or "entries"
        (one language for a query and its documents), as in Multilingual
        Translate-Distill.
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

    def __call__(self, groups: Sequence[Group], rngs) -> dict:
        queries, documents, scores = [], [], []
        for group, rng in zip(groups, rngs, strict=True):
            chosen = self._choose(group, rng)
            texts = [[*group.positives, *group.negatives][i] for i in chosen]
            language = draw_language(group.query, self.query_languages, rng)
            queries.append(group.query[language])
            for text in texts:
                if self.mixing == "passages":
                    own = draw_language(text, self.document_languages, rng)
                else:
                    own = language if language in text else next(iter(text))
                documents.append(text[own])
            if self.with_scores:
                scores.append(group.scores[chosen])
        batch = {
            "texts": {
                "query": self.query(queries),
                "document": self.document(documents),
            }
        }
        if self.with_scores:
            batch["targets"] = {"scores": np.stack(scores)}
        return batch

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


def batches(
    source,
    order: BatchOrder,
    build: PairBatches | GroupBatches,
    seed: int,
    *,
    threads: int,
    prefetch: int,
) -> Iterator[dict]:
    """Batches in order, read and tokenized in threads.

    Args:
      source: the examples.
      order: which of them make up which batch.
      build: examples to arrays.
      seed: of every draw inside a batch.
      threads: number of them.
      prefetch: batches held ready.
    """

    def make(members: list[tuple[int, int]]) -> dict:
        examples = [source[index] for _, index in members]
        rngs = (
            np.random.default_rng((seed, _EXAMPLE, int(epoch), int(index)))
            for epoch, index in members
        )
        return build(examples, rngs)

    dataset = grain.MapDataset.source(order).map(make)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))
