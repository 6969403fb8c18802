"""Pairs of plain texts: where texts are cut, and what is drawn."""

import numpy as np
import pytest

from lsrjax.data import text_pairs
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.text_pairs import PAIRS, Maker, PlainText, sentences, words
from lsrjax.errors import InputError
from lsrjax.options import resolve

ENGLISH = (
    "A kernel talks to devices. Its drivers are modules! Are they loaded at boot?"
    " Some are, and others when a device is found."
)
JAPANESE = "カーネルは装置と話す。ドライバはモジュールである。起動時に読まれる。"
TEXTS = {
    "english": ENGLISH,
    "japanese": JAPANESE,
    "thai": "เคอร์เนลคุยกับอุปกรณ์ และไดรเวอร์เป็นโมดูล",
    "korean": "커널은 장치와 통신한다. 드라이버는 모듈이다.",
    "one word": "kernel",
    "spaces": "  a \n\n b\tc  ",
}


def drawn(text, name, count=50, title="Title", stretch=0, **options):
    make = Maker(resolve(PAIRS, {"name": name, **options}, "pairs"), stretch)
    plain = PlainText(title, text, "the text")
    return [make(plain, np.random.default_rng(seed)) for seed in range(count)]


def spelled(text):
    return [text[first:last] for first, last in words(text)]


def test_words_are_characters_where_no_spaces_are_written():
    assert spelled("ab, c-d  e") == ["ab,", "c-d", "e"]
    assert spelled("日本語のLinux kernel。") == [*"日本語の", "Linux", "kernel。"]
    assert spelled("커널은 장치와") == ["커널은", "장치와"]
    assert len(words(TEXTS["thai"])) > 30


def test_sentences_end_at_the_marks_of_many_scripts():
    def cut(text):
        return [text[first:last] for first, last in sentences(text)]

    assert cut(ENGLISH)[1:3] == ["Its drivers are modules!", "Are they loaded at boot?"]
    assert [len(one) for one in cut(JAPANESE)] == [11, 14, 9]
    assert cut("version 1.2 is here\nanother line") == [
        "version 1.2 is here",
        "another line",
    ]
    assert cut("यह है। वह है।") == ["यह है।", "वह है।"]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("text", TEXTS)
def test_both_are_of_the_text_whatever_its_script(name, text):
    known = set(spelled(TEXTS[text]) + ["Title"])
    for pair in drawn(TEXTS[text], name, 30):
        for one in pair:
            assert one.strip() == one or one == TEXTS[text]
            # Where a sentence is taken out, the words beside it stay whole.
            assert spelled(one) and set(spelled(one)) <= known
    assert drawn(TEXTS[text], name, 5) == drawn(TEXTS[text], name, 5)


@pytest.mark.parametrize("text", ["english", "japanese"])
def test_crops_are_spans_of_the_lengths_asked_for(text):
    text = TEXTS[text]
    total = len(words(text))
    pairs = drawn(text, "crops", 200, shortest=0.2, longest=0.6, words=1)
    lengths = {len(words(one)) for pair in pairs for one in pair}
    assert all(one in text for pair in pairs for one in pair)
    assert min(lengths) == round(0.2 * total) and max(lengths) == round(0.6 * total)
    # The two are drawn independently of each other, from anywhere.
    starts = np.array([[text.index(one) for one in pair] for pair in pairs])
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.2
    assert starts.min() == 0 and len({*starts[:, 0]}) > 10


def test_a_crop_has_some_words_where_there_are_any():
    pairs = drawn("one two three four five six", "crops", shortest=0.1, longest=0.1)
    assert {len(words(one)) for pair in pairs for one in pair} == {4}
    assert drawn("one two", "crops", 1) == [("one two", "one two")]


def test_a_cloze_is_a_sentence_and_the_rest():
    pairs = drawn(ENGLISH, "cloze", keep=0.0)
    for sentence, rest in pairs:
        assert sentence in ENGLISH and sentence not in rest
        assert sorted(spelled(sentence) + spelled(rest)) == sorted(spelled(ENGLISH))
    assert len({sentence for sentence, _ in pairs}) == 4
    assert {rest for _, rest in drawn(ENGLISH, "cloze", keep=1.0)} == {ENGLISH}
    kept = np.mean([rest == ENGLISH for _, rest in drawn(ENGLISH, "cloze", 400)])
    assert 0.05 < kept < 0.16  # a tenth
    single = "one two three four five six"
    for part, rest in drawn(single, "cloze", keep=0.0):
        assert part in single and len(words(part)) == 2 and len(words(rest)) == 4


def test_a_title_needs_one():
    assert drawn(ENGLISH, "title", 1, title="Kernels") == [("Kernels", ENGLISH)]
    with pytest.raises(BadRecord, match="the text has no title, which"):
        drawn(ENGLISH, "title", 1, title=" ")
    with pytest.raises(BadRecord, match="the text has no words"):
        drawn(" \n", "title", 1)


def test_a_span_is_of_any_grain():
    text = " ".join(f"w{i}" for i in range(300))
    pairs = drawn(text, "span", 400)
    assert all(one in text and whole == text for one, whole in pairs)
    lengths = np.array([len(words(one)) for one, _ in pairs])
    assert 60 < (lengths == 1).sum() < 140
    assert 60 < (lengths > 64).sum() < 140 and lengths.max() <= 128


def test_recurring_spans_are_in_both_parts_which_are_apart():
    filler = [f"w{i}" for i in range(120)]
    text = " ".join(["big red box,", *filler[:60], "Big red box", *filler[60:]])
    for query, passage in drawn(text, "recurring", 40, passage=30, keep=1.0):
        both = [one.lower().replace(",", "") for one in (query, passage)]
        assert all("big red box" in one for one in both)
        assert not {*spelled(query)} & {*spelled(passage)} & {*filler}
        assert 5 <= len(words(query)) <= 30 and len(words(passage)) <= 30
    for query, passage in drawn(text, "recurring", 40, keep=0.0):
        assert "red box" not in query.lower() and "red box" in passage.lower()
    dropped = [q for q, _ in drawn(text, "recurring", 400) if "ed box" not in q]
    assert 0.4 < len(dropped) / 400 < 0.6


def test_a_recurring_span_is_as_long_as_it_can_be():
    found = text_pairs._recurring(
        text := "a b c d x a b c d y c d", words(text), longest=10
    )
    assert found == [([0, 5], 4)]
    found = text_pairs._recurring(text, words(text), longest=2)
    assert ([2, 7, 10], 2) in found


def test_of_a_long_text_a_stretch_is_drawn_first():
    text = " ".join(f"w{i}" for i in range(300))
    pairs = drawn(text, "title", 60, stretch=20)
    assert {len(words(one)) for _, one in pairs} == {20}
    assert len({one for _, one in pairs}) > 50


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crops", {"longest": 1.5}, "longest is 1.5; give a share above 0"),
        ("crops", {"shortest": 0.6}, "shortest is 0.6, more than longest, 0.5"),
        ("cloze", {"keep": -0.1}, "keep is -0.1; it must be >= 0"),
        ("span", {"lengths": ((4, 1),)}, "give pairs of numbers of words"),
        ("recurring", {"window": (1,)}, "give pairs of numbers of words"),
        ("title", {"keep": 0.1}, "keep is no option of 'title'"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        drawn(ENGLISH, name, 1, **options)
