"""Files of vectors: what scipy and json read back, and what a stop leaves behind."""

import json

import numpy as np
import pytest
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.vector_files import EmbeddingsFile, JsonlFile, NpzFile

MATRIX = sparse.random_array(
    (50, 40), density=0.1, format="csr", dtype=np.float32, rng=np.random.default_rng(0)
)
IDS = [f"d{i}" for i in range(50)]


def parts(*ends):
    """Rows up to each end."""
    for first, last in zip((0, *ends), (*ends, 50), strict=True):
        yield MATRIX[first:last], IDS[first:last]


def test_scipy_reads_the_matrix_whatever_parts_it_came_in(tmp_path):
    for ends in ((), (20,), (0, 1, 49)):
        out = tmp_path / f"{len(ends)}.npz"
        file = NpzFile(out, {})
        for rows, ids in parts(*ends):
            assert not out.exists()
            file.add(rows, ids)
        file.finish(40)
        found = sparse.load_npz(out)
        assert found.shape == (50, 40) and found.dtype == np.float32
        assert (found != MATRIX).nnz == 0
        found.check_format(full_check=True)
        assert [
            path.name for path in tmp_path.iterdir() if ".partial" in path.name
        ] == []


def test_no_rows_make_an_empty_matrix(tmp_path):
    file = NpzFile(tmp_path / "none.npz", {})
    file.finish(7)
    assert sparse.load_npz(tmp_path / "none.npz").shape == (0, 7)


def test_embeddings_are_arrays_and_lists(tmp_path):
    rows = np.array([[0.1, 0, -2.5], [1, 2, 3]], np.float32)
    dense = sparse.csr_matrix(rows)
    tokens = TokenMatrix(np.concatenate([rows, rows]), np.array([0, 3, 4]))
    for name, matrix in (("dense", dense), ("tokens", tokens)):
        for suffix, kind in ((".npz", EmbeddingsFile), (".jsonl", JsonlFile)):
            file = kind(tmp_path / f"{name}{suffix}", {})
            file.add(matrix[:1], ["x"])
            file.add(matrix[1:], ["y"])
            file.finish(3)
    found = dict(np.load(tmp_path / "dense.npz"))
    assert list(found) == ["embeddings"]
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
    file = JsonlFile(tmp_path / "out.jsonl", {}, names)
    rows = sparse.csr_matrix(
        np.array([[0.1, 2.5, 0, 0, 1.1], [0, 0, 0, 0, 0]], np.float32)
    )
    file.add(rows, ["x", "y"])
    file.finish(5)
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
    terms = [f"t{i}" for i in range(40)]

    def open_file(name):
        path = tmp_path / f"{name}.{kind}"
        made_of = {"model": "m"}
        return (
            NpzFile(path, made_of) if kind == "npz" else JsonlFile(path, made_of, terms)
        )

    whole = open_file("whole")
    for rows, ids in parts(20, 30):
        whole.add(rows, ids)
    whole.finish(40)

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
    file.finish(40)
    left, right = (tmp_path / f"{name}.{kind}" for name in ("whole", "stopped"))
    if kind == "jsonl":
        assert left.read_bytes() == right.read_bytes()
    else:
        assert (sparse.load_npz(left) != sparse.load_npz(right)).nnz == 0
    assert not folder.exists()


def test_other_vectors_are_not_mixed_in(tmp_path):
    out = tmp_path / "v.npz"
    file = NpzFile(out, {"model": "a", "max_length": 64})
    file.add(*next(parts(10)))
    file.close()
    with pytest.raises(InputError, match=r"max_length: there 64, asked 32"):
        NpzFile(out, {"model": "a", "max_length": 32})
    file = NpzFile(out, {"model": "a", "max_length": 64})
    file.finish(40)
    with pytest.raises(InputError, match=r"v\.npz exists"):
        NpzFile(out, {"model": "a", "max_length": 64})
