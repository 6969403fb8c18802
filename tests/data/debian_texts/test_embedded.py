import os
import random
import re
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from lsrjax.data.debian_texts import embedded, make

LANGUAGES = (
    ("en",)
    + ("da", "de", "es", "fr", "it", "ja", "ko", "pl", "pt", "ru", "uk", "zh")
)  # fmt: skip


@pytest.fixture(scope="module")
def splits():
    return {name: embedded.load(name) for name in embedded.SPLITS}


@pytest.fixture(scope="module")
def english():
    return Tokenizer.from_file(str(embedded.ENGLISH_TOKENIZER / "tokenizer.json"))


@pytest.fixture(scope="module")
def multilingual():
    return Tokenizer.from_file(str(embedded.MULTILINGUAL_TOKENIZER / "tokenizer.json"))


def test_ships_in_five_megabytes():
    found = (path for path in embedded.path().rglob("*") if path.is_file())
    files = [path for path in found if path.suffix not in (".py", ".pyc")]
    assert {str(path.relative_to(embedded.path())) for path in files} == {
        "README.md",
        "train.parquet",
        "dev.parquet",
        "test.parquet",
        "english_tokenizer/tokenizer.json",
        "english_tokenizer/tokenizer_config.json",
        "multilingual_tokenizer/tokenizer.json",
        "multilingual_tokenizer/tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in files) <= 5_000_000


def test_splits_share_no_group_and_no_id(splits):
    for column in ("group", "id"):
        values = [set(split.rows[column]) for split in splits.values()]
        assert sum(map(len, values)) == len(set().union(*values)), column


def test_counts_are_those_of_the_card(splits):
    card = (embedded.path() / "README.md").read_text(encoding="utf-8")
    table = re.findall(
        r"^\| (\w\w) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", card, re.M
    )
    assert tuple(lang for lang, *_ in table) == LANGUAGES
    for lang, *cells in table:
        written = [int(cell.replace(",", "")) for cell in cells]
        assert written == [len(splits[name].ids(lang)) for name in embedded.SPLITS]


def test_languages_are_balanced(splits):
    for name, split in splits.items():
        cap = make.CAPS[name]
        counts = {
            lang: len(split.ids(lang)) for lang in split.languages if lang != "en"
        }
        assert max(counts.values()) == cap
        assert sum(n == cap for n in counts.values()) >= 6
    assert len(splits["test"].ids("en")) == 3863
    assert len(splits["dev"].ids("en")) == 600


def test_rows_are_clean_and_lookups_agree(splits):
    for split in splits.values():
        assert split.languages == LANGUAGES
        rows = list(zip(*split.rows.values(), strict=True))
        assert list(split.rows) == list(make.COLUMNS)
        assert rows == sorted(rows, key=lambda row: (row[3], row[1], row[0]))
        for row_id, package, group, lang, title, text in rows:
            assert re.fullmatch("[0-9a-f]{12}", row_id) and package and group
            assert title and title == " ".join(title.split())
            assert text and text == " ".join(text.split())
            assert len(text) <= make.MAX_CHARS[lang]
            assert split.titles[lang][row_id] == title
            assert split.texts[lang][row_id] == text
        assert len(rows) == sum(len(split.ids(lang)) for lang in split.languages)
        for lang in split.languages:
            assert set(split.ids(lang)) <= set(split.ids("en"))


def test_translations_are_of_the_right_text(splits):
    # Numbers and names in capitals survive translation; another row's do not match.
    def names(text):
        return set(re.findall(r"[A-Z]{3,}|\d{2,}", text))

    dev = splits["dev"]
    for lang in dev.languages[1:]:
        ids = dev.ids(lang)
        kept = {"own": 0, "other": 0}
        for row_id, other_id in zip(ids, ids[1:] + ids[:1], strict=True):
            wanted = names(dev.titles["en"][row_id])
            kept["own"] += len(wanted & names(dev.titles[lang][row_id]))
            kept["other"] += len(wanted & names(dev.titles[lang][other_id]))
        assert kept["own"] > 2 * kept["other"], (lang, kept)


def test_unknown_names_list_the_known_ones(splits):
    with pytest.raises(ValueError, match="'validation'.*train, dev, test"):
        embedded.load("validation")
    with pytest.raises(ValueError, match="'nl'.*en, da, de"):
        splits["dev"].ids("nl")


def test_loads_fast():
    start = time.perf_counter()
    for name in embedded.SPLITS:
        embedded.load(name)
    # Half a second on an idle machine; the rest is for a busy one.
    assert time.perf_counter() - start < 2.0


def test_english_tokenizer(english):
    assert english.get_vocab_size() == 8192
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [english.token_to_id(token) for token in special] == [0, 1, 2, 3, 4]
    tokens = english.encode("A Library for the KERNEL").tokens
    assert tokens == ["[CLS]", "a", "library", "for", "the", "kernel", "[SEP]"]
    assert english.encode("a", "b").type_ids == [0, 0, 0, 1, 1]


def test_multilingual_tokenizer(multilingual):
    assert multilingual.get_vocab_size() == 16_000
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    ids = [multilingual.token_to_id(token) for token in special]
    assert ids == [0, 1, 2, 3, 15_999]
    lower = multilingual.encode("library für данных ライブラリ").tokens
    assert lower[0] == "<s>" and lower[-1] == "</s>"
    # Capitals and half-width kana fall together with the plain forms.
    assert multilingual.encode("LIBRARY FÜR ДАННЫХ ﾗｲﾌﾞﾗﾘ").tokens == lower
    assert "<unk>" not in lower


@pytest.mark.parametrize(
    ("folder", "pad", "mask"),
    [
        (embedded.ENGLISH_TOKENIZER, 0, 4),
        (embedded.MULTILINGUAL_TOKENIZER, 1, 15_999),
    ],
)
def test_transformers_loads_the_tokenizers(folder, pad, mask):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Python bindings for libxml2"
    assert tokenizer(text)["input_ids"] == plain.encode(text).ids
    assert tokenizer.decode(plain.encode(text).ids, skip_special_tokens=True)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (pad, mask)
    assert tokenizer.model_max_length == 64
    assert len(tokenizer) == plain.get_vocab_size()


def test_texts_fit_64_tokens(splits, english, multilingual):
    for split in splits.values():
        # A seventh of the training rows is enough, and takes a second.
        step = 7 if split.name == "train" else 1
        langs, texts = (split.rows[name][::step] for name in ("lang", "text"))
        rows, within = Counter(langs), Counter()
        encodings = multilingual.encode_batch_fast(texts)
        for lang, encoding in zip(langs, encodings, strict=True):
            within[lang] += len(encoding.ids) <= 64
        assert within.total() / rows.total() >= 0.95
        for lang in split.languages:
            # Around one in twenty of a hundred rows or fewer, give or take chance.
            assert within[lang] / rows[lang] >= 0.92, (split.name, lang)
        encodings = english.encode_batch_fast(list(split.texts["en"].values())[::step])
        assert np.mean([len(encoding.ids) <= 64 for encoding in encodings]) >= 0.95


def test_unknown_tokens_are_rare(splits, english, multilingual):
    dev = splits["dev"]
    for lang in dev.languages:
        for tokenizer, unk in ((english, 1), (multilingual, 3)):
            if tokenizer is english and lang != "en":
                continue
            lines = [*dev.titles[lang].values(), *dev.texts[lang].values()]
            encodings = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
            ids = np.concatenate([encoding.ids for encoding in encodings])
            assert np.mean(ids == unk) < 0.005, lang


def test_reader_needs_no_framework():
    code = (
        "import sys; from lsrjax.data.debian_texts.embedded import load; load('dev');"
        "print(sorted({'jax', 'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("short  text\n with lines", 30, "short text with lines"),
        ("One two. Three four five six", 12, "One two."),
        ("one two three four", 12, "one two"),
        ("one two three four", 13, "one two three"),
        ("これは文です。あれは長い文でした", 10, "これは文です。"),
        ("これはとても長い文", 4, "これはと"),
        ("first part is shared\nthe end", 20, "first part the end"),
    ],
)
def test_cut(text, limit, expected):
    assert make.cut(text, limit) == expected
    assert len(expected) <= limit


def write_source(folder, seed):
    """A source of a few hundred rows whose words are made of random syllables."""
    rng = random.Random(seed)
    alphabets = {
        "en": "abcdefgh",
        "da": "abcdeæøå",
        "ru": "абвгдежз",
        "zh": "图像库文件包",
    }
    words = {
        lang: ["".join(rng.choices(chars, k=rng.randint(1, 5))) for _ in range(60)]
        for lang, chars in (alphabets | {"fi": "aäoöklst"}).items()
    }
    for split in make.CAPS:
        rows = []
        for number in range(70):
            group = f"{split}{number // 2}"
            row_id = f"{rng.random():.20f}"[2:]
            for lang in words:
                if lang != "en" and rng.random() < 0.3:
                    continue
                title, text = (rng.choices(words[lang], k=k) for k in (4, 60))
                rows.append(
                    {
                        "id": row_id,
                        "package": f"lib{split}{number}",
                        "group": group,
                        "lang": lang,
                        "title": " ".join(title) if number else " \n",
                        "text": "  ".join(text[:40]) + ".\n\n" + " ".join(text[40:]),
                    }
                )
        rng.shuffle(rows)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def build(source, out, hash_seed):
    command = [sys.executable, "-m", "lsrjax.data.debian_texts.make"]
    command += ["--source", str(source), "--out", str(out)]
    env = os.environ | {"PYTHONHASHSEED": hash_seed}
    subprocess.run(command, check=True, env=env)
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_build_repeats_byte_for_byte(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_source(source, seed=5)
    first = build(source, tmp_path / "first", "1")
    assert first == build(source, tmp_path / "second", "2")
    assert len(first) == 8
    rows = pq.read_table(tmp_path / "first" / "test.parquet").to_pylist()
    assert {row["lang"] for row in rows} == {"en", "da", "ru", "zh"}
    # The first description has an empty title and takes its translations with it.
    assert sum(row["lang"] == "en" for row in rows) == 69
    assert all(len(row["id"]) == 12 for row in rows)


def test_build_names_a_missing_column(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "lang": ["en"]}), tmp_path / "dev.parquet")
    with pytest.raises(ValueError, match="no column package, group, title, text"):
        make.read_source(tmp_path / "dev.parquet")


def test_build_refuses_ids_that_clash(tmp_path):
    row = {"package": "p", "group": "g", "lang": "en", "title": "t", "text": "x"}
    rows = [row | {"id": "0123456789ab" + end} for end in ("cd", "ef")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dev.parquet")
    with pytest.raises(ValueError, match="0123456789abcd.*share"):
        make.read_source(tmp_path / "dev.parquet")
