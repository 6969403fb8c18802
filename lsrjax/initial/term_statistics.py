"""Statistics of terms in the training documents."""

import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lsrjax.data.examples import ANY, ENGLISH, Pair
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.initial import shared_tokens, warm_start
from lsrjax.models.heads import head_class
from lsrjax.models.lookups import (
    CHARACTERS,
    CLASS,
    LATIN,
    LETTER,
    MARK,
    UNSPACED,
    hashed,
    stems,
)
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import bm25

LENGTH = 64  # tokens read of each text
_TEXTS = 256  # whose n-grams are found at a time
# Examples, evenly spread, to count a regularizer's idf over: more would hardly change
# the idf of terms that occur at all.
_EXAMPLES = 100_000


def texts_by_language(source: Sequence) -> dict[str, list[str]]:
    """The training documents (of pairs, both texts) by language."""
    texts: dict[str, list[str]] = {}
    for example in (source[i] for i in range(len(source))):
        if isinstance(example, Pair):
            texts.setdefault(ENGLISH, []).append(example.english)
            texts.setdefault(example.language, []).append(example.translation)
        else:
            for language, text in example.positives[0].items():
                texts.setdefault(language, []).append(text)
    return texts


def least_idf(
    tokenizer: TextTokenizer, texts: Mapping[str, Sequence[str]], vocab_size: int
) -> np.ndarray:
    """A term's idf in the language where it is most frequent, [vocab_size].

    Over all languages together, the commonest word of a single one would look rare.
    """
    per_language = [
        warm_start.inverse_document_frequency(tokenizer.ids(t, LENGTH), vocab_size)
        for t in texts.values()
    ]
    return np.min(per_language, axis=0)


def idf_of_views(
    spec: RetrieverSpec,
    tokenizer: pathlib.Path,
    pivot_tokenizer: pathlib.Path | None,
    source: Sequence,
) -> dict[str, np.ndarray]:
    """The idf of each view's terms in the training documents, [terms of the view].

    Terms of the pivot view are counted in the English documents, even though the model
    produces them for other languages.

    Args:
      tokenizer: folder of the tokenizer of the encoder's vocabulary.
      pivot_tokenizer: folder of MILCO's English tokenizer, or None.
      source: the training examples.

    Raises:
      InputError: a pivot view, but no English documents.
    """
    count = min(len(source), _EXAMPLES)
    places = np.linspace(0, len(source) - 1, count, dtype=int)
    texts = texts_by_language([source[i] for i in places.tolist()])
    found = {}
    weighed = head_class(spec.head).weighed or spec.views
    for view, size in spec.views.items():
        if view not in weighed:
            continue
        if view == "pivot":
            # Texts in an unknown language count as English, as everywhere.
            english = {k: v for k, v in texts.items() if k in (ENGLISH, ANY)}
            if not english:
                raise InputError(
                    "config.regularizer is 'idf_flops', which counts the pivot"
                    " view's terms in English documents, but the training documents"
                    f" are in {', '.join(sorted(texts))}. Use 'flops'."
                )
            assert pivot_tokenizer  # every model with a pivot view has one
            found[view] = least_idf(TextTokenizer(pivot_tokenizer), english, size)
        elif view == "surface":
            _, found[view] = ngram_idf(TextTokenizer(tokenizer), texts, spec)
        else:
            found[view] = least_idf(TextTokenizer(tokenizer), texts, size)
    return found


def characters(tokenizer: TextTokenizer, vocab_size: int) -> np.ndarray:
    """The code points of each token's lower-cased characters, [vocab_size, C].

    A space stands before a token that starts a word. Special tokens have none.
    """
    table = np.zeros((vocab_size, CHARACTERS), np.float32)
    for (start, text), index in shared_tokens.pieces(
        tokenizer.vocabulary(), shared_tokens.SPACE
    ):
        if start is None or index in tokenizer.special_ids:
            continue
        points = [*map(ord, (" " * start + text).lower())][:CHARACTERS]
        table[index, : len(points)] = points
    return table


def letters_of(tokenizer: TextTokenizer, vocab_size: int) -> np.ndarray:
    """As `characters`, with the class of each, see `lsrjax.models.lookups.stems`."""
    table = characters(tokenizer, vocab_size)
    points, places = np.unique(table, return_inverse=True)
    classes = [_class(chr(int(point))) for point in points]
    return table + CLASS * np.array(classes, np.float32)[places].reshape(table.shape)


def _class(char: str) -> int:
    if bm25.CJK.match(char):
        return UNSPACED
    if bm25.LATIN.match(char):
        return LATIN
    if bm25.MARK.match(char):
        return MARK
    return LETTER if char.isalnum() else 0


def word_stems(
    tokenizer: TextTokenizer, letters: np.ndarray, buckets: int, texts: Sequence[str]
) -> list[Sequence[int]]:
    """The buckets of the beginnings of each text's words, in their order.

    Args:
      tokenizer: of the texts.
      letters: see `letters_of`.
      buckets: how many there are.
    """
    found: list[Sequence[int]] = []
    letters_VC = jnp.asarray(letters)
    find = jax.jit(stems, static_argnums=3)
    for first in range(0, len(texts), _TEXTS):
        some = tokenizer.batch([*texts[first : first + _TEXTS]], LENGTH, ())
        rows = find(letters_VC, some["ids"], some["mask"].astype(bool), buckets)
        found += [row[row >= 0].tolist() for row in np.asarray(rows)]
    return found


def ngram_idf(
    tokenizer: TextTokenizer, texts: Mapping[str, Sequence[str]], spec: RetrieverSpec
) -> tuple[np.ndarray, np.ndarray]:
    """The characters of tokens, and the least idf of a column of n-grams, [columns].

    As `least_idf`, for the view of n-grams.
    """
    table = characters(tokenizer, spec.encoder.vocab_size)
    table_VC, columns = jnp.asarray(table), spec.views["surface"]
    per_language = []
    for own in texts.values():
        found: list[np.ndarray] = []
        for first in range(0, len(own), _TEXTS):
            some = tokenizer.batch(own[first : first + _TEXTS], LENGTH, ())
            keep = some["mask"].astype(bool)
            hashes = np.asarray(hashed(table_VC, some["ids"], keep, columns))
            found += [np.unique(row[row >= 0]) for row in hashes]
        per_language.append(warm_start.inverse_document_frequency(found, columns))
    return table, np.min(per_language, axis=0)
