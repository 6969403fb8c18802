"""Rows and texts in files of all kinds."""

import bz2
import csv
import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.config.fields import get_default
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.corpus import Corpus
from lsrjax.data.reading.files import read_dataset
from lsrjax.data.sources import open_source
from lsrjax.errors import InputError

ROWS = [
    {
        "query": f"query {i}, 'Grüße'",
        "pos": [f'a "quoted" text {i}', "two"] if i % 2 else "数学\u2028に",
        "neg": f"line one\nline two {i}",
    }
    for i in range(7)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def packed_by(codec):
    def pack(data):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as out:
            out.write(data)
        return sink.getvalue().to_pybytes()

    return pack


def as_csv(comma=",", index=False):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=comma)
    writer.writerow([""] * index + ["query", "pos", "neg"])
    for i, row in enumerate(ROWS):
        writer.writerow([i] * index + [str(value) for value in row.values()])
    return out.getvalue().encode()


KINDS = {
    "x.jsonl": LINES,
    "x.JSONL": LINES,
    "x.ndjson": LINES,
    "x.json": LINES,
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent="\t").encode(),
    "x.jsonl.gz": gzip.compress(LINES),
    "members.jsonl.gz": gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]),
    "unnamed.jsonl": gzip.compress(LINES),
    "x.jsonl.zst": packed_by("zstd")(LINES),
    "frames.jsonl.zst": packed_by("zstd")(LINES[:99]) + packed_by("zstd")(LINES[99:]),
    "x.JSONL.BZ2": bz2.compress(LINES),
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "x.csv": as_csv(),
    "index.csv": b"\xef\xbb\xbf" + as_csv(index=True),
    "x.csv.gz": gzip.compress(as_csv()),
    "semicolons.csv": as_csv(";"),
}


def opened(path, **fields):
    config = get_default().data
    config.source.files = str(path)
    for field, value in fields.items():
        config[field] = value
    return open_source(config, "group")


def as_rows(source):
    return [
        {
            "query": group.query["*"],
            "pos": [text["*"] for text in group.positives],
            "neg": [text["*"] for text in group.negatives],
        }
        for group in source
    ]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_from_every_kind(tmp_path, name):
    (tmp_path / name).write_bytes(KINDS[name])
    listed = [
        row
        | {field: [row[field]] for field in row if field != "query" if row[field] != []}
        for row in ROWS
    ]
    for row in listed:
        row["pos"] = row["pos"][0] if isinstance(row["pos"][0], list) else row["pos"]
    assert as_rows(opened(tmp_path / name)) == listed


def test_cells_of_tsv_that_a_writer_of_csv_quoted(tmp_path):
    rows = [
        {"query": 'he said "x"', "pos": ["a", 'b "c"'], "neg": '"'},
        {"query": '"all of it"', "pos": ["d"], "neg": "e"},
    ]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([row["query"], json.dumps(row["pos"]), row["neg"]])
    # A text in quotes, as nobody but its author wrote it.
    out.write('"a ""b"" or "c""\t"d"\t""\n')
    (tmp_path / "x.tsv").write_text(out.getvalue())
    assert as_rows(opened(tmp_path / "x.tsv")) == [
        *({**row, "neg": [row["neg"]]} for row in rows),
        {"query": '"a ""b"" or "c""', "pos": ['"d"'], "neg": ['""']},
    ]


def test_rows_of_tsv(tmp_path):
    text = 'query\tpos\tneg\tpos_scores\tneg_scores\r\nq "a\tp\tn\t9.5\t1\r\n'
    text += "\r\nr\tp\rp\t\t2\t"
    (tmp_path / "x.tsv").write_bytes(text.encode())
    first, second = opened(tmp_path / "x.tsv")
    assert first.query == {"*": 'q "a'} and first.scores.tolist() == [9.5, 1.0]
    assert second.positives == [{"*": "p\rp"}]
    assert second.negatives == [] and second.scores.tolist() == [2.0]


@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_row_of_too_many_cells_is_a_bad_record(tmp_path, mark):
    """Named by its line in the file, whatever lines its neighbours take."""
    lines = [["query", "pos", "neg"], ["q", "p", "n"], ["q", "p", "n", "m"], ["r"] * 3]
    text = "\n\n".join(mark.join(line) for line in lines)
    path = tmp_path / ("x.csv" if mark == "," else "x.tsv")
    path.write_text(text)
    source = opened(path)
    assert len(source) == 3 and source[2].query == {"*": "r"}
    with pytest.raises(BadRecord, match=r"row 1 .*line 5 of the file has 4 cells"):
        source[1]
    assert "line" not in source.place(1) and source.place(1)["row"] == 1


def test_elements_of_an_array_are_no_lines(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"id": 1, "text": "a"}, {"id": 2}]))
    with pytest.raises(InputError, match=r"x\.json, row 2 has no text"):
        Corpus(str(tmp_path / "x.json"), "config.data.corpus")


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['a' 'b']", ["a", "b"]),
        ("['it, \\'a\\' \"b\"'\n \"c's\"]", ["it, 'a' \"b\"", "c's"]),
        ("['a', 'b' 'c']", ["a", "b", "c"]),
        ("['a']", ["a"]),
        ("['a' b]", ["['a' b]"]),
    ],
)
def test_texts_that_numpy_printed_stay_apart(tmp_path, cell, texts):
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["query", "pos"], ["q", cell]])
    (group,) = opened(path)
    assert [text["*"] for text in group.positives] == texts


def test_a_column_that_is_there_twice_is_named(tmp_path):
    table = pa.table([["q"], ["r"], [["p"]]], names=["query", "query", "pos"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet has several columns query"):
        opened(tmp_path / "x.parquet")


def test_ids_of_csv_stay_texts(tmp_path):
    (tmp_path / "x.csv").write_text(
        'query,positive_document_ids,negative_document_ids\nq,007,"[7, 8]"\n'
    )
    (tmp_path / "docs.csv").write_text("id,text\n007,seven\n7,VII\n8,VIII\n")
    (group,) = opened(tmp_path / "x.csv", corpus=str(tmp_path / "docs.csv"))
    assert [text["*"] for text in group.positives] == ["seven"]
    assert [text["*"] for text in group.negatives] == ["VII", "VIII"]


def test_shards_and_lists_of_files(tmp_path):
    for name, rows in (("a", ROWS[:3]), ("b", ROWS[3:])):
        table = pa.Table.from_pylist([{"query": r["query"], "pos": "p"} for r in rows])
        (tmp_path / "shards").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "shards" / f"{name}.parquet")
    wanted = [row["query"] for row in ROWS]
    folder = tmp_path / "shards"
    assert [group.query["*"] for group in opened(folder)] == wanted
    data = get_default().data
    # A list, of which one name has a comma.
    (folder / "b.parquet").rename(folder / "b, c.parquet")
    data.source.files = [f"{folder}/a.parquet", f"{folder}/b, c.parquet"]
    assert [group.query["*"] for group in open_source(data, "group")] == wanted


def test_a_corpus_of_packed_shards(tmp_path):
    (tmp_path / "docs").mkdir()
    for name, pack in (("a.tsv.gz", gzip.compress), ("b.tsv.zst", packed_by("zstd"))):
        (tmp_path / "docs" / name).write_bytes(pack(f"{name[0]}\ttext\n".encode()))
    corpus = Corpus({"en": f"{tmp_path}/docs"}, "config.data.corpus")
    assert corpus.get("a", "row") == corpus.get("b", "row") == {"en": "text"}


PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()
REFUSED = {
    "utf-16": (LINES.decode().encode("utf-16"), "is in UTF-16; .*iconv -f UTF-16"),
    "utf-16-le": (LINES.decode().encode("utf-16-le"), "is in UTF-16"),
    "utf-32": (LINES.decode().encode("utf-32"), "is in UTF-32"),
    "cr": (LINES.replace(b"\n", b"\r"), "end in CR alone.*tr"),
    "pretty": (PRETTY, "is pretty-printed.*jq -c"),
    "arrays": (json.dumps([[1], [2]], indent=1).encode(), "is pretty-printed"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "parquet": (b"PAR1\0\0\0\0PAR1", "is a Parquet file"),
    "zip": (b"PK\3\4\0\0", "is a zip archive"),
    "cut gzip": (gzip.compress(LINES)[:-20], "is not a whole gzip file"),
    "cut zstd": (packed_by("zstd")(LINES)[:-9], "is not a whole zstd file"),
    "cut array": (json.dumps(ROWS).encode()[:-9], "JSON array that cannot be read"),
}


@pytest.mark.parametrize(
    ("name", "what"),
    [("x.jsonl", what) for what in REFUSED]
    # The others are lines of TSV like any.
    + [
        ("x.tsv", what)
        for what in sorted(REFUSED.keys() - {"pretty", "arrays", "cut array"})
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path, name, what):
    content, message = REFUSED[what]
    path = tmp_path / name
    path.write_bytes(content)
    for read in (opened, lambda path: Corpus(str(path), "config.data.corpus")):
        with pytest.raises(InputError, match=message) as error:
            read(path)
        assert str(path) in str(error.value) and "truncated" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.csv",
            "query,pos\na,b,c\n",
            "line 2 of the file has 3 cells, .* 2 columns.*Quote",
        ),
        ("x.csv", 'query,pos\n"a,b\n', "x.csv is not CSV after line 1.*quote not clos"),
        (
            "x.csv",
            b"query,pos\na,b\nc,\xdf\n",
            "x.csv, line 3 is not UTF-8 .*iconv",
        ),
        ("x.tsv", "query\tpos\na\tb\tc\n", "line 2 of the file has 3 cells.*Take tabs"),
        ("x.tsv", "query\tpos\tpos\na\tb\tc\n", "two columns have one name"),
        ("x.csv", "query\tpos\na\tb\n", "x.csv: its first line has tabs.*tsv"),
        ("x.csv", "what,pos\na,b\n", "x.csv has no column query; its columns are what"),
    ],
)
def test_tables_that_do_not_fit_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        opened(tmp_path / name)


def test_a_clone_of_a_data_set_is_read_with_its_splits(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 3), ("test", 2)):
        path = tmp_path / f"clone/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"query": ["q"] * count, "pos": ["p"] * count}), path)
    (tmp_path / "clone/README.md").write_text("---\nlicense: mit\n---\n")
    table, _ = read_dataset(str(tmp_path / "clone"), "", "test")
    assert table.num_rows == 2
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=f"{path} is a pointer of Git LFS"):
        read_dataset(str(tmp_path / "clone"), "", "test")


def test_temporary_files_go(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(LINES))
    source = opened(tmp_path / "x.jsonl.gz")
    assert not os.listdir(tmp_path / "tmp") and len(source) == len(ROWS)
