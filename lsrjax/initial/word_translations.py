"""A translation table between two vocabularies, from pairs of texts."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from lsrjax.data.tokenization import TextTokenizer
from lsrjax.initial.term_statistics import LENGTH


def translation_table(
    source: Sequence[Sequence[int]],
    target: Sequence[Sequence[int]],
    source_size: int,
    target_size: int,
    *,
    iterations: int = 5,
    max_cells: int = 30_000_000,
) -> sparse.csr_matrix:
    """P(target token | source token) by IBM Model 1 (Brown et al. 1993).

    Every target token is explained by one token of its source text; EM finds the
    probabilities that maximize the likelihood of the pairs.

    Args:
      source: N texts as token ids.
      target: their translations.
      source_size: of the source vocabulary.
      target_size: of the target vocabulary.
      iterations: of EM.
      max_cells: bounds memory (about 30 bytes per cell); further pairs are left out.

    Returns:
      [source_size, target_size] float32; rows sum to 1, rows of tokens that never
      occur are empty.
    """
    keys, explained, cells, count = [], [], 0, 0
    for left, right in zip(source, target, strict=True):
        cells += len(left) * len(right)
        if cells > max_cells:
            break
        grid = np.add.outer(
            np.asarray(right, np.int64), np.asarray(left, np.int64) * target_size
        )
        keys.append(grid.ravel())
        explained.append(np.repeat(np.arange(count, count + len(right)), len(left)))
        count += len(right)
    if not keys:
        return sparse.csr_matrix((source_size, target_size), dtype=np.float32)
    known, places = np.unique(np.concatenate(keys), return_inverse=True)
    pair = np.concatenate(explained)
    rows, columns = np.divmod(known, target_size)
    p = np.ones(len(known))
    for _ in range(iterations):
        joint = p[places]
        posterior = joint / np.bincount(pair, joint)[pair]
        expected = np.bincount(places, posterior)
        p = expected / np.bincount(rows, expected, minlength=source_size)[rows]
    return sparse.csr_matrix(
        (p.astype(np.float32), (rows, columns)), shape=(source_size, target_size)
    )


def key_translations(
    keys: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    english: TextTokenizer,
    source: Sequence,
    shape: tuple[int, int],
) -> sparse.csr_matrix:
    """P(English token | key) from the source's pairs, and from its English texts.

    Keys are what texts are made of, such as tokens; `keys` gives those of each text.

    Shortest pairs come first, since few words leave little doubt about translations.
    """
    pairs = [
        (pair.translation, pair.english)
        for pair in (source[i] for i in range(len(source)))
    ]
    pairs += [(text, text) for text in sorted({text for _, text in pairs})]
    left = keys([a for a, _ in pairs])
    right = english.ids([b for _, b in pairs], LENGTH, special=False)
    order = sorted(range(len(pairs)), key=lambda i: len(left[i]) * len(right[i]))
    return translation_table(
        [left[i] for i in order], [right[i] for i in order], *shape
    )
