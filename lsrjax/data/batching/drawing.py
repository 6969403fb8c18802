"""Examples to token ids for training: draws documents and languages.

The draws for an example are a function of (seed, epoch, example).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lsrjax.data.batching.negatives import Choice
from lsrjax.data.examples import ANY, ENGLISH, Group, Pair, Text
from lsrjax.data.reading.bad_records import LANGUAGE, BadRecord
from lsrjax.data.tokenization import TextField, TokenIds
from lsrjax.errors import InputError

# The texts that the student encodes together, and queries that it encodes separately.
STUDENT, QUERIES = "student", "queries"
# The same of a teacher, and the prefix of their names in `Drawn`.
TEACHER, TEACHER_QUERIES, _OF_TEACHER = "teacher", "teacher_queries", "teacher_"
# Of a language's name.
LanguageNumber = Callable[[str], int]
UNSTATED = (
    "the language of a {text} is not stated, which config.model.language = 'stated'"
    " needs. Give the rows a column language, or files and texts by language as a dict."
)
# Ways of mixing by which all documents of a query are in one language.
SHARED = ("entries", "round_robin")


def wording(text: Text, language: str = ENGLISH) -> str:
    """The text in a language; one of unstated language, or in no other, fits any."""
    if language not in text and len(text) == 1:
        return next(iter(text.values()))
    return text[language] if language in text else text[ANY]


def wording_language(text: Text) -> str:
    """The language of `wording(text)`; `*` if it is not stated."""
    return ENGLISH if ENGLISH in text else next(iter(text)) if len(text) == 1 else ANY


def draw_language(
    languages: Iterable[str], weights: Mapping[str, float], number: float
) -> str:
    """One of the languages, drawn by weight.

    Args:
      weights: language to weight; `*` is for every language not named. If all
        candidates have weight 0, their weights are equal.
      number: uniform in [0, 1); determines the draw.
    """
    languages = list(languages)
    rest = weights.get(ANY, 0.0)
    shares = np.array([weights.get(language, rest) for language in languages])
    if shares.sum() == 0:
        shares = np.ones(len(languages))
    upper = np.cumsum(shares)
    return languages[np.searchsorted(upper / upper[-1], number, side="right")]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An example as drawn for training.

    Attributes:
      texts: token ids by the name of the text; a group has several documents.
      keys: examples that share one have a query or a positive text in common.
      languages: of the texts, by name; of some names only.
    """

    texts: Mapping[str, Sequence[TokenIds]]
    targets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    keys: frozenset[tuple[str, str]] = frozenset()
    example: int = -1
    languages: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """The number of tokens of all texts."""
        return sum(len(row) for rows in self.texts.values() for row in rows)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The texts of a batch that one model, or a tower of it, encodes together.

    Attributes:
      prefix: of their names in `Drawn`.
      language_number: of a text's language, for a model that computes by it.
    """

    names: tuple[str, ...]
    max_length: int
    pad_id: int
    prefix: str = ""
    language_number: LanguageNumber | None = None


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model of queries and documents.

    Attributes:
      roles_apart: it encodes them separately.
      language_number: see `Encoded`.
    """

    query: TextField
    document: TextField
    roles_apart: bool = False
    language_number: LanguageNumber | None = None

    def encoded(self, together: str, queries: str, prefix: str) -> dict[str, Encoded]:
        """The texts that it encodes: by `together` all or, with `queries`, the rest."""
        query, document = self.query.max_length, self.document.max_length
        more = (self.document.tokenizer.pad_id, prefix, self.language_number)
        if self.roles_apart:
            return {
                queries: Encoded(("query",), query, *more),
                together: Encoded(("document",), document, *more),
            }
        names, longest = ("query", "document"), max(query, document)
        return {together: Encoded(names, longest, *more)}


class Build(Protocol):
    """Draws token ids and targets for the examples of a batch."""

    @property
    def repeats(self) -> int:
        """How often a batch contains an example."""

    @property
    def encoded(self) -> dict[str, Encoded]:
        """The texts that each model encodes."""

    def draw(
        self, examples: Sequence, rngs: Sequence[np.random.Generator], /
    ) -> list[Drawn]:
        """Draws and tokenizes each example: all of them once, `repeats` times."""


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """Pairs to the texts of the alignment loss.

    The student encodes `translation` and `english`, the teacher `english`.

    Attributes:
      language_number: of the student, see `Encoded`.
    """

    student: TextField
    teacher: TextField
    language_number: LanguageNumber | None = None
    repeats = 1  # of a pair in a batch

    @property
    def encoded(self) -> dict[str, Encoded]:
        """The texts that each model encodes."""
        student, teacher = (
            Encoded(names, field.max_length, field.tokenizer.pad_id)
            for names, field in (
                (("translation", "english"), self.student),
                ((TEACHER,), self.teacher),
            )
        )
        student = dataclasses.replace(student, language_number=self.language_number)
        return {STUDENT: student, TEACHER: teacher}

    def draw(self, pairs: Sequence[Pair], rngs) -> list[Drawn]:
        """Token ids of the texts of each pair; nothing is drawn."""
        english = [pair.english for pair in pairs]
        texts = {
            "translation": self.student.ids([pair.translation for pair in pairs]),
            "english": self.student.ids(english),
            TEACHER: self.teacher.ids(english),
        }
        return [
            Drawn(
                {name: [rows[i]] for name, rows in texts.items()},
                languages={"translation": [pair.language], "english": [ENGLISH]},
            )
            for i, pair in enumerate(pairs)
        ]


@dataclasses.dataclass(frozen=True)
class GroupBatches:
    """Groups to the texts and scores of the ranking losses.

    The student encodes `query` and G times `document`, together or, with `roles_apart`,
    separately, and so does a `teacher` of views, in English; `with_scores` adds the
    target
    `scores`, [B, G] float32, and `with_keys` the targets `query_key`, [B, 2], and
    `document_key`, [B, G, 2] (see `text_key`). The first documents of a group are
    positive ones, the rest negatives. The choice is a function of (seed, epoch,
    example); the language of each document, of (seed, epoch, example, place in the
    group).

    Attributes:
      group_size: G.
      mixing: the languages of documents, as in Multilingual Translate-Distill (Yang et
        al. 2024): "passages" (drawn for each document), "entries" (one for all
        documents of a query, drawn from those that all of them have), "round_robin"
        (the group once in each of `document_languages`) or "query" (the query's; drawn
        for a document that lacks it). The query's language is drawn once,
        independently.
      languages: names; if any, the targets `query_language`, [B] int32, and
        `document_language`, [B, G], are the texts' indices in it (its length: another
        language).
      language_number: of the student, see `Encoded`.
    """

    query: TextField
    document: TextField
    group_size: int
    mixing: str
    query_languages: Mapping[str, float]
    document_languages: Mapping[str, float]
    with_scores: bool
    with_keys: bool = False
    choice: Choice = Choice()
    roles_apart: bool = False
    languages: tuple[str, ...] = ()
    teacher: Reader | None = None
    language_number: LanguageNumber | None = None

    @property
    def encoded(self) -> dict[str, Encoded]:
        """The texts that each model encodes."""
        student = Reader(
            self.query, self.document, self.roles_apart, self.language_number
        )
        found = student.encoded(STUDENT, QUERIES, prefix="")
        if self.teacher is not None:
            found |= self.teacher.encoded(TEACHER, TEACHER_QUERIES, _OF_TEACHER)
        return found

    @property
    def repeats(self) -> int:
        """How often a batch contains a group."""
        return len(self.document_languages) if self.mixing == "round_robin" else 1

    def draw(
        self, groups: Sequence[Group], rngs: Sequence[np.random.Generator]
    ) -> list[Drawn]:
        """Draws and tokenizes each group: all groups once, `repeats` times."""
        queries, keys, english = [], [], []
        spoken: list[list[dict]] = [[] for _ in range(self.repeats)]
        documents: list[list[str]] = [[] for _ in range(self.repeats)]
        targets: list[list[dict]] = [[] for _ in range(self.repeats)]
        for group, rng in zip(groups, rngs, strict=True):
            group = group.drawn(rng)
            # Drawn first, so that they do not depend on the chosen documents.
            numbers = rng.random(1 + self.group_size)
            chosen = self._choose(group, rng)
            texts = [[*group.positives, *group.negatives][i] for i in chosen]
            language = draw_language(group.query, self.query_languages, numbers[0])
            queries.append(group.query[language])
            english.append((group.query, texts))
            shared = self._targets(group, chosen, texts)
            drawn = self._document_languages(group.id, language, texts, numbers[1:])
            for repeat, shown in enumerate(drawn):
                documents[repeat] += [
                    text[own] for text, own in zip(texts, shown, strict=True)
                ]
                targets[repeat].append(shared | self._numbered(language, shown))
                spoken[repeat].append({"query": [language], "document": shown})
            keys.append(_keys(group))
        query_ids = self.query.ids(queries)
        read = self._read_by_teacher(english)
        G = self.group_size
        return [
            Drawn(
                {
                    "query": [query_ids[i]],
                    "document": document_ids[i * G : i * G + G],
                    **read[i],
                },
                targets[repeat][i],
                keys[i],
                languages=spoken[repeat][i],
            )
            for repeat, document_ids in enumerate(map(self.document.ids, documents))
            for i in range(len(groups))
        ]

    def _read_by_teacher(
        self, groups: Sequence[tuple[Text, Sequence[Text]]]
    ) -> list[dict[str, Sequence[TokenIds]]]:
        """The teacher's token ids of each query and its documents, in English."""
        if self.teacher is None:
            return [{} for _ in groups]
        queries = self.teacher.query.ids([wording(query) for query, _ in groups])
        documents = self.teacher.document.ids(
            [wording(text) for _, texts in groups for text in texts]
        )
        G = self.group_size
        return [
            {
                f"{_OF_TEACHER}query": [queries[i]],
                f"{_OF_TEACHER}document": documents[i * G : i * G + G],
            }
            for i in range(len(groups))
        ]

    def _targets(self, group: Group, chosen: list[int], texts) -> dict[str, np.ndarray]:
        targets = {}
        if self.with_scores and group.scores is not None:
            targets["scores"] = group.scores[chosen]
        if self.with_keys:
            targets["query_key"] = text_key(group.query)
            targets["document_key"] = np.stack([text_key(text) for text in texts])
        return targets

    def _numbered(self, query: str, documents: Sequence[str]) -> dict[str, np.ndarray]:
        if not self.languages:
            return {}
        place = {language: i for i, language in enumerate(self.languages)}
        others = len(place)
        shown = [place.get(language, others) for language in documents]
        return {
            "query_language": np.array(place.get(query, others), np.int32),
            "document_language": np.array(shown, np.int32),
        }

    def _document_languages(
        self, name: str, query: str, texts: Sequence[Text], numbers: np.ndarray
    ) -> list[list[str]]:
        weights = self.document_languages
        if self.mixing not in SHARED:
            own = query if self.mixing == "query" else ""
            shown = zip(texts, numbers, strict=True)
            return [
                [
                    own if own in text else draw_language(text, weights, n)
                    for text, n in shown
                ]
            ]
        shared = shared_languages(name, texts, self.mixing, weights)
        if self.mixing == "round_robin":
            return [[language] * len(texts) for language in weights]
        language = draw_language(shared, weights, numbers[0])
        return [[language] * len(texts)]

    def _choose(self, group: Group, rng: np.random.Generator) -> list[int]:
        if self.with_scores and group.scores is None:
            raise InputError(
                f"{group.id}: no teacher scores (pos_scores, neg_scores), which the"
                " loss needs. Add them, let config.prepare.scores compute them, or,"
                " where labels are the scores, set the format's option grades."
            )
        return self.choice(group, self.group_size, rng)


def shared_languages(
    name: str, texts: Sequence[Text], mixing: str, weights: Mapping[str, float]
) -> list[str]:
    """The languages that all of a group's documents have.

    Raises:
      BadRecord: there are none, or "round_robin" needs others.
    """
    shared = [language for language in texts[0] if all(language in t for t in texts)]
    missing = [language for language in weights if language not in shared]
    if mixing == "round_robin" and missing:
        raise BadRecord(
            LANGUAGE,
            f"{name}: not all of its documents exist in {', '.join(missing)},"
            " which config.data.mixing = 'round_robin' shows them in. Translate"
            " them, or leave the language out of config.data.document_languages.",
        )
    if not shared:
        raise BadRecord(
            LANGUAGE,
            f"{name}: its documents have no language in common, which"
            " config.data.mixing = 'entries' needs. Use 'passages', or translate"
            " all documents.",
        )
    return shared


def _keys(group: Group) -> frozenset[tuple[str, str]]:
    """The query and every positive document, in each language."""
    return frozenset(("query", wording) for wording in group.query.values()) | {
        ("document", wording) for text in group.positives for wording in text.values()
    }


def text_key(text: Text) -> np.ndarray:
    """The identity of a text, [2] int32: a 64-bit hash of one wording.

    It hashes the English wording or, without one, that of the first language by name,
    so translations within one source are the same text.
    """
    language = ENGLISH if ENGLISH in text else min(text)
    # A lone surrogate, which JSON may contain, is hashed like any other character.
    spelled = text[language].encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(spelled, digest_size=8).digest()
    return np.frombuffer(digest, "<i4").astype(np.int32)


def rows_of(drawn: Sequence[Drawn], encoded: Encoded) -> dict[str, list[TokenIds]]:
    """The texts that a model encodes, by name, in the order of the examples."""
    return {
        name: [row for d in drawn for row in d.texts[encoded.prefix + name]]
        for name in encoded.names
    }


def languages_of(
    drawn: Sequence[Drawn], encoded: Encoded
) -> dict[str, list[int]] | None:
    """The numbers of the languages of `rows_of`; None for most models.

    Raises:
      InputError: one is not stated, or the model does not know it.
    """
    if encoded.language_number is None:
        return None
    number = functools.cache(encoded.language_number)
    found = {}
    for name in encoded.names:
        spoken = [one for d in drawn for one in d.languages[encoded.prefix + name]]
        if ANY in spoken:
            raise InputError(UNSTATED.format(text=name))
        found[name] = list(map(number, spoken))
    return found
