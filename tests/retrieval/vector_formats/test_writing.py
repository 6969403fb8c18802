"""Files of vectors: what scipy and json read back, and what a stop leaves behind."""

import json

import numpy as np
import pytest
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.vector_formats.table import FORMATS
from lsrjax.retrieval.vector_formats.vectors import About
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles

MATRIX = sparse.random_array(
    (50, 40), density=0.1, format="csr", dtype=np.float32, rng=np.random.default_rng(0)
)
IDS = [f"d{i}" for i in range(50)]
TERMS = [f"t{i}" for i in range(40)]


class Files(VectorFiles):
    """The vectors of one view."""

    def __init__(self, path, made_of, terms=TERMS, kind="sparse", columns=40):
        known = {one.suffix: one for one in (FORMATS["npz"], FORMATS["jsonl"])}
        about = About(kind, columns, terms, made_of)
        target = Target.of(path, known[path.suffix], about)
        folder = path.with_name(f"{path.name}.partial")
        super().__init__(folder, {"": target}, made_of)

    def add(self, matrix, ids):
        super().add({"": matrix}, ids)


def parts(*ends):
    """Rows up to each end."""
    for first, last in zip((0, *ends), (*ends, 50), strict=True):
        yield MATRIX[first:last], IDS[first:last]


def test_scipy_reads_the_matrix_whatever_parts_it_came_in(tmp_path):
    for ends in ((), (20,), (0, 1, 49)):
        out = tmp_path / f"{len(ends)}.npz"
        file = Files(out, {})
        for rows, ids in parts(*ends):
            assert not out.exists()
            file.add(rows, ids)
        file.finish()
        found = sparse.load_npz(out)
        assert found.shape == (50, 40) and found.dtype == np.float32
        assert (found != MATRIX).nnz == 0
        found.check_format(full_check=True)
        assert [
            path.name for path in tmp_path.iterdir() if ".partial" in path.name
        ] == []


def test_no_rows_make_an_empty_matrix(tmp_path):
    file = Files(tmp_path / "none.npz", {}, [*"abcdefg"], columns=7)
    file.finish()
    assert sparse.load_npz(tmp_path / "none.npz").shape == (0, 7)


def test_embeddings_are_arrays_and_lists(tmp_path):
    rows = np.array([[0.1, 0, -2.5], [1, 2, 3]], np.float32)
    dense = sparse.csr_matrix(rows)
    tokens = TokenMatrix(np.concatenate([rows, rows]), np.array([0, 3, 4]))
    for name, matrix in (("dense", dense), ("tokens", tokens)):
        for suffix in (".npz", ".jsonl"):
            file = Files(tmp_path / f"{name}{suffix}", {}, None, name, 3)
            file.add(matrix[:1], ["x"])
            file.add(matrix[1:], ["y"])
            file.finish()
    found = dict(np.load(tmp_path / "dense.npz"))
    assert list(found) == ["embeddings", "ids", "about.json"]
    assert found["ids"].tolist() == ["x", "y"]
    np.testing.assert_array_equal(found["embeddings"], rows)
    found = dict(np.load(tmp_path / "tokens.npz"))
    np.testing.assert_array_equal(found["embeddings"], tokens.tokens_TD)
    np.testing.assert_array_equal(found["starts"], [0, 3, 4])
    lines = {
        name: (tmp_path / f"{name}.jsonl").read_text().splitlines()
        for name in ("dense", "tokens")
    }
    assert json.loads(lines["dense"][0]) == {"id": "x", "vector": [0.1, 0.0, -2.5]}
    assert json.loads(lines["tokens"][1]) == {"id": "y", "vector": [[1.0, 2.0, 3.0]]}
    assert len(json.loads(lines["tokens"][0])["vector"]) == 3


def test_lines_hold_the_terms_strongest_first(tmp_path):
    names = ["e_a", "e_b", "m_é", "m_ß", "m_猫"]
    file = Files(tmp_path / "out.jsonl", {}, names, columns=5)
    rows = sparse.csr_matrix(
        np.array([[0.1, 2.5, 0, 0, 1.1], [0, 0, 0, 0, 0]], np.float32)
    )
    file.add(rows, ["x", "y"])
    file.finish()
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "id": "x",
        "vector": {"e_b": 2.5, "m_猫": 1.1, "e_a": 0.1},
    }
    assert list(json.loads(lines[0])["vector"]) == ["e_b", "m_猫", "e_a"]
    assert json.loads(lines[1]) == {"id": "y", "vector": {}}
    assert "猫" in lines[0]


@pytest.mark.parametrize("kind", ["npz", "jsonl"])
def test_after_a_stop_the_file_is_what_it_would_have_been(tmp_path, kind):
    def open_file(name):
        return Files(tmp_path / f"{name}.{kind}", {"model": "m"})

    whole = open_file("whole")
    for rows, ids in parts(20, 30):
        whole.add(rows, ids)
    whole.finish()

    file = open_file("stopped")
    file.add(MATRIX[:20], IDS[:20])
    file.close()
    # A stop in the middle of a write, before the state said so.
    folder = tmp_path / f"stopped.{kind}.partial"
    for path in folder.iterdir():
        if path.name != "state.json":
            with open(path, "ab") as part:
                part.write(b"half a row")
    file = open_file("stopped")
    assert file.rows == 20
    for rows, ids in list(parts(20, 30))[1:]:
        file.add(rows, ids)
    file.finish()
    left, right = (tmp_path / f"{name}.{kind}" for name in ("whole", "stopped"))
    assert left.read_bytes() == right.read_bytes()
    assert not folder.exists()


def test_other_vectors_are_not_mixed_in(tmp_path):
    out = tmp_path / "v.npz"
    file = Files(out, {"model": "a", "max_length": 64})
    file.add(*next(parts(10)))
    file.close()
    with pytest.raises(InputError, match=r"max_length: there 64, asked 32"):
        Files(out, {"model": "a", "max_length": 32})
    file = Files(out, {"model": "a", "max_length": 64})
    file.finish()
    with pytest.raises(InputError, match=r"v\.npz exists"):
        Files(out, {"model": "a", "max_length": 64})
