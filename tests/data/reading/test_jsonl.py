import concurrent.futures
import json
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.data.reading import jsonl
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.jsonl import JsonRows, Lines
from lsrjax.data.reading.parquet import ParquetRows
from lsrjax.errors import InputError

ENDS = ("\n", "\r\n", "\n\n", "\n \t\r\n")


def written(path, rows, seed):
    """Rows as lines with ends and blank lines of all sorts, and their line numbers."""
    rng = random.Random(seed)
    text = rng.choice(["", "\ufeff", "\n", "\ufeff\r\n"])
    numbers = []
    for row in rows:
        numbers.append(text.count("\n") + 1)
        text += json.dumps(row, ensure_ascii=rng.random() < 0.5) + rng.choice(ENDS)
    if rng.random() < 0.5:
        text = text.rstrip()  # the last line has no end
    path.write_bytes(text.encode())
    return numbers


def rows_of(seed, count):
    rng = random.Random(seed)
    texts = ["", "a", "Grüße", "数学 に基く", "tab\tand\nnew line", "\u2028 \x85"]
    return [
        {
            field: value
            for field, value in (
                ("query", rng.choice(texts)),
                ("pos", rng.choices(texts, k=rng.randrange(4))),
                ("scores", rng.choices([1, 2.5, -3], k=2)),
                ("title", None),
            )
            if rng.random() < 0.8
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_those_of_a_parser_of_the_whole_file(tmp_path, seed):
    rows = rows_of(seed, count=23)
    path = tmp_path / "x.jsonl"
    numbers = written(path, rows, seed)
    found = JsonRows(path, lists=False)
    fields = dict.fromkeys(name for row in rows for name in row)
    assert len(found) == len(rows) and found.column_names == list(fields)
    assert found.first_row() == rows[0]
    found.select({f"own_{name}": name for name in fields})
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    for i in order:
        expected = {f"own_{name}": rows[i].get(name) for name in fields}
        assert found.row(i) == expected
    assert list(found.values("own_query")) == [row.get("query") for row in rows]
    starts = {offset: number for number, offset, _ in Lines(path)}
    assert list(starts.values()) == numbers
    for offset in starts:
        assert json.loads(Lines(path).at(offset)) in rows


def test_a_row_costs_eight_bytes(tmp_path):
    path = tmp_path / "x.jsonl"
    written(path, [{"query": "long " * 1000}] * 50, seed=0)
    rows = JsonRows(path, lists=False)
    assert rows._offsets.nbytes == 8 * 50 and rows._offsets.dtype == np.int64
    assert not [v for v in vars(rows._lines).values() if isinstance(v, bytes)]
    held = [v for v in vars(rows).values() if isinstance(v, list)]
    assert held == [["query"]]


def test_threads_read_rows_at_once(tmp_path):
    path = tmp_path / "x.jsonl"
    written(path, [{"query": f"query {i}"} for i in range(40)], seed=1)
    rows = JsonRows(path, lists=False)
    rows.select({"query": "query"})
    order = np.random.default_rng(0).integers(0, 40, 2000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: rows.row(i)["query"], order))
    assert found == [f"query {i}" for i in order]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("broken", ["[1, 2]", "7", '{"a": 1} {', '{"a": "\xff"}'])
def test_a_broken_line_is_a_row_that_cannot_be_read(tmp_path, seed, broken):
    """Its line is that of the file, whatever blank lines there are."""
    path = tmp_path / "x.jsonl"
    written(path, rows_of(seed, 5), seed)
    text = path.read_bytes().rstrip() + b"\r\n\n"
    path.write_bytes(text + broken.encode("latin-1") + b'\n{"query": "last"}')
    rows = JsonRows(path, lists=False)
    rows.select({"query": "query"})
    assert rows.row(6) == {"query": "last"}
    with pytest.raises(BadRecord, match=rf"x\.jsonl, row 5 .*, byte {len(text)} is "):
        rows.row(5)
    place = rows.place(5)
    assert place["line"] == text.count(b"\n") + 1 and place["byte"] == len(text)
    assert place["excerpt"].startswith(broken[:4])
    assert isinstance(list(rows.values("query"))[5], BadRecord)


def test_the_line_of_a_row_among_many_blank_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_MARKED", 4)
    monkeypatch.setattr(jsonl, "_CHUNK", 7)
    path = tmp_path / "x.jsonl"
    numbers = written(path, rows_of(3, 30), seed=3)
    rows = JsonRows(path, lists=False)
    assert [rows.place(i)["line"] for i in range(30)] == numbers


@pytest.mark.parametrize("broken", ['{"query": "a', '{"a": 1} {', '{"a": "\xff'])
def test_a_last_line_without_end_tells_a_truncated_file(tmp_path, broken):
    path = tmp_path / "x.jsonl"
    text = b'{"query": "one"}\n{"query": "two"}\n'
    path.write_bytes(text + broken.encode("latin-1"))
    with pytest.raises(InputError, match=rf"{path}, line 3 is .* is truncated") as e:
        JsonRows(path, lists=False)
    assert not isinstance(e.value, BadRecord)


@pytest.mark.parametrize("written", [b"", b"cut", b'{"query": "ONE"}\n', b"x" * 9999])
def test_a_file_that_is_written_to_while_it_is_read_is_named(tmp_path, written):
    """Shorter, longer or of the same size: no bus error, and no other row."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"query": "one"}\n')
    os.utime(path, ns=(1, 1))
    rows = JsonRows(path, lists=False)
    rows.select({"query": "query"})
    assert rows.row(0) == {"query": "one"}
    path.write_bytes(written)
    with pytest.raises(InputError, match=r"x\.jsonl was written to .*17 bytes") as e:
        rows.row(0)
    assert not isinstance(e.value, BadRecord)


def test_a_file_that_another_takes_the_place_of_is_read_to_the_end(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"query": "one"}\n')
    rows = JsonRows(path, lists=False)
    rows.select({"query": "query"})
    (tmp_path / "new").write_text('{"query": "two"}\n')
    (tmp_path / "new").replace(path)
    assert rows.row(0) == {"query": "one"}


@pytest.mark.parametrize("size", [8190, 8191, 8192, 8193, 40_000])
def test_long_lines(tmp_path, size):
    path = tmp_path / "x.jsonl"
    rows = [{"query": "a" * (size - 13) + str(i)} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = JsonRows(path, lists=False)
    found.select({"query": "query"})
    assert [found.row(i) for i in range(3)] == rows


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_files_without_rows(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content, encoding="utf-8")
    assert len(JsonRows(path, lists=False)) == 0


def test_parquet_rows_take_no_memory(tmp_path):
    """Dictionaries that differ between row groups are unpacked, too."""
    words = [f"word {i}" for i in range(3000)]
    columns = {
        "query": pa.array(words).dictionary_encode(),
        "pos": [[word, word] for word in words],
        "unused": words,
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=700)
    before = pa.total_allocated_bytes()
    rows = ParquetRows(tmp_path / "x.parquet")
    assert rows.column_names == ["query", "pos", "unused"] and len(rows) == 3000
    assert rows.first_row() == {"query": "word 0", "pos": ["word 0"] * 2} | {
        "unused": "word 0"
    }
    rows.select({"query": "query", "documents": "pos"})
    assert list(rows.values("query")) == words
    for i in random.Random(0).sample(range(3000), 50):
        assert rows.row(i) == {"query": words[i], "documents": [words[i]] * 2}
    assert pa.total_allocated_bytes() == before
