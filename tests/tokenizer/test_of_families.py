"""Tokenizers of the families beyond BERT's and XLM-R's, as transformers reads them."""

import json

import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.errors import InputError
from lsrjax.tokenizer import ends, reading
from lsrjax.tokenizer.ask_transformers import PROBES
from lsrjax.tokenizer.writing import write_tokenizer

WORDS = [", the kernel. reads a file", "en fil, og to", "Größe, 你好 3.5% (x)"]
TEXTS = [*PROBES, *WORDS, "query: the kernel", "<bos> <eos> [CLS] <s>"]
TEXTS += ["the kernel, reads " * 2000, "kernel" * 5000]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def trained(model, special, **parts):
    made = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=BYTES,
        show_progress=False,
    )
    made.train_from_iterator(WORDS * 3, trainer)
    return made


def template(made, single, pair):
    names = {word for word in (single + " " + pair).split() if word[0] in "<["}
    made.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(name, made.token_to_id(name)) for name in sorted(names)],
    )
    return made


def gemma():
    """mmBERT's: pad 0, eos 1, bos 2, and spaces as a character of their own."""
    made = trained(
        models.BPE(unk_token="<unk>", fuse_unk=True),
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
    )
    return template(made, "<bos> $A <eos>", "<bos> $A <eos> $B <eos>")


def byte_level():
    """ModernBERT's: BERT's special tokens, bytes as characters."""
    made = trained(
        models.BPE(),
        ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"],
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    return template(made, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]")


def norbert4():
    """A special token ahead, and none behind."""
    made = trained(
        models.BPE(unk_token="<unk>"),
        ["<unk>", "<s>", "</s>", "<pad>", "<mask>"],
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    return template(made, "<s> $A", "<s> $A <s> $B")


ROLES = {
    "gemma": dict(pad="<pad>", eos="<eos>", bos="<bos>", mask="<mask>"),
    "byte_level": dict(pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    "norbert4": dict(pad="<pad>", bos="<s>", eos="</s>", mask="<mask>"),
}
MADE = {"gemma": gemma, "byte_level": byte_level, "norbert4": norbert4}


@pytest.fixture(scope="module", params=MADE)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    MADE[request.param]().save(str(folder / "tokenizer.json"))
    roles = {f"{role}_token": name for role, name in ROLES[request.param].items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | roles
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ids_and_special_tokens_are_those_of_transformers(folder, monkeypatch):
    monkeypatch.setattr(reading, "asked", None)  # its own files say it all
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer(folder)
    for length in (4, 9, 200):
        for special in (True, False):
            wanted = theirs(
                TEXTS, truncation=True, max_length=length, add_special_tokens=special
            )["input_ids"]
            assert ours.ids(TEXTS, length, special=special) == wanted
    assert set(theirs.all_special_ids) <= set(ours.special_ids)
    assert len(ours.special_ids) == 5
    assert (ours.pad_id, ours.mask_id) == (theirs.pad_token_id, theirs.mask_token_id)


def qwen():
    """Nothing around a text, whose tokens have offsets without spaces."""
    made = trained(
        models.BPE(),
        ["<|endoftext|>", "<|im_end|>"],
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


@pytest.mark.parametrize(
    ("bos", "eos"), [("", ""), ("", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "no")]
)
def test_what_stands_around_a_text_is_chosen(bos, eos, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "asked", None)
    roles = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = TextTokenizer(folder)
    (before,) = tokenizer.ids(["a"], 9)
    (plain,) = tokenizer.ids(["a"], 9, special=False)
    ids = tokenizer.vocabulary()
    begin = [ids[roles.get("bos_token") or roles["cls_token"]]]
    end = [ids[roles.get("eos_token") or roles["sep_token"]]]
    as_is = before[: before.index(plain[0])], before[before.index(plain[-1]) + 1 :]
    front = {"": as_is[0], "yes": begin, "no": []}[bos]
    behind = {"": as_is[1], "yes": end, "no": []}[eos]
    made = ends.with_ends(folder, bos, eos, "config.model")
    assert (made == folder) == ((front, behind) == as_is)
    assert ends.with_ends(made, bos, eos, "config.model") == made
    # As an export has it, in transformers.
    write_tokenizer(tmp_path / "out", made)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    around = len(front) + len(behind)
    for length in (4, 9, 200):
        found = TextTokenizer(made).ids(TEXTS, length)
        assert found == theirs(TEXTS, truncation=True, max_length=length)["input_ids"]
        bare = tokenizer.ids(TEXTS, length - around, special=False)
        assert found == [[*front, *row, *behind] for row in bare]


def test_a_text_may_end_where_nothing_stood_around_it(tmp_path):
    """A decoder whose last token is to be EOS, such as Qwen3."""
    qwen().save(str(tmp_path / "tokenizer.json"))
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | roles
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    made = ends.with_ends(tmp_path, "", "yes", "config.model")
    one, other = (reading.read(folder).tokenizer() for folder in (tmp_path, made))
    for text in TEXTS:
        plain, ended = one.encode(text), other.encode(text)
        assert ended.ids == [*plain.ids, one.token_to_id("<|im_end|>")]
        assert ended.offsets[:-1] == plain.offsets
    theirs = transformers.AutoTokenizer.from_pretrained(made)
    assert theirs(TEXTS)["input_ids"] == TextTokenizer(made).ids(TEXTS, 10**5)
    with pytest.raises(InputError, match=r"config.model.add_bos is 'yes'.*bos_token"):
        ends.with_ends(tmp_path, "yes", "", "config.model")


def test_prompts_and_markers_stand_behind_what_begins_a_text(folder):
    tokenizer = TextTokenizer(folder)
    vocabulary = tokenizer.vocabulary()
    begins, *_ = tokenizer.ids(["the kernel"], 20)[0]
    assert begins in tokenizer.special_ids
    (plain,) = tokenizer.ids(["query: the kernel"], 20)
    field = TextField(tokenizer, 20, prompt="query: ", marker=vocabulary["k"])
    assert field.ids(["the kernel"]) == [[begins, vocabulary["k"], *plain[1:]]]
    # Cut with its marker, prompt and special tokens counted.
    cut = TextField(tokenizer, 7, prompt="query: ", marker=vocabulary["k"])
    assert len(cut.ids(["the kernel reads"])[0]) == 7


def test_punctuation_is_found_with_and_without_its_space(folder):
    """What ColBERT leaves out of documents."""
    tokenizer = TextTokenizer(folder)
    tokens = {tokenizer.token(i) for i in tokenizer.punctuation_ids}
    assert {",", ".", "(", "%"} <= tokens
    assert not set(tokenizer.special_ids) & set(tokenizer.punctuation_ids)
    bare = {token.lstrip("▁Ġ") for token in tokens}
    assert all(not any(c.isalnum() for c in token) for token in bare)
    (ids,) = tokenizer.ids(["x (y"], 20, special=False)
    opening = [i for i in ids if "(" in tokenizer.token(i)]
    assert opening and set(opening) <= set(tokenizer.punctuation_ids)
