"""Pairs of texts within a prompt, as token ids."""

import re
from collections.abc import Sequence

from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError


class PromptedPairs:
    """A prompt with the places `{query}` and `{document}`, and its tokenizer."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt: str,
        query_length: int,
        document_length: int,
        limit: int,
    ):
        """Sets the lengths, in tokens.

        Args:
          limit: of a whole text. A document is cut to what the query leaves of this,
            or of both lengths together with the prompt's own tokens.

        Raises:
          InputError: the prompt leaves no place for documents.
        """
        self._tokenizer = tokenizer
        self._parts = re.split(r"(\{query\}|\{document\})", prompt)
        self._query_length = query_length
        self._begins = _begins(tokenizer)
        own = len(self._ids([self.text("", "")], limit)[0])
        self.max_length = min(query_length + document_length + own, limit)
        if own + query_length >= self.max_length:
            raise InputError(
                f"The teacher's prompt has {own} tokens and a query up to"
                f" {query_length}, which leave no place for a document: the model takes"
                f" {limit}. Shorten the prompt, or lower query_length."
            )

    def text(self, query: str, document: str) -> str:
        """The prompt with both texts."""
        texts = {"{query}": query, "{document}": document}
        return "".join(texts.get(part, part) for part in self._parts)

    def ids(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Token ids of each pair, `max_length` at most.

        The whole is tokenized as one text. A document is cut where it is too long.
        """
        queries = {
            query: self._tokenizer.beginning(query, self._query_length)
            for query, _ in pairs
        }
        texts = [self.text(queries[query], document) for query, document in pairs]
        rows = self._ids(texts, self.max_length + 1)
        return [
            self._cut(queries[query], document) if len(row) > self.max_length else row
            for (query, document), row in zip(pairs, rows, strict=True)
        ]

    def _cut(self, query: str, document: str) -> list[int]:
        around = len(self._ids([self.text(query, "")], self.max_length)[0])
        room = self.max_length - around
        while True:
            shown = self._tokenizer.beginning(document, max(room, 0))
            (row,) = self._ids([self.text(query, shown)], self.max_length + 1)
            if len(row) <= self.max_length:
                return row
            # At the ends of a text other tokens may come about.
            room -= 1

    def _ids(self, texts: Sequence[str], most: int) -> list[list[int]]:
        found = self._tokenizer.ids(texts, most - len(self._begins), special=False)
        return [[*self._begins, *row] for row in found]


def _begins(tokenizer: TextTokenizer) -> list[int]:
    """The special tokens before a text; those behind it would end the prompt."""
    (whole,) = tokenizer.ids(["a"], 16)
    (plain,) = tokenizer.ids(["a"], 16, special=False)
    places = range(len(whole) - len(plain) + 1)
    first = next(i for i in places if whole[i : i + len(plain)] == plain)
    return whole[:first]
