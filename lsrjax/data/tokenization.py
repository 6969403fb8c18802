"""Texts to padded arrays of token ids, in a few fixed lengths."""

import dataclasses
import functools
import json
import pathlib
import string
from collections.abc import Sequence

import numpy as np
import tokenizers

from lsrjax.errors import InputError


class TextTokenizer:
    """A tokenizer folder (`tokenizer.json`), safe to share between threads."""

    def __init__(self, folder: str | pathlib.Path):
        """Reads the tokenizer.

        Raises:
          InputError: no `tokenizer.json`, or one that does not load.
        """
        self.folder = pathlib.Path(folder)
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                f"No tokenizer.json in {self.folder}. Save the tokenizer there with"
                " transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        try:
            self._json = path.read_text(encoding="utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(self._json)
        except Exception as e:  # the library raises bare Exception
            raise InputError(f"{path} is not a tokenizer: {e}. Save it again.") from e
        self.pad_id = self._find_pad_id()

    def _find_pad_id(self) -> int:
        path = self.folder / "tokenizer_config.json"
        names = ["[PAD]", "<pad>"]
        if path.is_file():
            token = json.loads(path.read_text(encoding="utf-8")).get("pad_token")
            token = token["content"] if isinstance(token, dict) else token
            names = [token] if token else names
        for name in names:
            if (pad_id := self._tokenizer.token_to_id(name)) is not None:
                return pad_id
        raise InputError(
            f"{self.folder}: no padding token ({' or '.join(names)} is not in the"
            " vocabulary). Set pad_token in tokenizer_config.json."
        )

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(sorted(i for i, token in added.items() if token.special))

    @property
    def mask_id(self) -> int:
        """Id of the mask token.

        Raises:
          InputError: the vocabulary has none.
        """
        for name in ("[MASK]", "<mask>"):
            if (found := self._tokenizer.token_to_id(name)) is not None:
                return found
        raise InputError(
            f"{self.folder}: neither [MASK] nor <mask> is in the vocabulary, which"
            " config.model.expand_queries needs. Switch it off."
        )

    @property
    def punctuation_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that are nothing but ASCII punctuation."""
        special = self.special_ids
        return tuple(
            sorted(
                i
                for token, i in self.vocabulary().items()
                if (bare := token.removeprefix("##").removeprefix("\u2581"))
                and all(character in string.punctuation for character in bare)
                and i not in special
            )
        )

    def token(self, token_id: int) -> str:
        """The token of an id, `#id` if there is none."""
        return self._tokenizer.id_to_token(int(token_id)) or f"#{token_id}"

    def vocabulary(self) -> dict[str, int]:
        """Token to id."""
        return self._tokenizer.get_vocab()

    @functools.lru_cache(maxsize=8)  # noqa: B019  (a handful per program)
    def _cutting(self, max_length: int) -> tokenizers.Tokenizer:
        # Truncation is a setting of the tokenizer, so each length has its own: threads
        # with different lengths would otherwise change it under each other.
        tokenizer = tokenizers.Tokenizer.from_str(self._json)
        tokenizer.enable_truncation(max_length)
        tokenizer.no_padding()
        return tokenizer

    def ids(
        self, texts: Sequence[str], max_length: int, *, special: bool = True
    ) -> list[list[int]]:
        """Token ids, at most `max_length` of them, special tokens included if asked."""
        encodings = self._cutting(max_length).encode_batch_fast(
            list(texts), add_special_tokens=special
        )
        return [encoding.ids for encoding in encodings]

    def pairs(
        self, pairs: Sequence[tuple[str, str]], first_length: int, max_length: int
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids and types (1 in the second text) of pairs of texts.

        They are joined by the tokenizer's own template for pairs.

        Args:
          pairs: the texts.
          first_length: tokens a first text is cut to, without special ones.
          max_length: tokens a pair is cut to, special ones included, at the end of its
            second text.

        Raises:
          InputError: there is no such template.
        """
        joining = tokenizers.Tokenizer.from_str(self._json)
        joining.enable_truncation(max_length, strategy="only_second")
        joining.no_padding()
        # A token is left to the second text, without which nothing can be cut from it.
        special = joining.num_special_tokens_to_add(is_pair=True)
        if not special:
            raise InputError(
                f"{self.folder}/tokenizer.json has no template that joins two texts."
                " Use the tokenizer that the cross-encoder was trained with."
            )
        first_length = min(first_length, max_length - special - 1)

        def encoded(texts, length):
            distinct = list(dict.fromkeys(texts))
            found = self._cutting(length).encode_batch(
                distinct, add_special_tokens=False
            )
            return dict(zip(distinct, found, strict=True))

        firsts, seconds = zip(*pairs, strict=True)
        first, second = encoded(firsts, first_length), encoded(seconds, max_length)
        joined = [joining.post_process(first[a], second[b]) for a, b in pairs]
        return [(both.ids, both.type_ids) for both in joined]

    def batch(
        self, texts: Sequence[str], max_length: int, buckets: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Ids and mask, [B, L] int32, padded to the smallest bucket that holds them.

        Args:
          texts: B texts.
          max_length: texts are cut to this many tokens, special ones included.
          buckets: the lengths L may take; `max_length` is always one of them.
        """
        return pad(self.ids(texts, max_length), self.pad_id, max_length, buckets)


@dataclasses.dataclass(frozen=True)
class TextField:
    """How texts of one kind become token ids.

    Attributes:
      tokenizer: the tokenizer.
      max_length: tokens at most, special ones, marker and expansion included.
      prompt: stands before every text.
      marker: id that stands behind the first token; -1: none.
      expand_id: id that texts are filled up with to `max_length`; -1: they are not.
    """

    tokenizer: TextTokenizer
    max_length: int
    prompt: str = ""
    marker: int = -1
    expand_id: int = -1

    @classmethod
    def of(cls, spec, tokenizer: TextTokenizer, role: str, max_length: int):
        """That of a retriever's queries or documents.

        Args:
          spec: its `RetrieverSpec`.
          tokenizer: its tokenizer.
          role: "query" or "document".
          max_length: tokens at most.
        """
        if role == "query":
            return cls(
                tokenizer,
                max_length,
                spec.query_prompt,
                spec.query_marker,
                spec.expand_id,
            )
        return cls(tokenizer, max_length, spec.document_prompt, spec.document_marker)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        marked = self.marker >= 0
        rows = self.tokenizer.ids(texts, self.max_length - marked)
        if marked:
            rows = [[*row[:1], self.marker, *row[1:]] for row in rows]
        if self.expand_id >= 0:
            fill = [self.expand_id] * self.max_length
            rows = [row + fill[len(row) :] for row in rows]
        return rows


def pad(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    max_length: int,
    buckets: Sequence[int],
) -> dict[str, np.ndarray]:
    """Rows of ids as `{"ids", "mask"}`, [B, L] int32.

    L is the smallest of `buckets` and `max_length` that holds every row.
    """
    lengths = np.array([len(row) for row in rows])
    need = min(lengths.max(), max_length)
    L = min(b for b in (*buckets, max_length) if need <= b <= max_length)
    ids = np.full((len(rows), L), pad_id, np.int32)
    mask = (np.arange(L) < lengths[:, None]).astype(np.int32)
    ids[mask.astype(bool)] = np.concatenate([np.asarray(r, np.int32) for r in rows])
    return {"ids": ids, "mask": mask}
