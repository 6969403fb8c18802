"""Tokens for prompt vectors: in front of a text, they change no other token."""

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from lsrjax.convert import prompts
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.tokenizer import prompt_tokens
from lsrjax.tokenizer.ask_transformers import PROBES

NAMES = [
    "<|lsrjax_query_0|>",
    "<|lsrjax_query_1|>",
    "<|lsrjax_document_0|>",
]
LONG = "the kernel, reads größe " * 500


def metaspace(folder, scheme):
    """A tokenizer whose words begin with a mark: all, or the first of a text too."""
    words = {
        word: i
        for i, word in enumerate(
            ["<pad>", "<unk>", "<s>", "▁the", "the", "▁kernel", "▁a", "a"]
        )
    }
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.add_special_tokens(["<pad>", "<unk>", "<s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 2)]
    )
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", ["english", "multilingual", "always"])
def test_they_stand_in_front_and_change_nothing(kind, tmp_path):
    source = {
        "english": embedded.ENGLISH_TOKENIZER,
        "multilingual": embedded.MULTILINGUAL_TOKENIZER,
    }.get(kind) or metaspace(tmp_path / "source", kind)
    folder = tmp_path / "made"
    first = prompt_tokens.add(folder, source, {"query": 2, "document": 1})
    before, after = TextTokenizer(source), TextTokenizer(folder)
    assert first == before.vocab_size
    vocabulary = dict(zip(NAMES, range(first, first + 3), strict=True))
    assert after.vocabulary() == before.vocabulary() | vocabulary
    assert after.special_ids == (*before.special_ids, *vocabulary.values())
    assert (after.pad_id, after.begins) == (before.pad_id, before.begins)
    found = prompt_tokens.names_in(after.vocabulary())
    assert found == {"query": NAMES[:2], "document": NAMES[2:]}
    texts = [*PROBES, "the kernel", LONG]
    for prompt in ("", "the "):
        front = prompt_tokens.in_front(folder, NAMES[:2], prompt)
        assert front.startswith(NAMES[0] + NAMES[1])
        plain = before.ids([prompt + text for text in texts], 40)
        wanted = [[row[0], first, first + 1, *row[1:]] for row in plain]
        assert after.ids([front + text for text in texts], 42) == wanted
    assert prompt_tokens.in_front(folder, [], "the ") == "the "
    # No marker, as a single special token of another program's prompt is.
    assert prompts.split_prompt(front, prompts.Tokens(folder)) == (-1, front)


def test_a_tokenizer_that_reads_texts_behind_them_otherwise_is_refused(tmp_path):
    source = metaspace(tmp_path / "source", "first")
    prompt_tokens.add(tmp_path / "made", source, {"query": 2, "document": 1})
    with pytest.raises(InputError, match="reads other tokens than at the beginning"):
        prompt_tokens.in_front(tmp_path / "made", NAMES[:2], "")
