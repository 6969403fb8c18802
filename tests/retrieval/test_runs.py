import gzip

import ir_measures
import numpy as np
import pytest

from lsrjax.errors import InputError
from lsrjax.retrieval.runs import read_run, write_run

HITS = np.array([[2, 0, 1], [1, -1, -1]])
SCORES = np.array([[1.5, 1.5, 1.5], [0.25, 0, 0]], np.float32)


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_comes_back_in_its_order(tmp_path, name):
    write_run(tmp_path / name, ["q1", "q2"], ["a", "b", "c"], HITS, SCORES, "my run")
    found = read_run(tmp_path / name)
    assert {query: list(own) for query, own in found.items()} == {
        "q1": ["c", "a", "b"],
        "q2": ["b"],
    }
    assert found["q1"]["c"] == 1.5 and found["q2"]["b"] == 0.25
    assert [path.name for path in tmp_path.iterdir()] == [name]
    raw = (tmp_path / name).read_bytes()
    text = (gzip.decompress(raw) if name.endswith("gz") else raw).decode()
    assert text.splitlines()[0].split() == ["q1", "Q0", "c", "1", "1.5", "my_run"]


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path):
    (tmp_path / "run").write_text("q1 Q0 a 1 0.5 tag\n", encoding="utf-8-sig")
    assert read_run(tmp_path / "run") == {"q1": {"a": 0.5}}


def test_trec_eval_sees_the_order_of_equal_scores(tmp_path):
    write_run(tmp_path / "run", ["q1", "q2"], ["a", "b", "c"], HITS, SCORES)
    run = ir_measures.read_trec_run(str(tmp_path / "run"))
    qrels = [ir_measures.Qrel("q1", "c", 1), ir_measures.Qrel("q2", "b", 1)]
    assert ir_measures.calc_aggregate([ir_measures.RR], qrels, run) == {
        ir_measures.RR: 1.0
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 a 1 0.5", r"run:2 has 5 columns"),
        ("q1 Q0 a 1 nan tag", r"run:2: the score 'nan' is not a finite number"),
        ("q1 Q0 a 2 0.4 tag", r"run:2: the document 'a' is there twice"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    (tmp_path / "run").write_text(f"q1 Q0 a 1 0.5 tag\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "run")


def test_an_id_with_a_space_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="'b b' is empty or has a space"):
        write_run(tmp_path / "run", ["q1", "q2"], ["a", "b b", "c"], HITS, SCORES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changed", [slice(-9, None), slice(10, 12)])
def test_a_packed_file_that_is_damaged_is_refused(tmp_path, changed):
    packed = bytearray(gzip.compress(b"q1 Q0 a 1 0.5 tag\n" * 1))
    packed[changed] = b"" if changed.stop is None else b"\xff\xff"
    (tmp_path / "run.gz").write_bytes(packed)
    with pytest.raises(InputError, match="cannot be read as a TREC run"):
        read_run(tmp_path / "run.gz")
