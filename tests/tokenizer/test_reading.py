"""A folder's tokens are those of transformers' AutoTokenizer, or it is refused."""

import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import tokenizers
import transformers

from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.tokenizer import reading
from lsrjax.tokenizer.ask_transformers import PROBES
from lsrjax.tokenizer.reading import read
from lsrjax.tokenizer.writing import write_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
WORDS = "the a kernel cafe café cafe straße library ##s ##e [ ] MASK x y 你 好".split()
TEXTS = [*PROBES, "The Kernel: a CAFÉ, 你好 [MASK] [ENT] boxed", " ".join(WORDS)]
CONFIG, MODEL = "tokenizer_config.json", "config.json"


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_tokenizer():
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    made.add_special_tokens(SPECIAL)
    return made


def small_bert(there):
    """A small BERT's tokenizer; the texts have words that its options tell apart."""
    there.mkdir()
    bert_tokenizer().save(str(there / "tokenizer.json"))
    write(there, CONFIG, {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    return there


@pytest.fixture
def folder(tmp_path):
    return small_bert(tmp_path / "tokenizer")


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def change(folder, name, **values):
    path = folder / name
    found = json.loads(path.read_text()) if path.is_file() else {}
    write(folder, name, found | values)


def same_as_transformers(folder):
    """Compares all tokens with AutoTokenizer's, in this process; gives it."""
    theirs = transformers.AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    ours = TextTokenizer(folder)
    for length, special in itertools.product((5, 9, 500), (True, False)):
        wanted = theirs(
            TEXTS, truncation=True, max_length=length, add_special_tokens=special
        )["input_ids"]
        assert ours.ids(TEXTS, length, special=special) == wanted
    assert ours.vocabulary() == theirs.get_vocab()
    if theirs.pad_token_id is not None:
        assert ours.pad_id == theirs.pad_token_id
    if theirs.mask_token_id is not None:
        assert ours.mask_id == theirs.mask_token_id
    return theirs


ENT = {
    "content": "[ENT]",
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}
CHANGES = {
    "lower": {CONFIG: {"do_lower_case": False}},
    "accents kept": {CONFIG: {"strip_accents": False}},
    "accents stripped": {CONFIG: {"do_lower_case": False, "strip_accents": True}},
    "characters": {CONFIG: {"tokenize_chinese_chars": False}},
    "cut on the left": {CONFIG: {"truncation_side": "left"}},
    "added in the config": {CONFIG: {"added_tokens_decoder": {"22": ENT}}},
    "added in a file": {"added_tokens.json": {"[ENT]": 22}},
    "added by the map": {
        "special_tokens_map.json": {"additional_special_tokens": ["[ENT]"]}
    },
    "extra": {CONFIG: {"extra_special_tokens": ["[ENT]", "x"]}},
    "a word as the mask": {CONFIG: {"mask_token": "x"}},
    "a mask of the map": {
        "special_tokens_map.json": {"mask_token": ENT | {"content": "y"}}
    },
    "another end": {CONFIG: {"sep_token": "x", "cls_token": "y"}},
    # Beside a tokenizer.json these keys change nothing.
    "an end": {
        CONFIG: {"add_bos_token": True, "add_eos_token": True, "eos_token": "x"}
    },
    "special tokens are text": {CONFIG: {"split_special_tokens": True}},
    "no class": {CONFIG: {"tokenizer_class": None}},
    "the class of the model": {
        CONFIG: {"tokenizer_class": None, "do_lower_case": False},
        MODEL: {"model_type": "bert"},
    },
    "a class named in the model's config": {
        CONFIG: {"tokenizer_class": None, "do_lower_case": False},
        MODEL: {"model_type": "xlm-roberta", "tokenizer_class": "BertTokenizer"},
    },
    "an unknown class": {CONFIG: {"tokenizer_class": "NonsenseTokenizer"}},
    "plain": {CONFIG: {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "a code of the model": {MODEL: {"auto_map": {"AutoModel": "mine.M"}}},
}

SAME = ("an end", "no class", "an unknown class", "plain", "a code of the model")


JAPANESE = {"tokenizer_class": "BertJapaneseTokenizer"}
REFUSED = [
    (CONFIG, {"padding_side": "left"}, "padding_side is 'left'"),
    (CONFIG, {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map names"),
    (CONFIG, {"auto_map": ["a.B", None]}, "auto_map names"),
    (CONFIG, {"tokenizer_class": "AutoModel"}, "tokenizer_class is 'AutoModel'"),
    (CONFIG, {"tokenizer_class": "os.system"}, "tokenizer_class is 'os.system'"),
    (CONFIG, {"tokenizer_class": 7}, "tokenizer_class is 7"),
    (MODEL, {"tokenizer_class": "BertModel"}, r"config\.json: tokenizer_class"),
    (CONFIG, {"mask_token": 7}, "mask_token"),
    (CONFIG, {"do_lower_case": None}, r"config\.json \(.*do_lower_case"),
    (CONFIG, {"truncation_side": "middle"}, "truncation_side"),
    (CONFIG, {"added_tokens_decoder": {"a": 1}}, "added_tokens_decoder"),
    ("special_tokens_map.json", {"pad_token": 7}, "pad_token"),
    ("added_tokens.json", {"[ENT]": "x"}, r"added_tokens\.json \(\[ENT\]\)"),
    (CONFIG, {"tokenizer_class": "XLMTokenizer"}, "XLMTokenizer.* no fast form"),
    (CONFIG, JAPANESE, "BertJapaneseTokenizer, which has no fast form"),
]


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """Folders, each with one of the changes, and what transformers says of them.

    It is asked of all at once, since it takes a second to start.
    """
    root = tmp_path_factory.mktemp("changed")
    changes = {None: {}} | CHANGES
    changes |= {i: {file: values} for i, (file, values, _) in enumerate(REFUSED)}
    folders = {name: small_bert(root / str(i)) for i, name in enumerate(changes)}
    for name, folder in folders.items():
        for file, values in changes[name].items():
            change(folder, file, **values)
    answers = reading.asked(list(folders.values()))
    return folders, dict(zip(folders.values(), answers, strict=True))


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_done_is_refused_by_its_name(number, changed, monkeypatch):
    folders, answers = changed
    monkeypatch.setattr(reading, "asked", lambda asked: [answers[asked[0]]])
    with pytest.raises(InputError, match=REFUSED[number][2]):
        read(folders[number])


@pytest.mark.parametrize("name", CHANGES)
def test_the_tokens_are_those_of_transformers(name, changed, tmp_path, monkeypatch):
    folders, answers = changed
    monkeypatch.setattr(reading, "asked", lambda asked: [answers[asked[0]]])
    folder, unchanged = folders[name], folders[None]
    theirs = same_as_transformers(folder)
    if name not in SAME:
        # It was not for nothing.
        found = [TextTokenizer(f).ids(TEXTS, 50) for f in (folder, unchanged)]
        found += [TextTokenizer(f).ids(TEXTS, 9) for f in (folder, unchanged)]
        assert found[:3:2] != found[1::2]
    # What we write gives them, too, here and in transformers, beside any model.
    monkeypatch.undo()
    # That special tokens are text, tokenizer.json cannot say.
    plain = name != "special tokens are text"
    for kind in ("", "bert", "xlm-roberta") if plain else ("bert",):
        out = tmp_path / f"out {kind}"
        monkeypatch.setattr(reading, "asked", lambda asked: [answers[asked[0]]])
        write_tokenizer(out, folder, max_length=50)
        monkeypatch.undo()
        if kind:
            write(out, MODEL, {"model_type": kind})
        if plain:
            monkeypatch.setattr(reading, "asked", None)
        written = same_as_transformers(out)
        monkeypatch.undo()
        assert written(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
        assert written.model_max_length == 50


PLAIN = {
    "english": embedded.ENGLISH_TOKENIZER,
    "multilingual": embedded.MULTILINGUAL_TOKENIZER,
    "bert": GOLDEN / "bert",
    "xlmr": GOLDEN / "xlmr",
}
MODELS = ("", "bert", "roberta", "xlm-roberta", "distilbert", "camembert", "milco")


@pytest.mark.parametrize(
    ("name", "model"),
    [*(("bert", model) for model in MODELS), *((name, "") for name in PLAIN)],
)
def test_plain_folders_are_read_without_transformers(
    name, model, tmp_path, monkeypatch
):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in ("tokenizer.json", CONFIG):
        shutil.copy(pathlib.Path(PLAIN[name]) / file, folder)
    if model:
        write(folder, MODEL, {"model_type": model})
    monkeypatch.setattr(reading, "asked", None)
    same_as_transformers(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (CONFIG, {"do_lower_case": False}),
        (CONFIG, {"mask_token": "x"}),
        (CONFIG, {"padding_side": "left"}),
        (CONFIG, {"unheard_of": 1}),
        (CONFIG, {"added_tokens_decoder": {"0": ENT}}),
        (CONFIG, {"extra_special_tokens": ["x"]}),
        (CONFIG, {"tokenizer_class": "BertTokenizer"}),
        (MODEL, {"model_type": "mistral"}),
        ("special_tokens_map.json", {"mask_token": "x"}),
        ("added_tokens.json", {"x": 9}),
    ],
)
def test_whatever_may_change_a_token_is_asked_of_transformers(
    file, values, folder, monkeypatch
):
    def asked(folders):
        raise InputError("asked")

    monkeypatch.setattr(reading, "asked", asked)
    write(folder, CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast"})
    read(folder)
    change(folder, file, **values)
    with pytest.raises(InputError, match="asked"):
        read(folder)


def test_a_vocabulary_alone_is_a_tokenizer(folder):
    vocabulary = bert_tokenizer().get_vocab()
    lines = sorted(vocabulary, key=vocabulary.get)
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    same_as_transformers(folder)
    (ids,) = TextTokenizer(folder).ids(["the kernel"], 9)
    assert ids == [vocabulary[name] for name in ("[CLS]", "the", "kernel", "[SEP]")]


def test_a_byte_order_mark_is_no_part_of_a_file(folder):
    change(folder, CONFIG, do_lower_case=False)
    change(folder, "added_tokens.json")
    change(folder, MODEL, model_type="bert")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for file in ("tokenizer.json", CONFIG, MODEL, "added_tokens.json"):
        path = folder / file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert TextTokenizer(folder).ids(TEXTS, 500) == theirs(TEXTS)["input_ids"]


@pytest.mark.parametrize(
    "file",
    ["tokenizer.json", CONFIG, MODEL, "special_tokens_map.json", "added_tokens.json"],
)
@pytest.mark.parametrize("content", [b'{"a": ', b"[]", b"", b"\xff\xfe{", b"7"])
def test_damaged_files_are_named(file, content, folder):
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        read(folder)


def test_tokens_that_transformers_makes_beside_its_backend_are_refused(
    folder, monkeypatch
):
    (answer,) = reading.asked([folder])
    length, special, rows = answer["probes"][0]
    rows[3] = rows[3][::-1]
    monkeypatch.setattr(reading, "asked", lambda folders: [answer])
    with pytest.raises(InputError, match="BertTokenizer gives .*Don't stop.* other"):
        read(folder)


def test_a_changed_folder_is_read_anew(folder):
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(folder, CONFIG, plain)
    before = TextTokenizer(folder).ids(TEXTS, 9)
    write(folder, CONFIG, plain | {"truncation_side": "left"})
    assert TextTokenizer(folder).ids(TEXTS, 9) != before


def test_the_same_files_are_asked_once_whatever_their_folder(
    folder, tmp_path, monkeypatch
):
    change(folder, CONFIG, do_lower_case=False)
    copy, other = (shutil.copytree(folder, tmp_path / name) for name in ("a", "b"))
    change(other, CONFIG, do_lower_case=True)
    wanted, changed = reading.asked([folder, other])
    assert wanted["json"] != changed["json"]
    with monkeypatch.context() as context:
        context.setattr(subprocess, "run", None)  # which would be a TypeError
        found = reading.asked([other, copy])
        assert found == [changed, wanted]
        found[1].clear()
        assert reading.asked([copy]) == [wanted]
    damaged = {"tokenizer_class": "NoSuchTokenizer", "auto_map": {}}
    write(copy, CONFIG, damaged)
    (copy / "tokenizer.json").write_text("{}")
    for number in range(2):
        place = shutil.copytree(copy, tmp_path / f"damaged{number}")
        (answer,) = reading.asked([place])
        assert "error" in answer and "lsrjax-tokenizer-" not in answer["error"]


def test_reading_imports_no_framework_and_runs_nothing_of_the_folder(folder, tmp_path):
    trace = tmp_path / "ran"
    code = f"import pathlib; pathlib.Path({str(trace)!r}).touch()\n"
    for name in ("tokenization_bert", "transformers", "tokenizers", "json"):
        (folder / f"{name}.py").write_text(code)
    change(folder, CONFIG, do_lower_case=False)
    package = pathlib.Path(reading.__file__).parents[2]
    program = f"""
import sys
sys.path = [{str(package)!r}, *(path for path in sys.path if path)]
from lsrjax.data.tokenization import TextTokenizer
TextTokenizer(".").ids(["a text"], 8)
print([name for name in ("transformers", "torch", "jax") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert not trace.exists()
