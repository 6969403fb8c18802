"""Where a long text is cut before it is tokenized, no token changes."""

import itertools
import json
import random
import struct
import unicodedata

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lsrjax.data import long_texts, tokenization
from lsrjax.data.debian_texts import embedded
from lsrjax.data.long_texts import Cutter
from lsrjax.data.tokenization import TextTokenizer

ADDED = ["[MASK]", "<mask>", "New", "ö", "中"]
# Letters of many scripts, marks, spaces of many kinds, and what combines with others:
# marks, joiners, letters that go before or behind another in one cluster, and pieces
# that normalizers make others of or drop.
PIECES = (
    *"aAzZ09.,;#'[]<>_-öÖéßſΣςİıІжяאبنกำเ你中かガｶﾞ한ᄀ𝒳😀½²ﬁ…",
    *"\u0301\u0308\u0327\u094d\u093f\u200b\u200d\u200c\u00ad\ufeff\u0600\u0d4e\u0eb3",
    *"\u00a0\u3000\u2003\u0085\x1c\x00\r\t▁Ġ\ufffd\ufe0f\u1100",
    *" \n",
    "  ",
    " \n",
    " \u0301",
    "\u0600 ",
    "word",
    "naïve",
    "नमस्ते",
    "'s",
    *ADDED,
)
SPACES = (" ", " ", " ", "\n", "  ", "\r\n", "\u3000", " \n ")


def random_text(rng, length):
    """Words of pieces, and of ASCII letters, between spaces; of so many characters."""
    parts, size = [], 0
    while size < length:
        if rng.random() < 0.6:
            word = "".join(rng.choices(PIECES, k=rng.randint(1, 4)))
        else:
            word = "".join(rng.choices("abcde", k=rng.randint(1, 6)))
        word += rng.choice(SPACES) if rng.random() < 0.7 else ""
        parts.append(word)
        size += len(word)
    return "".join(parts)


def characters():
    found = set("".join(PIECES) + "".join(SPACES) + "abcde")
    found |= {c for one in list(found) for c in normalizers.NFKC().normalize_str(one)}
    return sorted(found)


def charsmap(replaced):
    """The normalizer of a sentencepiece model: a double array of keys, and values."""
    trie, values = {}, b""
    for key, value in sorted(replaced.items()):
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = len(values)
        values += value.encode() + b"\0"
    units, blocks = {0: 0}, itertools.count(1)

    def place(node, at):
        # A block for each node, so that none of its children meets another's.
        block = 256 * next(blocks)
        units[at] |= (at ^ block) << 10 | (None in node) << 8
        units[block] = node.get(None, 0) | 1 << 31
        for byte in node.keys() - {None}:
            units[block ^ byte] = byte
        for byte in node.keys() - {None}:
            place(node[byte], block ^ byte)

    place(trie, 0)
    array = [units.get(i, 1 << 31) for i in range(256 * next(blocks))]
    packed = struct.pack(f"<{len(array)}I", *array)
    return normalizers.Precompiled(struct.pack("<I", len(packed)) + packed + values)


def nmt_nfkc():
    """As XLM-R has it, and keys that begin or end with a space, as none should."""
    found = {c: unicodedata.normalize("NFKC", c) for c in "".join(PIECES) if c != "\0"}
    replaced = {c: new for c, new in found.items() if new != c}
    replaced |= dict.fromkeys("\n\t\r\u3000\u2003\u200b", " ")
    replaced |= {"e\u0301": "é", "\u00ad": "", " \u0301": "´", "\u0600 ": "x"}
    return charsmap(replaced)


def word_piece():
    tokens = ["[UNK]", *characters(), *(f"##{c}" for c in characters()), "wor", "##d"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=9)


def unigram():
    tokens = ["<unk>", "▁", *characters(), "▁a", "ab", "▁w", "word", "中か", "e\u0301"]
    scores = [(token, -1 - i % 7) for i, token in enumerate(dict.fromkeys(tokens))]
    return models.Unigram(scores, unk_id=0, byte_fallback=False)


def bpe(alphabet):
    tokens = [*dict.fromkeys(["<unk>", *alphabet])]
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("▁", "a"), ("d", "e")]
    merges = [(a, b) for a, b in merges if {a, b} <= {*tokens, "ab"}]
    tokens += [a + b for a, b in merges if a + b not in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>")


def metaspace(**options):
    return pre_tokenizers.Metaspace(**options)


def sequence(*parts):
    kind = (
        normalizers
        if isinstance(parts[0], normalizers.Normalizer)
        else (pre_tokenizers)
    )
    return kind.Sequence(list(parts))


N, P = normalizers, pre_tokenizers
BYTES = pre_tokenizers.ByteLevel.alphabet()
# Name -> model, normalizer, pre-tokenizer. All of these can be cut.
KINDS = {
    "bert": (word_piece, N.BertNormalizer(), P.BertPreTokenizer()),
    "cased bert": (
        word_piece,
        N.BertNormalizer(lowercase=False, strip_accents=False),
        P.BertPreTokenizer(),
    ),
    "bert as it is": (
        word_piece,
        N.BertNormalizer(
            clean_text=False,
            handle_chinese_chars=False,
            strip_accents=False,
            lowercase=False,
        ),
        P.BertPreTokenizer(),
    ),
    "english": (
        word_piece,
        sequence(N.NFKC(), N.NFD(), N.StripAccents(), N.Lowercase()),
        P.Whitespace(),
    ),
    "no normalizer": (unigram, None, sequence(P.WhitespaceSplit(), metaspace())),
    "xlm-r": (unigram, nmt_nfkc(), sequence(P.WhitespaceSplit(), metaspace())),
    "sentencepiece": (
        unigram,
        sequence(nmt_nfkc(), N.Replace(tokenizers.Regex(" {2,}"), "▁")),
        metaspace(),
    ),
    "multilingual": (
        unigram,
        sequence(N.NFKC(), N.Lowercase(), N.Replace(tokenizers.Regex(" {2,}"), " ")),
        metaspace(),
    ),
    "first word": (
        unigram,
        sequence(N.Nmt(), N.NFC(), N.Strip()),
        metaspace(prepend_scheme="first"),
    ),
    "replaced": (
        unigram,
        sequence(N.Strip(left=False), N.Replace(tokenizers.Regex(" {2,}"), "▁")),
        metaspace(),
    ),
    "roberta": (lambda: bpe(BYTES), None, P.ByteLevel(add_prefix_space=False)),
    "modern": (lambda: bpe(BYTES), N.NFC(), P.ByteLevel(add_prefix_space=True)),
    "digits": (
        lambda: bpe(characters()),
        N.NFKD(),
        sequence(
            P.Digits(individual_digits=True), P.Punctuation(), P.WhitespaceSplit()
        ),
    ),
}
# All of these may read on after any character.
UNKNOWN = {
    "one word": (unigram, N.NFKC(), metaspace(split=False)),
    "no pre-tokenizer": (unigram, N.Replace(" ", "▁"), None),
    "a regex": (
        lambda: bpe(characters()),
        None,
        P.Split(tokenizers.Regex("a+"), "isolated"),
    ),
    "bytes": (lambda: bpe(BYTES), None, P.ByteLevel(use_regex=False)),
    "a delimiter": (word_piece, None, P.CharDelimiterSplit("-")),
    "a normalizer over spaces": (
        word_piece,
        N.Replace(tokenizers.Regex(r"a\s+b"), "ab"),
        P.Whitespace(),
    ),
    "a replaced space": (word_piece, N.Replace(" a", "a"), P.Whitespace()),
}


def tokenizer_of(parts, added=()):
    model, normalizer, pre_tokenizer = parts
    made = tokenizers.Tokenizer(model())
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    made.add_tokens(list(added))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(n, made.token_to_id(n)) for n in ("[CLS]", "[SEP]")],
    )
    return made


def added_tokens(number):
    """Added tokens with all of their options."""
    flags = [bool(number >> bit & 1) for bit in range(4)]
    names = ("lstrip", "rstrip", "single_word", "normalized")
    options = dict(zip(names, flags, strict=True))
    return [tokenizers.AddedToken(content, **options) for content in ADDED]


def cutter_of(tokenizer):
    return Cutter(tokenizer, json.loads(tokenizer.to_str()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_before_a_cut_are_those_of_the_whole_text(kind):
    rng = random.Random(kind)
    cuts = 0
    for number in range(16):
        tokenizer = tokenizer_of(KINDS[kind], added_tokens(number))
        cutter = cutter_of(tokenizer)
        texts = [random_text(rng, 60) for _ in range(60)]
        found = [(text, cutter.cut(text, rng.randint(0, 40))) for text in texts]
        found = [(text, part) for text, part in found if part != text]
        cuts += len(found)
        for text, part in found:
            assert text.startswith(part)
            whole, begun = (
                tokenizer.encode(t, add_special_tokens=False).ids for t in (text, part)
            )
            assert whole[: len(begun)] == begun, (text, part)
    assert cuts > 200  # of 960: many texts can be cut somewhere


def test_the_normalizer_of_sentencepiece_is_one():
    normalize = nmt_nfkc().normalize_str
    assert normalize("a\nｶe\u0301ﬁ\u00adb") == "a カéfib"
    assert normalize("b \u0301") == "b´"


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_tokenizer_that_may_read_on_is_not_cut(kind):
    cutter = cutter_of(tokenizer_of(UNKNOWN[kind]))
    assert cutter.cut("a b " * 1000, 10) == "a b " * 1000


@pytest.mark.parametrize("token", ["New York", "\n", "end "])
@pytest.mark.parametrize("normalized", [True, False])
def test_an_added_token_with_a_space_keeps_texts_whole(token, normalized):
    added = [tokenizers.AddedToken(token, normalized=normalized)]
    cutter = cutter_of(tokenizer_of(KINDS["cased bert"], added))
    assert cutter.cut("a b " * 1000, 10) == "a b " * 1000


@pytest.fixture(params=["english", "multilingual"])
def embedded_tokenizer(request, monkeypatch):
    """One of the embedded tokenizers, which tries a text's beginning much sooner."""
    monkeypatch.setattr(long_texts, "_LEAST", 8)
    monkeypatch.setattr(long_texts, "_CHARACTERS", 1)
    folder = f"{request.param.upper()}_TOKENIZER"
    return TextTokenizer(getattr(embedded, folder))


def test_ids_are_those_of_whole_texts(embedded_tokenizer):
    rng = random.Random(7)
    texts = [random_text(rng, rng.choice([5, 50, 500])) for _ in range(150)]
    texts += ["", "word " * 500, "word" * 500, "\u200b" * 300 + " words behind it"]
    whole = tokenizers.Tokenizer.from_file(
        str(embedded_tokenizer.folder / "tokenizer.json")
    )
    whole.no_padding()
    for length in (3, 7, 40):
        whole.enable_truncation(length)
        for special in (True, False):
            wanted = whole.encode_batch(texts, add_special_tokens=special)
            found = embedded_tokenizer.ids(texts, length, special=special)
            assert found == [one.ids for one in wanted]


def test_of_a_long_text_little_is_read(monkeypatch):
    tokenizer = TextTokenizer(embedded.ENGLISH_TOKENIZER)
    read = []

    class Watched:
        def __init__(self, library):
            self.library = library

        def encode_batch_fast(self, texts, **options):
            read.extend(map(len, texts))
            return self.library.encode_batch_fast(texts, **options)

    cutting = tokenizer._cutting
    monkeypatch.setattr(tokenizer, "_cutting", lambda n: Watched(cutting(n)))
    (ids,) = tokenizer.ids(["a library of words " * 200_000], 32)
    assert len(ids) == 32 and sum(read) < 2 * long_texts.first_size(32)
    # Where words are long, more is read, until there are enough tokens.
    read.clear()
    (ids,) = tokenizer.ids([("x" * 3000 + " ") * 1000], 32)
    assert len(ids) == 32 and len(read) > 1
    assert sum(read) < 32 * 3001 * long_texts.next_size(1) * 2


def test_pairs_are_those_of_whole_texts(embedded_tokenizer, monkeypatch):
    rng = random.Random(8)
    pairs = [(random_text(rng, 200), random_text(rng, 300)) for _ in range(40)]
    found = embedded_tokenizer.pairs(pairs, 9, 21)
    monkeypatch.setattr(tokenization, "first_size", lambda n: 10**9)
    assert found == embedded_tokenizer.pairs(pairs, 9, 21)


def word_without_spaces(rng, length):
    """Letters that combine with nothing between those that do, and added tokens."""
    dense = [piece for piece in PIECES if not any(map(str.isspace, piece))]
    easy = "abcdeabcde09.,'中国数学かカй你한글ß"
    parts = []
    while sum(map(len, parts)) < length:
        parts += rng.choices(dense, k=rng.randint(0, 2))
        parts += rng.choices(easy, k=rng.randint(0, 30))
    return "".join(parts)


def compared(tokenizer, text, part):
    """Ids of a text and of a part of it."""
    both = tokenizer.encode_batch([text, part], add_special_tokens=False)
    return [one.ids for one in both]


@pytest.mark.parametrize("kind", KINDS)
def test_between_two_letters_a_cut_changes_no_token(kind):
    rng = random.Random(kind)
    cuts = 0
    for number in range(0, 16, 3):
        tokenizer = tokenizer_of(KINDS[kind], added_tokens(number))
        cutter = cutter_of(tokenizer)
        for _ in range(20):
            text = word_without_spaces(rng, 120)
            places = cutter._between_letters(text, rng.randint(20, 90), split=True)
            for at in itertools.islice(places, 3):
                whole, begun = compared(tokenizer, text, text[:at])
                assert whole[: len(begun)] == begun, (text, at)
                cuts += 1
    assert cuts > 50 or "Punctuation" not in str(KINDS[kind][2])


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][0] is not word_piece])
def test_inside_a_word_what_is_settled_is_of_every_continuation(kind):
    rng = random.Random(kind)
    settled = places_tried = 0
    for number in range(0, 16, 3):
        tokenizer = tokenizer_of(KINDS[kind], added_tokens(number))
        cutter = cutter_of(tokenizer)
        assert cutter._longest
        for _ in range(20):
            text = word_without_spaces(rng, 120)
            places = cutter._between_letters(text, rng.randint(20, 90), split=False)
            for at in itertools.islice(places, 3):
                begun, count = cutter.settled(text[:at])
                whole = tokenizer.encode(text, add_special_tokens=False).ids
                assert whole[:count] == begun.ids[:count], (text, at)
                settled += count
                places_tried += 1
    assert places_tried > 40 and settled > 10 * places_tried


def test_a_merge_behind_a_place_may_reach_far_before_it():
    # Of "xababab…", every token depends on whether "b" or "bc" ends the word.
    vocabulary = ["<unk>", *"abcx", "ba", "bc", "ab", "xa"]
    merges = [("b", "c"), ("b", "a"), ("x", "a"), ("a", "b")]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        unk_token="<unk>",
    )
    tokenizer = tokenizer_of((lambda: model, None, P.WhitespaceSplit()))
    cutter = cutter_of(tokenizer)
    for end in range(3, 20):
        text = "xababababababababababab"[:end]
        begun, count = cutter.settled(text)
        for more in ("", "a", "b", "c", "bc", "ac"):
            whole = tokenizer.encode(text + more, add_special_tokens=False).ids
            assert whole[:count] == begun.ids[:count]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_tail_are_the_last_ones(kind):
    rng = random.Random(kind)
    cuts = 0
    for number in range(0, 16, 3):
        tokenizer = tokenizer_of(KINDS[kind], added_tokens(number))
        cutter = cutter_of(tokenizer)
        for _ in range(40):
            text = random_text(rng, 80)
            part, first = cutter.tail(text, rng.randint(1, 40))
            assert text.endswith(part)
            if part == text:
                continue
            one = tokenizer.encode(part, add_special_tokens=False)
            kept = sum(start >= first for start, _ in one.offsets)
            whole = tokenizer.encode(text, add_special_tokens=False).ids
            assert kept == 0 or whole[-kept:] == one.ids[-kept:], (text, part)
            cuts += 1
    assert cuts > 40


def saved(folder, parts, added=(), **config):
    """A folder with a tokenizer."""
    tokenizer = tokenizer_of(parts, added)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TextTokenizer(folder), tokenizer


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_texts_of_any_length_are_the_librarys(kind, side, tmp_path, monkeypatch):
    monkeypatch.setattr(long_texts, "_LEAST", 8)
    monkeypatch.setattr(long_texts, "_CHARACTERS", 2)
    rng = random.Random(kind)
    own, library = saved(tmp_path / "t", KINDS[kind], truncation_side=side)
    makers = (random_text, word_without_spaces)
    texts = [
        maker(rng, rng.choice([9, 90, 500])) for maker in makers for _ in range(15)
    ]
    texts += ["", " ", "ab" * 700, "ab " * 800, "中か" * 700, "ab," * 800, "7" * 900]
    texts += ["word " + "x" * 900 + " word", "\u200b" * 900 + "abc"]
    for length in (3, 25):
        library.enable_truncation(length, direction=side)
        wanted = [one.ids for one in library.encode_batch(texts)]
        assert own.ids(texts, length) == wanted


@pytest.mark.parametrize("letters", ["a", "中か", "aé", "ab,c", "q7w8"])
@pytest.mark.parametrize("kind", ["bert", "xlm-r", "sentencepiece", "modern"])
def test_of_a_long_text_without_a_space_little_is_read(
    kind, letters, tmp_path, monkeypatch
):
    """Characters that the library sees, for a text of a million."""
    own, _ = saved(tmp_path / "t", KINDS[kind])
    read, part = [], Cutter.part

    def watched(cutter, text, size):
        found = part(cutter, text, size)
        read.append(len(found.text))
        return found

    monkeypatch.setattr(Cutter, "part", watched)
    own.ids([letters * (1_000_000 // len(letters))], 32)
    assert sum(read) < 20_000
