"""Tables of tokens start at what the training data says of them."""

import numpy as np
from programs import tiny

from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import InMemory, Pair
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.initial import fit_lookups, term_statistics
from lsrjax.initial.start import Start
from lsrjax.models.heads import MilcoHead
from lsrjax.models.retriever import RetrieverSpec

OWN, ENGLISH = (
    TextTokenizer(folder)
    for folder in (embedded.MULTILINGUAL_TOKENIZER, embedded.ENGLISH_TOKENIZER)
)
PAIRS = [("network", "netværk"), ("file", "fil"), ("file network", "netværk fil")]


def start():
    encoder = tiny.encoder(vocab_size=OWN.vocab_size, hidden_size=8, max_positions=8)
    spec = RetrieverSpec.of(
        "milco",
        encoder,
        pivot_vocab_size=ENGLISH.vocab_size,
        pivot_hidden_size=8,
        translations=2,
        stems=1009,
        ngrams=97,
    )
    pairs = [Pair(str(i), en, da, "da") for i, (en, da) in enumerate(PAIRS)]
    return Start(spec, MilcoHead, OWN.folder, ENGLISH.folder, InMemory(pairs), 0)


def test_tokens_have_their_likeliest_translations():
    given = start()
    table = fit_lookups.translations(given, 0.5)["dictionary"]
    assert table["terms"].shape == table["weights"].shape == (OWN.vocab_size, 2)
    p = given.translations.toarray()
    (words,) = ENGLISH.ids(["file network"], 8, special=False)
    for token in {i for row in OWN.ids(["netværk fil"], 8, special=False) for i in row}:
        for term, weight in zip(*(table[k][token] for k in table), strict=True):
            share = idf_share(term, words)
            expected = 0.5 * np.sqrt(p[token, int(term)] * share)
            np.testing.assert_allclose(weight, expected, rtol=1e-5)
    unseen = np.flatnonzero(p.sum(axis=1) == 0)
    assert len(unseen) and not table["weights"][unseen].any()


def test_words_have_the_likeliest_translations_of_their_beginnings():
    given = start()
    table = fit_lookups.translations(given, 0.5)["stems"]
    assert table["terms"].shape == table["weights"].shape == (1009, 2)
    (bucket,) = term_statistics.word_stems(
        OWN, table["characters"], 1009, ["Netværkets"]
    )[0]
    (word,) = ENGLISH.ids(["network"], 8, special=False)
    assert len(word) == 1
    best = table["weights"][bucket].argmax()
    assert table["terms"][bucket, best] == word[0]
    # Both of its pairs have it, one with another word: EM is sure after some steps.
    low, high = (0.5 * np.sqrt(p * idf_share(word[0], word)) for p in (0.9, 1))
    assert low < table["weights"][bucket, best] <= high
    # 3 words of the pairs in either language, one of them in both.
    used = {
        int(b)
        for row in term_statistics.word_stems(
            OWN, table["characters"], 1009, [text for pair in PAIRS for text in pair]
        )
        for b in row
    }
    assert set(np.flatnonzero(table["weights"].any(axis=1))) == used


def idf_share(term, words):
    """The idf of a word in two of three documents over that of one in none."""
    assert int(term) in words
    return np.log1p(1.5 / 2.5) / np.log1p(3.5 / 0.5)


def test_columns_of_ngrams_start_at_their_idf():
    table = fit_lookups.ngrams(start(), 0.1)
    (file,) = OWN.ids(["fil"], 8, special=False)
    text = "".join(chr(int(c)) for row in table["characters"][file] for c in row if c)
    assert text == " fil"
    assert not table["characters"][list(OWN.special_ids)].any()
    assert table["weights"].shape == (97,)
    # In none of three documents of either language.
    assert table["weights"].max() == np.float32(0.1 * np.sqrt(np.log1p(7)))
