"""Relevance judgements in the shapes that they are found in."""

import pytest

from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.judgements import read_qrels
from lsrjax.errors import InputError

BEIR = "q1\ta\t2\nq1\tb\t0\nq2\tc\t1\n"
TREC = "q1 0 a 2\nq1 Q0 b 0\nq2 0 c 1\n"
JUDGED = {"q1": {"a": 2, "b": 0}, "q2": {"c": 1}}


@pytest.mark.parametrize(
    "text",
    [
        BEIR,
        "query-id\tcorpus-id\tscore\n" + BEIR,
        "\ufeffquery-id\tcorpus-id\tscore\r\n" + BEIR.replace("\n", "\r\n"),
        "query-id corpus-id score\n" + BEIR,
        TREC,
        TREC.replace(" ", "\t"),
        TREC.replace(" ", "   ").replace("q1", " q1"),
        "qid iter docid rel\n" + TREC,
        BEIR.replace("\t1", "\t1.0") + "\n\nq1\ta\t2\n",  # one of them twice
    ],
)
def test_shapes(tmp_path, text):
    path = tmp_path / "train.tsv"
    path.write_text(text, encoding="utf-8")
    assert read_qrels(path) == JUDGED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no judgements"),
        ("query-id\tcorpus-id\tscore\n", "has no judgements"),
        ("q1\ta\t0\nq2\tb\t-1\n", "none of its judgements is above 0"),
        (BEIR + "q3 a 1\n", r"line 4 is \['q3 a 1'\]; query-id, corpus-id and a num"),
        (BEIR + "q3\ta\n", "line 4 is"),
        (BEIR + "q3\ta\thigh\n", "line 4 is"),
        (BEIR + "q3\ta\tnan\n", "line 4 is"),
        (BEIR + "q3\t\t1\n", "line 4: an id is ''"),
        (BEIR + "q1\ta\t1\n", "line 4: .*'a' of the query 'q1' is judged 1, but 2"),
        ("what\never\n", "line 1 is"),
        ("corpus-id\tquery-id\tscore\n" + BEIR, "line 1 names the columns corpus-id"),
        ("query-id\tscore\tdocid\n" + BEIR, "Write the query first and, last, the doc"),
        ("q3\ta\thigh\n" + BEIR, r"line 1 is \['q3', 'a', 'high'\]"),
        ("7 0 8 rel\n" + TREC, "line 1 is"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "train.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"train\.tsv,? ?.*{message}"):
        read_qrels(path)


def test_broken_lines_are_told_apart_from_the_rest(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(BEIR.encode() + b"q3\t\xff\t1\nq4\tx\n")
    bad: list[BadRecord] = []
    assert read_qrels(path, bad) == JUDGED
    assert [error.place["line"] for error in bad] == [4, 5]
