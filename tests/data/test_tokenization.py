import json
import threading

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer, pad
from lsrjax.errors import InputError

FOLDERS = {
    "english": embedded.ENGLISH_TOKENIZER,
    "multilingual": embedded.MULTILINGUAL_TOKENIZER,
}
TEXTS = ["a library", "the kernel of the operating system " * 4, "x"]


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(request):
    return TextTokenizer(FOLDERS[request.param])


def test_agrees_with_the_library(tokenizer):
    reference = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    reference.no_truncation()
    expected = [reference.encode(text).ids for text in TEXTS]
    assert tokenizer.ids(TEXTS, 512) == expected
    assert tokenizer.vocab_size == reference.get_vocab_size()
    assert tokenizer.token(expected[0][1]) == reference.encode(TEXTS[0]).tokens[1]
    assert tokenizer.token(10**6) == "#1000000"


def test_truncation_keeps_the_special_tokens(tokenizer):
    (whole,) = tokenizer.ids(TEXTS[1:2], 512)
    for length in (3, 5, 8):
        (cut,) = tokenizer.ids(TEXTS[1:2], length)
        assert cut == [*whole[: length - 1], whole[-1]]
        assert {cut[0], cut[-1]} <= set(tokenizer.special_ids)
        (plain,) = tokenizer.ids(TEXTS[1:2], length, special=False)
        assert plain == whole[1 : length + 1]


def test_lengths_do_not_disturb_each_other_across_threads(tokenizer):
    lengths = [4, 7, 11, 512] * 4
    expected = {length: tokenizer.ids(TEXTS, length) for length in lengths}
    found = {}

    def work(number, length):
        found[number] = [tokenizer.ids(TEXTS, length) for _ in range(20)]

    threads = [threading.Thread(target=work, args=item) for item in enumerate(lengths)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, length in enumerate(lengths):
        assert found[number] == [expected[length]] * 20


@pytest.mark.parametrize(
    ("lengths", "max_length", "padded"),
    [
        ([2, 3], 16, 4),  # the smallest bucket that holds them
        ([4, 1], 16, 4),
        ([5, 1], 16, 8),
        ([9], 16, 16),  # max_length is always a bucket
        ([2], 3, 3),
    ],
)
def test_padding_to_buckets(lengths, max_length, padded):
    rows = [list(range(10, 10 + length)) for length in lengths]
    batch = pad(rows, 1, max_length, (4, 8, 32))
    assert batch["ids"].shape == batch["mask"].shape == (len(lengths), padded)
    assert batch["ids"].dtype == batch["mask"].dtype == np.int32
    for row, ids, mask in zip(rows, batch["ids"], batch["mask"], strict=True):
        assert ids.tolist() == row + [1] * (padded - len(row))
        assert mask.tolist() == [1] * len(row) + [0] * (padded - len(row))


def test_batch_is_ids_and_padding(tokenizer):
    batch = tokenizer.batch(TEXTS, 12, (4, 8))
    assert batch["ids"].shape == (3, 12)
    for ids, mask, row in zip(*batch.values(), tokenizer.ids(TEXTS, 12), strict=True):
        assert ids[mask.astype(bool)].tolist() == row
        assert (ids[len(row) :] == tokenizer.pad_id).all()


def test_padding_token_comes_from_the_config(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes((FOLDERS["english"] / "tokenizer.json").read_bytes())
    assert TextTokenizer(tmp_path).pad_id == 0
    # As transformers writes them, in its releases.
    whole = {"__type": "AddedToken", "content": "[MASK]", "special": True}
    for token in ("[MASK]", whole):
        config = {"pad_token": token}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert TextTokenizer(tmp_path).pad_id == 4
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<none>"}')
    with pytest.raises(InputError, match="no padding token.*<none>.*Set pad_token"):
        TextTokenizer(tmp_path)


def test_missing_or_broken_tokenizer(tmp_path):
    with pytest.raises(InputError, match="No tokenizer.json in .*save_pretrained"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer.json is not a tokenizer"):
        TextTokenizer(tmp_path)
    made = Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"is not a tokenizer: .*\[UNK\]"):
        TextTokenizer(tmp_path)
