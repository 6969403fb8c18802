"""Trains the two tokenizers of the embedded data set, the same ones every time.

The WordPiece and Unigram trainers of `tokenizers` iterate over hash maps, so their
vocabularies differ between runs. Its BPE trainer without a prefix for inner pieces is
deterministic, and both tokenizers are made from its merges.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ENGLISH_VOCAB = 8_192
MULTILINGUAL_VOCAB = 16_000
MAX_LENGTH = 64

# Candidate pieces stay within one script, one number or one symbol. The tokenizer
# itself splits at spaces only, but has no piece that crosses such a border.
PIECE_BORDERS = Regex(
    r"▁?[\p{Han}\p{Hiragana}\p{Katakana}ー]+|▁?\p{Hangul}+|▁?\p{Cyrillic}+"
    r"|▁?\p{Latin}+|▁?\p{N}{1,4}|▁?[^\p{L}\p{N}▁]"
)
MAX_PIECE_CHARS = 16


def train_english(texts: Iterable[str]) -> Tokenizer:
    """Trains a BERT WordPiece tokenizer, lower case, `[CLS] x [SEP]`.

    WordPiece training is BPE in which a character inside a word differs from the same
    character at its start. Here the inner ones are moved to a private Unicode plane,
    so that the deterministic BPE trainer applies.

    The texts may yield fewer than `ENGLISH_VOCAB` pieces.
    """
    plane = 0xF0000
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = _count_words(texts, normalizer, splitter)
    shifted = {
        word[0] + "".join(chr(plane + ord(c)) for c in word[1:]): count
        for word, count in words.items()
        if max(word) < "\uffff"
    }
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = list(special)
    for piece in _bpe_pieces(shifted, ENGLISH_VOCAB - len(special)):
        plain = "".join(chr(ord(c) % plane) for c in piece)
        vocab.append(plain if ord(piece[0]) < plane else "##" + plain)
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def train_multilingual(texts: dict[str, list[str]]) -> Tokenizer:
    """Trains an XLM-R-like Unigram tokenizer, NFKC and lower case, `<s> x </s>`.

    Candidates come from BPE; hard EM (Viterbi counts) weights them, and those that
    lower the likelihood least are dropped until the vocabulary has its size (Kudo
    2018, "Subword Regularization", section 3.2, with hard instead of soft counts).

    A language with few lines is repeated, so that all but English have about the same
    number. Special tokens: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` last. The
    texts may yield fewer than `MULTILINGUAL_VOCAB` pieces.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    metaspace = pre_tokenizers.Metaspace()
    splitter = pre_tokenizers.Sequence(
        [metaspace, pre_tokenizers.Split(PIECE_BORDERS, "isolated")]
    )
    most = max(len(lines) for lang, lines in texts.items() if lang != "en")
    words: Counter[str] = Counter()
    for lang in sorted(texts):
        repeats = max(1, round(most / max(1, len(texts[lang]))))
        for word, n in _count_words(texts[lang], normalizer, splitter).items():
            words[word] += n * repeats
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    size = MULTILINGUAL_VOCAB - len(special) - 1
    scores = _unigram_scores(words, size)
    pieces = sorted(scores, key=lambda piece: (-scores[piece], piece))
    vocab = [(token, 0.0) for token in special]
    vocab += [(piece, round(scores[piece], 4)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram([*vocab, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = metaspace
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def _count_words(texts: Iterable[str], normalizer, splitter) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in texts:
        pieces = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        words.update(word for word, _ in pieces)
    return words


def _repeat(words: dict[str, int]) -> Iterator[list[str]]:
    for word in sorted(words):
        yield [word] * words[word]


def _bpe_pieces(words: dict[str, int], size: int) -> list[str]:
    """Every character, then merges, most frequent first.

    Characters seen once are included: an unknown token matches any other one.
    """
    bpe = Tokenizer(models.BPE())
    bpe.train_from_iterator(
        _repeat(words),
        trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            initial_alphabet=[],
            max_token_length=MAX_PIECE_CHARS,
            show_progress=False,
        ),
    )
    vocab = bpe.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def _unigram_scores(words: dict[str, int], size: int) -> dict[str, float]:
    """Log probabilities of the `size` pieces that explain the words best."""
    pieces = _bpe_pieces(words, 3 * size)
    lines = sorted(words)
    counts = np.array([words[line] for line in lines])
    # With equal scores, the first segmentation is the one with the fewest pieces.
    scores = dict.fromkeys(pieces, -8.0)
    for target in (3 * size, 2 * size, 3 * size // 2, size, size):
        for _ in range(2):
            scores = _reestimate(scores, lines, counts)
        scores = _prune(scores, target)
    return _reestimate(scores, lines, counts)


def _reestimate(
    scores: dict[str, float], lines: list[str], counts: np.ndarray
) -> dict[str, float]:
    pieces = list(scores)
    vocab = [("<unk>", 0.0), *scores.items()]
    model = Tokenizer(models.Unigram(vocab, unk_id=0))
    used = np.zeros(len(vocab), np.int64)
    for encoding, count in zip(model.encode_batch_fast(lines), counts, strict=True):
        np.add.at(used, encoding.ids, count)
    # A piece that no best segmentation uses counts half: its logarithm stays finite.
    total = int(used[1:].sum())
    return {
        piece: math.log(max(0.5, int(n)) / total)
        for piece, n in zip(pieces, used[1:], strict=True)
    }


def _prune(scores: dict[str, float], size: int) -> dict[str, float]:
    """Keeps every character and the longer pieces that are hardest to replace."""
    if len(scores) <= size:
        return scores
    longer = [piece for piece in scores if len(piece) > 1]
    loss = {
        piece: math.exp(scores[piece]) * (scores[piece] - _best_without(piece, scores))
        for piece in longer
    }
    longer.sort(key=lambda piece: (-loss[piece], piece))
    kept = set(longer[: size - (len(scores) - len(longer))])
    return {p: score for p, score in scores.items() if len(p) == 1 or p in kept}


def _best_without(piece: str, scores: dict[str, float]) -> float:
    """Score of the best segmentation of a piece into two or more others."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(1 if end == len(piece) else 0, end):
            score = best[start] + scores.get(piece[start:end], -math.inf)
            best[end] = max(best[end], score)
    return best[-1]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, tokens: dict[str, str]) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`; tokens by `pad_token`, …."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tokens | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    for name, value in (
        ("tokenizer.json", json.loads(tokenizer.to_str())),
        ("tokenizer_config.json", config),
    ):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        (folder / name).write_text(text + "\n", encoding="utf-8")
