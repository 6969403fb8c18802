"""What an initialisation is, and what it is given."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.initial import term_statistics, word_translations
from lsrjax.models.layers import Head
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.options import Options


@dataclasses.dataclass(frozen=True)
class Start:
    """A student that is being initialised.

    Attributes:
      spec: of the student, with shared towers.
      head: the class of its head.
      tokenizer: folder of the encoder's tokenizer.
      pivot_tokenizer: folder of MILCO's English tokenizer, or None.
      source: the training examples.
      seed: of the stage.
    """

    spec: RetrieverSpec
    head: type[Head]
    tokenizer: pathlib.Path
    pivot_tokenizer: pathlib.Path | None
    source: Sequence
    seed: int

    @functools.cached_property
    def texts(self) -> dict[str, list[str]]:
        """The training documents by language."""
        return term_statistics.texts_by_language(self.source)

    @functools.cached_property
    def idf_V(self) -> np.ndarray:
        """The least idf of each of the encoder's tokens in any language, [V]."""
        size = self.spec.encoder.vocab_size
        tokenizer = TextTokenizer(self.tokenizer)
        return term_statistics.least_idf(tokenizer, self.texts, size)

    @functools.cached_property
    def translations(self) -> sparse.csr_matrix:
        """P(English token | token) in the training pairs, [V, English V]."""
        own = TextTokenizer(self.tokenizer)
        tokens = functools.partial(
            own.ids, max_length=word_translations.LENGTH, special=False
        )
        return self.translated(tokens, self.spec.encoder.vocab_size)

    def translated(
        self, keys: Callable[[Sequence[str]], Sequence[Sequence[int]]], size: int
    ) -> sparse.csr_matrix:
        """P(English token | key) in the training pairs, [size, English V].

        Args:
          keys: those of texts, each in [0, size).
          size: how many there are.
        """
        assert self.pivot_tokenizer  # what asks for translations has an English head
        english = TextTokenizer(self.pivot_tokenizer)
        shape = size, self.spec.options.pivot_vocab_size
        return word_translations.key_translations(keys, english, self.source, shape)


class Initialisation:
    """Base of all initialisations; see `lsrjax.initial.initialisations`.

    Attributes:
      Options: a dataclass of its options. The option `model` names a model, which is
        opened.
      gives_encoder: whether the student has its model's encoder, and its tokenizer.
      gives_head: whether the student has all of its model's parameters.
      fresh: whether it needs a student that no other gives the head.
    """

    Options = Options
    gives_encoder = False
    gives_head = False
    fresh = False

    @staticmethod
    def spec_fields(
        head: type[Head], options: Any, model: SavedModel | None
    ) -> dict[str, Any]:
        """Fields of the student's `RetrieverSpec` that the model decides.

        Args:
          head: of the student.
          options: of the head; changed ones are returned as "options".
          model: that the option `model` names, or None.
        """
        return {}

    @staticmethod
    def check(spec: RetrieverSpec, models: Mapping[str, SavedModel]) -> None:
        """Refuses a student that it cannot initialise.

        Args:
          spec: of the student.
          models: of all of its initialisations, by name.
        """

    @staticmethod
    def pivot_tokenizer(model: SavedModel) -> pathlib.Path | None:
        """Folder of the English tokenizer of a head that is taken from the model."""
        return None

    @staticmethod
    def weights(
        params: dict, options: Any, model: SavedModel | None, start: Start
    ) -> dict:
        """A changed copy of one tower's parameters.

        Args:
          params: nested, of a retriever with shared towers.
          options: an instance of `Options`.
          model: that the option `model` names, of one tower; or None.
          start: the student, and the training data.
        """
        return params
