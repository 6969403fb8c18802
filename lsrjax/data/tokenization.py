"""Texts to padded arrays of token ids, in a few fixed lengths."""

import dataclasses
import functools
import json
import pathlib
import string
from collections.abc import Sequence

import numpy as np
import tokenizers

from lsrjax.data.long_texts import Cutter, first_size, next_size
from lsrjax.errors import InputError
from lsrjax.tokenizer import reading

TokenIds = Sequence[int] | np.ndarray


class TextTokenizer:
    """A folder's tokenizer, as transformers reads it; threads may share it."""

    def __init__(self, folder: str | pathlib.Path):
        """Reads the tokenizer; InputError if there is none or it is not supported."""
        self.folder = pathlib.Path(folder)
        self._reading = reading.read(folder)
        self._tokenizer = self._reading.tokenizer()
        self.pad_id = self._find_pad_id()

    def _find_pad_id(self) -> int:
        named = self._reading.roles.get("pad_token")
        names = [named] if named else ["[PAD]", "<pad>"]
        for name in names:
            pad_id = self._tokenizer.token_to_id(name)
            # A token that had to be added has no embedding.
            if pad_id is not None and name not in self.added:
                return pad_id
        raise InputError(
            f"{self.folder}: no padding token ({' or '.join(names)} is not in the"
            " vocabulary). Set pad_token in tokenizer_config.json."
        )

    @property
    def added(self) -> tuple[str, ...]:
        """Tokens that files other than `tokenizer.json` add to the vocabulary."""
        return self._reading.added

    @property
    def max_length(self) -> int | None:
        """`model_max_length`, in tokens; None if the folder does not say."""
        return self._reading.max_length

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(sorted(i for i, token in added.items() if token.special))

    @functools.cached_property
    def begins(self) -> bool:
        """Whether texts begin with a special token, such as [CLS]."""
        return self._tokenizer.encode("a").special_tokens_mask[:1] == [1]

    @functools.cached_property
    def ends(self) -> bool:
        """Whether texts end with a special token, such as [SEP]."""
        return self._tokenizer.encode("a").special_tokens_mask[-1:] == [1]

    @property
    def role_ids(self) -> tuple[int, ...]:
        """Ids of the tokens with a role, such as `eos_token`."""
        found = map(self._tokenizer.token_to_id, self._reading.roles.values())
        return tuple(sorted({i for i in found if i is not None}))

    @property
    def mask_id(self) -> int:
        """Id of the mask token; InputError if the vocabulary has none."""
        named = self._reading.roles.get("mask_token")
        names = [named] if named else ["[MASK]", "<mask>"]
        for name in names:
            if (found := self._tokenizer.token_to_id(name)) is not None:
                return found
        raise InputError(
            f"{self.folder}: {' or '.join(names)} is not in the vocabulary, and"
            " config.model.head.expand_queries and the loss mlm need a mask token. Do"
            " without them, or name a token in tokenizer_config.json (mask_token)."
        )

    @property
    def punctuation_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that consist of ASCII punctuation."""
        special = self.special_ids
        return tuple(
            sorted(
                i
                for token, i in self.vocabulary().items()
                if (bare := _bare(token))
                and all(character in string.punctuation for character in bare)
                and i not in special
            )
        )

    def token(self, token_id: int) -> str:
        """The token of an id, `#id` for an unknown one."""
        return self._tokenizer.id_to_token(int(token_id)) or f"#{token_id}"

    def vocabulary(self) -> dict[str, int]:
        """Token to id."""
        return self._tokenizer.get_vocab()

    @functools.lru_cache(maxsize=8)  # noqa: B019  (a handful per program)
    def _cutting(self, max_length: int) -> tokenizers.Tokenizer:
        # Truncation is a setting of the tokenizer, so each length has its own:
        # otherwise threads with different lengths would change it under each other.
        return self._reading.tokenizer(max_length)

    @functools.cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._tokenizer, json.loads(self._reading.json))

    def _encoded(
        self, texts: Sequence[str], max_length: int, special: bool
    ) -> list[tokenizers.Encoding]:
        """Encodings of texts; long ones are read only as far as needed."""
        read = self._ends if self._reading.truncation_side == "left" else self._begun
        found: dict[int, tokenizers.Encoding] = {}
        left, size = list(range(len(texts))), first_size(max_length)
        while left:
            some = read([texts[i] for i in left], size, max_length, special)
            pairs = zip(left, some, strict=True)
            found |= {i: one for i, one in pairs if one is not None}
            left = [i for i in left if i not in found]
            size = next_size(size)
        return [found[i] for i in range(len(texts))]

    def _begun(self, texts, size: int, max_length: int, special: bool):
        """Encodings of about `size` characters each; None: too few for the tokens."""
        tokenizer = self._cutting(max_length)
        parts = [self._cutter.part(text, size) for text in texts]
        plain = [part.text for part in parts if not part.inside]
        encoded = iter(tokenizer.encode_batch_fast(plain, add_special_tokens=special))
        found: list[tokenizers.Encoding | None] = []
        for part in parts:
            if not part.inside:
                one = next(encoded)
                enough = part.whole or len(one.ids) >= max_length
            else:
                one, settled = self._cutter.settled(part.text)
                enough = settled >= max_length
                one = tokenizer.post_process(one, None, special)
            found.append(one if enough else None)
        return found

    def _ends(self, texts, size: int, max_length: int, special: bool):
        """As `_begun`, of a tokenizer that keeps the last tokens of a text."""
        tokenizer = self._cutting(max_length)
        parts = [self._cutter.tail(text, size) for text in texts]
        # With offsets, which the fast one does not have.
        encoded = tokenizer.encode_batch(
            [part for part, _ in parts], add_special_tokens=special
        )
        found: list[tokenizers.Encoding | None] = []
        for text, (part, first), one in zip(texts, parts, encoded, strict=True):
            starts = [
                start
                for (start, _), added in zip(
                    one.offsets, one.special_tokens_mask, strict=True
                )
                if not added
            ]
            enough = len(one.ids) >= max_length and min(starts, default=0) >= first
            found.append(one if part == text or enough else None)
        return found

    def ids(
        self, texts: Sequence[str], max_length: int, *, special: bool = True
    ) -> list[list[int]]:
        """Token ids, at most `max_length`, which includes any special tokens."""
        return [one.ids for one in self._encoded(list(texts), max_length, special)]

    def beginning(self, text: str, count: int) -> str:
        """A text up to the end of its token number `count`, without special tokens."""
        size = 16 * count
        while True:
            found = self._tokenizer.encode(text[:size], add_special_tokens=False)
            if size >= len(text) and len(found.ids) <= count:
                return text
            if len(found.ids) > count:
                return text[: found.offsets[count - 1][1]] if count else ""
            size = max(2 * size, 1)

    def pairs(
        self, pairs: Sequence[tuple[str, str]], first_length: int, max_length: int
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids and types (1 in the second text) of pairs of texts.

        Uses the tokenizer's own template for pairs; InputError if it has none. First
        texts are cut to `first_length` without special tokens; then second texts, so
        that pairs have `max_length` with them.
        """
        joining = self._reading.tokenizer(max_length, strategy="only_second")
        # The second text needs at least one token, or nothing can be cut from it.
        special = joining.num_special_tokens_to_add(is_pair=True)
        if not special:
            raise InputError(
                f"{self.folder}/tokenizer.json has no template that joins two texts."
                " Use the tokenizer that the cross-encoder was trained with, or give a"
                " decoder its prompt."
            )
        first_length = min(first_length, max_length - special - 1)

        def encoded(texts, length):
            distinct = list(dict.fromkeys(texts))
            found = self._encoded(distinct, length, special=False)
            return dict(zip(distinct, found, strict=True))

        firsts, seconds = zip(*pairs, strict=True)
        first, second = encoded(firsts, first_length), encoded(seconds, max_length)
        joined = [joining.post_process(first[a], second[b]) for a, b in pairs]
        return [(both.ids, both.type_ids) for both in joined]

    def batch(
        self, texts: Sequence[str], max_length: int, buckets: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Ids and mask, [B, L] int32; L is one of `buckets` or `max_length`."""
        return pad(self.ids(texts, max_length), self.pad_id, max_length, buckets)


def _bare(token: str) -> str:
    """A token without its mark of a word's beginning or continuation."""
    # Of WordPiece, SentencePiece and, a space as a character, byte-level BPE.
    for mark in ("##", "\u2581", "\u0120"):
        token = token.removeprefix(mark)
    return token


@dataclasses.dataclass(frozen=True)
class TextField:
    """How texts of one kind become token ids.

    Attributes:
      max_length: limit in tokens, including special ones, marker and expansion.
      prompt: put before every text.
      marker: id inserted; -1: none.
      expand_id: id that fills texts up to `max_length`; -1: none.
      place: tokens in front of the marker.
    """

    tokenizer: TextTokenizer
    max_length: int
    prompt: str = ""
    marker: int = -1
    expand_id: int = -1
    place: int = 1

    @classmethod
    def of(cls, spec, tokenizer: TextTokenizer, role: str, max_length: int):
        """The field of a retriever's "query" or "document" texts."""
        query = role == "query"
        return cls(
            tokenizer,
            max_length,
            spec.query_prompt if query else spec.document_prompt,
            spec.query_marker if query else spec.document_marker,
            spec.expand_id if query else -1,
            spec.marker_place,
        )

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        marked = self.marker >= 0
        rows = self.tokenizer.ids(texts, self.max_length - marked)
        if marked:
            at = self.place
            rows = [[*row[:at], self.marker, *row[at:]] for row in rows]
        if self.expand_id >= 0:
            fill = [self.expand_id] * self.max_length
            rows = [row + fill[len(row) :] for row in rows]
        return rows

    def prompt_length(self) -> int:
        """Tokens of the prompt with the marker and the special ones in front.

        As sentence-transformers counts them: those of the prompt alone, without a
        special token at its end.
        """
        if not self.prompt and self.marker < 0:
            return 0
        (ids,) = dataclasses.replace(self, max_length=2**20, expand_id=-1).ids([""])
        special = self.tokenizer.ends or ids[-1] in self.tokenizer.role_ids
        return len(ids) - special


def unpooled(spec, tokenizer: TextTokenizer) -> dict[str, int]:
    """Fields of a retriever's spec whose pooling leaves the prompts of texts out."""
    return {
        f"{role}_unpooled": TextField.of(spec, tokenizer, role, 2**20).prompt_length()
        for role in ("query", "document")
    }


def pad(
    rows: Sequence[TokenIds],
    pad_id: int,
    max_length: int,
    buckets: Sequence[int],
) -> dict[str, np.ndarray]:
    """Rows of ids as `{"ids", "mask"}`, [B, L] int32.

    L is the smallest of `buckets` and `max_length` that fits every row.
    """
    lengths = np.array([len(row) for row in rows])
    need = min(lengths.max(), max_length)
    L = min(b for b in (*buckets, max_length) if need <= b <= max_length)
    ids = np.full((len(rows), L), pad_id, np.int32)
    mask = (np.arange(L) < lengths[:, None]).astype(np.int32)
    ids[mask.astype(bool)] = np.concatenate([np.asarray(r, np.int32) for r in rows])
    return {"ids": ids, "mask": mask}
