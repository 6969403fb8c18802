"""One way of reading texts: what training refuses, encoding refuses, too."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.data.examples import ANY
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.corpus import Corpus
from lsrjax.data.reading.ids import as_id
from lsrjax.data.reading.texts import read_texts
from lsrjax.errors import InputError


def texts(tmp_path, content, name="x.tsv"):
    (tmp_path / name).write_text(content)
    return dict(read_texts(tmp_path / name))


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("id\ttext", (0, 1)),
        ("ID\tText", (0, 1)),
        ("docid\tpassage", (0, 1)),
        ("pid\tcontents\ttitle", (0, 1, 2)),
        ("doc_id\ttitle\ttext", (0, 2, 1)),
        ("text\tid", (1, 0)),
        ("qid\tquery", (0, 1)),
        ("_id\turl\ttitle\ttext", (0, 3, 2)),
    ],
)
def test_a_header_names_the_cells_and_is_no_document(tmp_path, header, order):
    lines = [header]
    for i in range(2):
        cells = [f"url {i}"] * (1 + header.count("\t"))
        for place, value in zip(order, (f"d{i}", f"text {i}", "A title"), strict=False):
            cells[place] = value
        lines.append("\t".join(cells))
    title = "A title " if len(order) == 3 else ""
    wanted = {f"d{i}": f"{title}text {i}" for i in range(2)}
    content = "\n".join(lines) + "\n"
    assert texts(tmp_path, content) == wanted
    corpus = Corpus(str(tmp_path / "x.tsv"), "config.data.corpus")
    assert len(corpus) == 2 and corpus.get("d1", "row") == {ANY: wanted["d1"]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id\twording", "is a header, but names no text"),
        ("identifier\ttext", "is a header, but names no id"),
        ('"id"\t"text"', "is a header, but its cells are quoted"),
        ('"uid"\t"body"', "is a header, but its cells are quoted"),
    ],
)
def test_a_header_that_cannot_be_followed_is_named(tmp_path, header, message):
    with pytest.raises(InputError, match=rf"x\.tsv: its first line, .*{message}"):
        texts(tmp_path, f"{header}\n1\ta b\n")


def test_words_that_are_texts_are_no_header(tmp_path):
    content = "w1\ttext\nw2\ttitle\n"
    assert texts(tmp_path, content) == {"w1": "text", "w2": "title"}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_stray_tab_is_refused_wherever_it_is(tmp_path, place):
    """The end of the text is never taken for a title."""
    lines = [f"{i}\ttext {i}" for i in range(3)]
    lines[place] += "\tand its end"
    with pytest.raises(InputError, match=rf"line {place + 1} has 3 cells, but the oth"):
        texts(tmp_path, "\n".join(lines) + "\n")


def test_titles_may_be_missing_where_others_have_them(tmp_path):
    content = "1\ta\tA\n2\tb\tB\n3\tc\t\n4\td\n"
    assert texts(tmp_path, content) == {"1": "A a", "2": "B b", "3": "c", "4": "d"}
    with pytest.raises(InputError, match="line 5 has 4 cells"):
        texts(tmp_path, content + "5\te\tE\tmore\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "text": "half \ud83d"}, "the text is not text: 'utf-8' codec"),
        ({"id": "a", "title": "\udc00", "text": "b"}, "the text is not text"),
        ({"id": "a\ud83d", "text": "b"}, r"the id 'a\\ud83d' is not text"),
        (
            {"id": "a", "title": float("nan"), "text": "b"},
            "the title is nan, not a str",
        ),
        ({"id": "a", "title": ["b"], "text": "b"}, r"the title is \['b'\], not a str"),
        ({"id": "a", "text": None}, "the text is None"),
        ({"id": "a", "text": 7}, "the text is 7"),
        ({"id": None, "text": "b"}, "an id is None"),
        ({"id": "", "text": "b"}, "an id is ''"),
        ({"id": float("nan"), "text": "b"}, "an id is nan"),
        ({"id": ["a"], "text": "b"}, r"an id is \['a'\]"),
        ({"id": True, "text": "b"}, "an id is True"),
        ({"id": 2.0**53, "text": "b"}, "is a float, which is not exact"),
    ],
)
def test_what_has_no_vector_is_refused_by_its_line(tmp_path, row, message):
    content = json.dumps({"id": "first", "text": "a"}) + "\n" + json.dumps(row) + "\n"
    with pytest.raises(InputError, match=rf"x\.jsonl, line 2.*{message}"):
        texts(tmp_path, content, "x.jsonl")
    with pytest.raises(InputError, match=message):
        Corpus(str(tmp_path / "x.jsonl"), "config.data.corpus")
    lenient = Corpus(str(tmp_path / "x.jsonl"), "config.data.corpus", strict=False)
    assert len(lenient) == 1 and len(lenient.bad) == 1


def test_ids_of_whole_floats_are_those_numbers():
    assert [as_id(value, "") for value in (7, 7.0, "7", -0.0, 1.5, "7.0", 10**30)] == [
        *("7", "7", "7", "0", "1.5", "7.0"),
        str(10**30),
    ]


@pytest.mark.parametrize("written", [["0", "1"], [0, 1], [0.0, 1.0], ["0.0", "1.0"]])
@pytest.mark.parametrize("asked", ["{}", "{}.0"])
def test_ids_meet_however_they_are_written(tmp_path, written, asked):
    for path in (tmp_path / "x.parquet", tmp_path / "x.jsonl"):
        rows = [{"id": key, "text": f"text {i}"} for i, key in enumerate(written)]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        corpus = Corpus(str(path), "config.data.corpus")
        for i in range(2):
            assert corpus.get(asked.format(i), "row") == {ANY: f"text {i}"}


def test_versions_are_no_numbers(tmp_path):
    (tmp_path / "x.tsv").write_text("1.1\tone\n1.10\tten\n1.0\tzero\n1\tall\n")
    corpus = Corpus(str(tmp_path / "x.tsv"), "config.data.corpus")
    found = [corpus.get(key, "row")[ANY] for key in ("1.1", "1.10", "1.0", "1")]
    assert found == ["one", "ten", "zero", "all"]
    with pytest.raises(BadRecord):
        corpus.get("1.100", "row")


def test_a_missing_id_among_floats_is_a_bad_row(tmp_path):
    """A column of whole numbers becomes one of floats where one is missing."""
    for missing in (None, float("nan")):
        ids = pa.array([0.0, missing, 2.0], pa.float64())
        pq.write_table(
            pa.table({"id": ids, "text": list("abc")}), tmp_path / "x.parquet"
        )
        corpus = Corpus(str(tmp_path / "x.parquet"), "config.data.corpus", strict=False)
        assert len(corpus) == 2 and corpus.get("2", "row") == {ANY: "c"}
        assert corpus.bad[0].place["row"] == 1
