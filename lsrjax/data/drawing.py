"""Examples to the token ids that are trained on: what is drawn, and in which language.

What is drawn for an example is a function of (seed, epoch, example).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lsrjax.data.sources import ANY, ENGLISH, Group, Pair, Text
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextField:
    """How one kind of text is tokenized.

    Attributes:
      tokenizer: the tokenizer.
      max_length: tokens, special ones included.
    """

    tokenizer: TextTokenizer
    max_length: int

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids."""
        return self.tokenizer.ids(texts, self.max_length)


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
    `scores`, [B, G] float32. The first document of a group is a positive one, the rest
    negatives, all drawn without repetition; which, and in which language each is shown,
    is a function of (seed, epoch, example).

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
            targets.append({"scores": group.scores[chosen]} if self.with_scores else {})
        query_ids, document_ids = self.query.ids(queries), self.document.ids(documents)
        G = self.group_size
        return [
            Drawn(
                {"query": [query_ids[i]], "document": document_ids[i * G : i * G + G]},
                targets[i],
            )
            for i in range(len(groups))
        ]

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
