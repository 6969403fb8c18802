"""Markers of ours as prompts of sentence-transformers, and back."""

import json
import pathlib
import shutil
import types

import pytest

from lsrjax.convert.prompts import Tokens, split_prompt, write_prompts
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError

NAMES = ("[unused0]", "[X]", "[x]", "Foo")  # in place of words of the vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tokenizer")
    for path in pathlib.Path(embedded.ENGLISH_TOKENIZER).iterdir():
        if path.is_file():
            (made / path.name).write_bytes(path.read_bytes())
    content = json.loads((made / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    for name, word in zip(NAMES, sorted(vocabulary)[-len(NAMES) :], strict=True):
        vocabulary[name] = vocabulary.pop(word)
    (made / "tokenizer.json").write_text(json.dumps(content))
    return made


def written(folder, out, place=1, **markers):
    """The prompts of a model with these markers, and the tokenizer written for it."""
    ids = Tokens(folder).vocabulary
    spec = {"query_prompt": "find: ", "document_prompt": "", "marker_place": place}
    for role in ("query", "document"):
        spec[f"{role}_marker"] = ids[markers[role]] if role in markers else -1
    model = types.SimpleNamespace(
        name="some", tokenizer=folder, spec=types.SimpleNamespace(**spec)
    )
    out.mkdir(exist_ok=True)
    return write_prompts(out, model, max_length=64), Tokens(out)


@pytest.mark.parametrize(
    ("marker", "prompt"),
    [
        ("[unused0]", "[unused0]find: "),
        ("[X]", "[X]find: "),
        ("[PAD]", "[PAD]find: "),  # its id is 0
        ("library", "library find: "),  # a word needs the space
    ],
)
def test_a_marker_is_read_from_the_prompt(folder, tmp_path, marker, prompt):
    prompts, tokens = written(folder, tmp_path / "out", query=marker)
    assert prompts == {"query": prompt, "document": ""}
    own = Tokens(folder)
    for text in ("other words", "a [y] library, [Y]", "Foo bar"):
        (plain,) = own.ids([f"find: {text}"])
        wanted = [plain[0], own.vocabulary[marker], *plain[1:]]
        assert tokens.ids([prompts["query"] + text]) == [wanted]
        assert tokens.ids([text]) == own.ids([text])


def test_a_marker_goes_in_front_where_no_special_token_is(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    content = json.loads((bare / "tokenizer.json").read_text())
    (bare / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    prompts, tokens = written(bare, tmp_path / "out", place=0, query="[X]")
    marker = tokens.vocabulary["[X]"]
    field = TextField(TextTokenizer(bare), 9, "find: ", marker, place=0)
    texts = ["", "other words", "a library " * 9]
    found = field.ids(texts)
    assert [row[0] for row in found] == [marker] * 3
    wanted = tokens.ids(prompts["query"] + text for text in texts)
    assert found == [row[:9] for row in wanted]
    (plain,) = Tokens(bare).ids(["find: other words"])
    assert found[1][1:] == plain


def test_markers_join_the_special_tokens_once(folder, tmp_path):
    prompts, tokens = written(
        folder, tmp_path / "out", query="[MASK]", document="[unused0]"
    )
    assert prompts == {"query": "[MASK]find: ", "document": "[unused0]"}
    added = [token["content"] for token in tokens.content["added_tokens"]]
    assert sorted(added) == sorted({*Tokens(folder).special, "[unused0]"})


# The second would replace the three tokens of [x] in texts.
@pytest.mark.parametrize("marker", ["Foo", "[x]"])
def test_a_marker_that_no_text_can_name_is_refused(folder, tmp_path, marker):
    with pytest.raises(InputError, match="does not read the marker"):
        written(folder, tmp_path / "out", query=marker)


@pytest.mark.parametrize(
    ("prompt", "marker", "rest"),
    [
        ("[unused0]find: ", "[unused0]", "find: "),
        ("[unused0] find: ", "[unused0]", "find: "),
        ("[unused0]", "[unused0]", ""),
        ("find: ", None, "find: "),
        ("find [unused0]: ", None, "find [unused0]: "),
    ],
)
def test_a_prompt_is_split_into_marker_and_text(folder, tmp_path, prompt, marker, rest):
    _, tokens = written(folder, tmp_path / "out", query="[unused0]")
    wanted = tokens.vocabulary[marker] if marker else -1
    assert split_prompt(prompt, tokens) == (wanted, rest)
