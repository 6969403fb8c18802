"""The tokens that two vocabularies have in common, however each of them writes them.

WordPiece marks a piece inside a word (`##ing`), SentencePiece and byte-level BPE the
start of a word (`▁free`, `Ġfree`); the latter writes each byte as a letter.
"""

from collections.abc import Mapping

import numpy as np
from scipy import sparse
from tokenizers.decoders import ByteLevel

_INSIDE, SPACE, _BYTES = "##", "▁", "Ġ"
# What special tokens are for; each program has its own names.
_ROLES = {
    "begin": ("<s>", "[CLS]", "<bos>"),
    "end": ("</s>", "[SEP]", "<eos>"),
    "pad": ("<pad>", "[PAD]"),
    "unknown": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
}
_ROLE_OF = {token: role for role, tokens in _ROLES.items() for token in tokens}

# Whether it starts a word (None: a special token), and its text or role.
Piece = tuple[bool | None, str]


def shared_tokens(
    vocabulary: Mapping[str, int], pivot: Mapping[str, int], shape: tuple[int, int]
) -> sparse.csr_matrix:
    """Matches the tokens of a vocabulary with equal ones of a pivot's.

    Tokens are equal if they have the same text at the same place, the start of a word
    or inside of it; case counts only where the pivot has both. Special tokens are
    matched by their role.

    Args:
      vocabulary: token -> id; SentencePiece if no token is marked.
      pivot: the same; WordPiece if no token is marked.
      shape: of the result, the two models' vocabulary sizes.

    Returns:
      A matrix of 0 and 1, [V, pivot V].
    """
    found: dict[Piece, int] = {}
    for (start, text), index in pieces(pivot, _INSIDE):
        # The lower-case one of several first.
        if text == text.lower() or (start, text.lower()) not in found:
            found[start, text.lower()] = index
        found[start, text] = index
    # Byte-level BPE and SentencePiece do not mark punctuation behind a word, which
    # WordPiece has as a word.
    pairs = []
    for (start, text), index in pieces(vocabulary, SPACE):
        twins = [(start, text), (start, text.lower())]
        if len(text) == 1 and start is False:
            twins += [(True, text), (True, text.lower())]
        known = [found[twin] for twin in twins if twin in found]
        pairs += [(index, theirs) for theirs in known[:1]]
    rows, columns = np.array(sorted(pairs), int).reshape(-1, 2).T
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def pieces(vocabulary: Mapping[str, int], otherwise: str) -> list[tuple[Piece, int]]:
    """The tokens as pieces, with their ids; those without a text are left out.

    Args:
      vocabulary: token -> id.
      otherwise: the mark of the kind that it is of if no token has any.
    """
    counts = {
        mark: sum(token.startswith(mark) for token in vocabulary)
        for mark in (otherwise, _INSIDE, SPACE, _BYTES)
    }
    mark = max(counts, key=lambda one: counts[one])
    bytes_to_text = ByteLevel()
    found: list[tuple[Piece, int]] = []
    for token, index in vocabulary.items():
        if role := _ROLE_OF.get(token):
            found.append(((None, role), index))
            continue
        marked, text = token.startswith(mark), token.removeprefix(mark)
        if mark == _BYTES:
            text = bytes_to_text.decode([text])
        # A part of a character has no text.
        if text and "\ufffd" not in text:
            found.append(((marked != (mark == _INSIDE), text), index))
    return found
