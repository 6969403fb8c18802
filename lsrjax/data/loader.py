"""Batches: batch i is a pure function of (seed, i), so the position is the step."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import grain
import numpy as np

from lsrjax.data import shapes
from lsrjax.data.sources import ANY, ENGLISH, Group, Pair, Text
from lsrjax.data.tokenization import TextField
from lsrjax.errors import InputError

# What a draw is for: streams of random numbers that must not repeat one another.
_ORDER, _EXAMPLE, _DEAL = range(3)
# The shapes are fitted to the first batches: so many, or fewer of more examples.
_SAMPLED_BATCHES, _SAMPLED_EXAMPLES = 32, 4096
# Examples are dealt among so many batches, or fewer of more examples.
_DEALT_BATCHES, _DEALT_EXAMPLES = 32, 2048
# A batch has so many lanes, or fewer where they do not divide it.
_LANES = 8
# Fewer tokens in a part, on average, would leave matrix products waiting for the
# parameters: a chip does some 100 to 300 operations in the time that it reads a number.
_PART_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples make up a batch.

    The examples follow each other epoch after epoch, each epoch in its own random
    order; a batch may span two.

    Attributes:
      examples: their number.
      batch_size: examples in a batch.
      seed: of the order.
    """

    examples: int
    batch_size: int
    seed: int

    def __getitem__(self, batch: int) -> list[tuple[int, int]]:
        """(epoch, example) of each example of the batch."""
        positions = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.examples)
        members = []
        for epoch in np.unique(epochs).tolist():
            chosen = self._permutation(epoch)[places[epochs == epoch]]
            members += [(epoch, example) for example in chosen.tolist()]
        return members

    def window(self, batch: int) -> range:
        """The batches that share their examples out among them, this one included.

        They are of one epoch (that of their first examples), so that an epoch's last
        batches leave nothing of it to the next one.
        """
        epoch = batch * self.batch_size // self.examples
        first, stop = (
            -(-e * self.examples // self.batch_size) for e in (epoch, epoch + 1)
        )
        count = stop - first
        most = min(max(_DEALT_EXAMPLES // self.batch_size, 1), _DEALT_BATCHES)
        windows = -(-count // most)
        chosen = ((batch - first + 1) * windows - 1) // count
        start, stop = (first + c * count // windows for c in (chosen, chosen + 1))
        return range(start, stop)

    @functools.lru_cache(maxsize=4)  # noqa: B019  (one order per program)
    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, _ORDER, epoch))
        return rng.permutation(self.examples)


def wording(text: Text, language: str = ENGLISH) -> str:
    """The text in a language; texts of unstated language count as any."""
    return text[language] if language in text else text[ANY]


def text_key(text: Text) -> np.ndarray:
    """The identity of a text, [2] int32: 64 bits of a hash of one wording.

    Of the English one or, without it, of the first by the language's name; so the
    translations of a text, as one source gives them, are the same text.
    """
    language = ENGLISH if ENGLISH in text else min(text)
    # A lone surrogate, which JSON may hold, is text like any other here.
    spelled = text[language].encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(spelled, digest_size=8).digest()
    return np.frombuffer(digest, "<i4").astype(np.int32)


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


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An example as it is trained on.

    Attributes:
      texts: token ids by the name of the text; a group has several documents.
      targets: arrays by name.
    """

    texts: dict[str, list[list[int]]]
    targets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(row) for rows in self.texts.values() for row in rows)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The texts of a batch that one model encodes together.

    Attributes:
      names: of the texts, in the order in which they are laid.
      max_length: tokens of the longest.
      pad_id: of the model's tokenizer.
    """

    names: tuple[str, ...]
    max_length: int
    pad_id: int


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """Pairs to the texts of the alignment loss.

    The student encodes `translation` and `english`, the teacher `english`.
    """

    student: TextField
    teacher: TextField

    @property
    def encoded(self) -> dict[str, Encoded]:
        """What each model encodes."""
        student, teacher = (
            Encoded(names, field.max_length, field.tokenizer.pad_id)
            for names, field in (
                (("translation", "english"), self.student),
                (("teacher",), self.teacher),
            )
        )
        return {"student": student, "teacher": teacher}

    def draw(self, pairs: Sequence[Pair], rngs) -> list[Drawn]:
        """Token ids of the texts of each pair; there is nothing to draw."""
        english = [pair.english for pair in pairs]
        texts = {
            "translation": self.student.ids([pair.translation for pair in pairs]),
            "english": self.student.ids(english),
            "teacher": self.teacher.ids(english),
        }
        return [
            Drawn({name: [rows[i]] for name, rows in texts.items()})
            for i in range(len(pairs))
        ]


@dataclasses.dataclass(frozen=True)
class GroupBatches:
    """Groups to the texts and scores of the ranking losses.

    The student encodes `query` and G times `document`; `with_scores` adds the target
    `scores`, [B, G] float32, and `with_keys` the targets `query_key`, [B, 2], and
    `document_key`, [B, G, 2] (see `text_key`). The first document of a group is
    a positive one, the rest negatives, all drawn without repetition; which, and in
    which language each is shown, is a function of (seed, epoch, example).

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
      with_keys: the texts' identities do.
    """

    query: TextField
    document: TextField
    group_size: int
    mixing: str
    query_languages: Mapping[str, float]
    document_languages: Mapping[str, float]
    with_scores: bool
    with_keys: bool = False

    @property
    def encoded(self) -> dict[str, Encoded]:
        """What each model encodes."""
        longest = max(self.query.max_length, self.document.max_length)
        pad_id = self.document.tokenizer.pad_id
        return {"student": Encoded(("query", "document"), longest, pad_id)}

    def draw(
        self, groups: Sequence[Group], rngs: Sequence[np.random.Generator]
    ) -> list[Drawn]:
        """Draws documents and languages of each group, and tokenizes them."""
        queries, documents, targets = [], [], []
        for group, rng in zip(groups, rngs, strict=True):
            chosen = self._choose(group, rng)
            texts = [[*group.positives, *group.negatives][i] for i in chosen]
            language = draw_language(group.query, self.query_languages, rng)
            queries.append(group.query[language])
            documents += self._word(group.id, texts, rng)
            targets.append(self._targets(group, chosen, texts))
        query_ids, document_ids = self.query.ids(queries), self.document.ids(documents)
        G = self.group_size
        return [
            Drawn(
                {"query": [query_ids[i]], "document": document_ids[i * G : i * G + G]},
                targets[i],
            )
            for i in range(len(groups))
        ]

    def _targets(self, group: Group, chosen: list[int], texts) -> dict[str, np.ndarray]:
        targets = {"scores": group.scores[chosen]} if self.with_scores else {}
        if self.with_keys:
            targets["query_key"] = text_key(group.query)
            targets["document_key"] = np.stack([text_key(text) for text in texts])
        return targets

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


def rows_of(drawn: Sequence[Drawn], encoded: Encoded) -> list[list[int]]:
    """The texts that a model encodes, in their order: by name, then by example."""
    return [row for name in encoded.names for d in drawn for row in d.texts[name]]


def deal(sizes_n: Sequence[int], batches: int, turn: int) -> np.ndarray:
    """Deals examples to batches so that their sizes are alike in every batch.

    They are dealt by size, there and back again.

    Args:
      sizes_n: of the examples.
      batches: divides their number.
      turn: the deal begins at this batch.

    Returns:
      The examples of each batch, [batches, n / batches].
    """
    dealt = np.argsort(sizes_n, kind="stable").reshape(-1, batches)
    dealt[1::2] = dealt[1::2, ::-1]
    return np.roll(dealt, turn, axis=1).T


class Batches:
    """Random access to batches: batch i is a pure function of (seed, i).

    A batch is divided over devices by examples. For each model there is what
    `lsrjax.data.shapes.cut` makes of each device's texts, laid end to end, and the
    targets: `{"student": …, "teacher": …, "targets": {name: array}}`.

    Batches of all short or all long texts would pad a lot or be of many shapes. So the
    examples of a window of batches are dealt to them by their tokens. Lane by lane,
    a fixed share of every batch: so a process that reads a part of each batch need not
    read all of the window, and a batch holds the same examples whatever it is divided
    over.
    """

    def __init__(
        self,
        source,
        order: Order,
        build: PairBatches | GroupBatches,
        *,
        devices: int = 1,
        rows: Sequence[int] | None = None,
        parts: int = 12,
        multiple: int = 4,
        agree: Callable[[int, int], int] = lambda batch, shape: shape,
    ):
        """Fits the shapes to the first batches.

        Args:
          source: the examples.
          order: which of them make up which batch.
          build: examples to token ids.
          devices: those that a batch is divided over.
          rows: which of them this process reads for; all by default.
          parts: of a shape, at most; of a few tokens, fewer are made.
          multiple: lengths are multiples of it.
          agree: given a batch's number and the shape that this process needs for it,
            the largest that any process needs.
        """
        self._source = source
        self._order = order
        self._build = build
        self._devices = devices
        self._rows = range(devices) if rows is None else rows
        self._agree = agree
        self._lanes = math.gcd(order.batch_size, _LANES)
        self._lock = threading.Lock()
        self._dealt: dict[tuple, concurrent.futures.Future] = {}
        self.shapes = self._fit(parts, multiple)

    def __len__(self) -> int:
        return sys.maxsize  # without end

    def __getitem__(self, index: int) -> dict:
        """Batch `index`."""
        drawn = self._draw(index, self._rows)
        texts = {
            name: [rows_of(d, encoded) for d in drawn]
            for name, encoded in self._build.encoded.items()
        }
        chosen = self._agree(index, self._smallest(texts))
        batch = {
            name: _laid_end_to_end(
                [
                    shapes.cut(rows, self.shapes[chosen][name], encoded.pad_id)
                    for rows in texts[name]
                ]
            )
            for name, encoded in self._build.encoded.items()
        }
        targets = [example.targets for d in drawn for example in d]
        batch["targets"] = {
            name: np.stack([t[name] for t in targets]) for name in targets[0]
        }
        return batch

    def _draw(self, index: int, rows: Sequence[int]) -> list[list[Drawn]]:
        """The examples of a batch for some of its devices."""
        window = self._order.window(index)
        share = self._order.batch_size // self._devices
        width = self._order.batch_size // self._lanes

        def example(place: int) -> Drawn:
            lane, row = divmod(place, width)
            return self._lane(window, lane)[index - window.start][row]

        return [[example(r * share + i) for i in range(share)] for r in rows]

    def _lane(self, window: range, lane: int) -> list[list[Drawn]]:
        """A lane's examples for each batch of a window, made once for all threads."""
        with self._lock:
            made = self._dealt.get((window.start, lane))
            first = made is None
            if first:
                made = concurrent.futures.Future()
                self._dealt[window.start, lane] = made
                # Threads work on neighbouring batches: of two windows at most.
                while len(self._dealt) > 3 * self._lanes:
                    del self._dealt[next(iter(self._dealt))]
        if first:
            try:
                made.set_result(self._deal(window, lane))
            except BaseException as error:
                made.set_exception(error)
        return made.result()

    def _deal(self, window: range, lane: int) -> list[list[Drawn]]:
        order = self._order
        width = order.batch_size // self._lanes
        members = [
            member
            for batch in window
            for member in order[batch][lane * width : (lane + 1) * width]
        ]
        drawn = self._build.draw(
            [self._source[example] for _, example in members],
            [np.random.default_rng((order.seed, _EXAMPLE, *m)) for m in members],
        )
        # Lanes begin at batches far apart, so that none is the first for all of them.
        turn = lane * len(window) // self._lanes
        dealt = deal([example.tokens for example in drawn], len(window), turn)
        # In no order of size, so that the devices that share a lane are alike.
        rng = np.random.default_rng((order.seed, _DEAL, window.start, lane))
        dealt = rng.permuted(dealt, axis=1)
        return [[drawn[i] for i in batch] for batch in dealt.tolist()]

    def _fit(self, parts: int, multiple: int) -> list[dict[str, shapes.Shape]]:
        """Shapes by model, cheapest first."""
        sampled = _SAMPLED_EXAMPLES // self._order.batch_size
        samples = [
            drawn
            for index in range(min(max(sampled, 4), _SAMPLED_BATCHES))
            for drawn in self._draw(index, range(self._devices))
        ]
        tables = {}
        for name, encoded in self._build.encoded.items():
            lengths_Sn = np.array(
                [[len(r) for r in rows_of(d, encoded)] for d in samples]
            )
            tokens = lengths_Sn.sum() / len(samples)
            tables[name] = shapes.fit(
                lengths_Sn,
                encoded.max_length,
                parts=min(parts, max(int(tokens / _PART_TOKENS), 1)),
                multiple=multiple,
            )
        longest = max(map(len, tables.values()))
        # A shorter table repeats its last shape, which holds everything.
        return [
            {name: table[min(i, len(table) - 1)] for name, table in tables.items()}
            for i in range(longest)
        ]

    def _smallest(self, texts: dict[str, list]) -> int:
        """The first shape that holds every device's texts."""
        lengths = [
            (name, np.sort([len(row) for row in rows]))
            for name, devices in texts.items()
            for rows in devices
        ]
        return next(
            i
            for i, shape in enumerate(self.shapes)
            if all(shape[name].holds(sizes) for name, sizes in lengths)
        )


def _laid_end_to_end(devices: Sequence[dict]) -> dict:
    """What `cut` gives for each device, each array end to end."""
    return {
        "parts": tuple(
            {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            for parts in zip(*(d["parts"] for d in devices), strict=True)
        ),
        **{key: np.concatenate([d[key] for d in devices]) for key in ("place", "text")},
    }


def stream(
    batches: Batches, start: int, stop: int, *, threads: int, prefetch: int
) -> Iterator:
    """The batches from number `start` up to `stop`, made ahead in threads."""
    dataset = grain.MapDataset.source(range(start, stop)).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))
