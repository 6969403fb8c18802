"""`open_vectors` gives back what was written, and refuses what is damaged."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.vector_formats.reading import open_vectors
from lsrjax.retrieval.vector_formats.table import FORMATS
from lsrjax.retrieval.vector_formats.vectors import About
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles

TERMS = [f"e_{i}" for i in range(17)] + ["m_▁é", "m_."]
IDS = ["a", "猫", "a longer id", "7", "x\ny"]


def vectors_of(kind):
    rng = np.random.default_rng(5)
    if kind == "tokens":
        starts = np.array([0, 2, 2, 3, 7, 8])
        return TokenMatrix(rng.standard_normal((8, 19)).astype(np.float32), starts)
    rows = rng.standard_normal((5, 19)).astype(np.float32)
    if kind == "sparse":
        rows = np.abs(rows) * (rng.random((5, 19)) < 0.3)
        rows[2] = 0
    return sparse.csr_matrix(rows)


def dense(matrix):
    return matrix.tokens_TD if isinstance(matrix, TokenMatrix) else matrix.toarray()


def write(path, kind, matrix, form=None):
    terms = TERMS if kind == "sparse" else None
    about = About(kind, 19, terms, {"role": "document"})
    form = FORMATS[form or path.suffix[1:]]
    target = {"": Target.of(path, form, about)}
    files = VectorFiles(path.with_name("partial"), target, {})
    files.add({"": matrix[:2]}, IDS[:2])
    files.add({"": matrix[2:]}, IDS[2:])
    files.finish()


@pytest.mark.parametrize("suffix", ["npz", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["sparse", "dense", "tokens"])
def test_vectors_come_back_in_blocks(tmp_path, kind, suffix):
    matrix = vectors_of(kind)
    path = tmp_path / f"v.{suffix}"
    write(path, kind, matrix)
    found = open_vectors(path)
    assert (found.kind, found.columns, len(found)) == (kind, 19, 5)
    assert found.terms == (TERMS if kind == "sparse" else None)
    assert found.made_of == {"role": "document"}
    blocks = list(found.blocks(2))
    assert [ids for ids, _ in blocks] == [IDS[:2], IDS[2:4], IDS[4:]]
    for start, (_, block) in zip((0, 2, 4), blocks, strict=True):
        wanted = matrix[start : start + 2]
        assert dense(block).dtype == np.float32
        np.testing.assert_array_equal(dense(block), dense(wanted))
        if kind == "tokens":
            np.testing.assert_array_equal(block.starts, wanted.starts)
    ids, whole = found.whole()
    assert ids == IDS
    np.testing.assert_array_equal(dense(whole), dense(matrix))


def test_lines_of_another_program_name_their_terms_themselves(tmp_path):
    path = tmp_path / "v.jsonl"
    path.write_text(
        '{"id": 3, "vector": {"b": 2}}\n{"id": "x", "vector": {"a": 0.5}}\n'
    )
    found = open_vectors(path)
    assert (found.terms, found.made_of, len(found)) == (["a", "b"], {}, 2)
    ids, matrix = found.whole()
    assert ids == ["3", "x"] and matrix.toarray().tolist() == [[0, 2], [0.5, 0]]


def test_a_matrix_of_scipy_with_ids_is_read_and_without_them_refused(tmp_path):
    matrix = vectors_of("sparse")
    path = tmp_path / "v.npz"
    sparse.save_npz(path, matrix)
    with pytest.raises(InputError, match="no array `ids`"):
        open_vectors(path)
    arrays = dict(np.load(path))
    np.savez_compressed(path, **arrays, ids=np.array(IDS))
    ids, found = open_vectors(path).whole()
    assert ids == IDS and (found != matrix).nnz == 0


class Evil:
    def __reduce__(self):
        return open, ("/tmp/never-made-by-lsrjax", "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array([Evil()] * 5, object)}, "damaged"),
        ({"ids": np.array(IDS[:4])}, "`ids` is not an array"),
        ({"data": np.full(3, np.nan, np.float32)}, "do not fit"),
        ({"indptr": np.array([0, 9, 1, 2, 3, 4])}, "starts of its texts"),
        ({"indptr": np.array([0, 9, 1, 2, 3, 4], np.uint64)}, "starts of its texts"),
        ({"indptr": np.zeros((6, 1), int)}, "`indptr` is int64 of shape"),
        ({"shape": np.array([6, 19])}, "starts of its texts"),
        ({"shape": np.array([5])}, "damaged"),
        ({"data": np.array(["x"])}, "`data` is <U1"),
        ({"indices": np.array([0.5])}, "`indices` is float64"),
        ({"embeddings": np.ones(5)}, "`embeddings` is float64 of shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "v.npz"
    sparse.save_npz(path, vectors_of("sparse"))
    np.savez(path, **dict(np.load(path)) | {"ids": np.array(IDS)} | change)
    with pytest.raises(InputError, match=message):
        open_vectors(path).whole()


def test_numbers_that_are_not_finite_name_their_text(tmp_path):
    matrix = vectors_of("sparse")
    last = np.flatnonzero(np.diff(matrix.indptr))[-1]
    matrix.data[-1] = np.inf
    path = tmp_path / "v.npz"
    write(path, "sparse", matrix)
    with pytest.raises(InputError, match=re.escape(f"vector of {IDS[last]!r}")):
        open_vectors(path).whole()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a"}', "line 2 is no JSON object with an id and a vector"),
        ('{"id": "a", "vector": {"e_1": NaN}}', "line 2 .*NaN"),
        ('{"id": "a", "vector": {"new": 1}}', "line 2: 'new' is none of its terms"),
        ('{"id": "a", "vector": [1]}', "line 2: its vector is not sparse"),
        ('{"id": "a", "vector": {"e_1": "x"}}', "line 2: its vector is damaged"),
        ('{"id": "a", "vector": {"e_1": [1]}}', r"line 2: .* shape is \(1, 1\)"),
        ('{"id": "a", "vec', "line 2 is no JSON"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, message):
    path = tmp_path / "v.jsonl"
    write(path, "sparse", vectors_of("sparse"))
    beside = tmp_path / "v.jsonl.about.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(InputError, match="bytes when it was written|has .* bytes"):
        open_vectors(path)
    values = json.loads(beside.read_text()) | {"bytes": path.stat().st_size}
    beside.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        open_vectors(path).whole()


def test_tokens_of_another_size_are_not_read_as_more_or_fewer(tmp_path):
    path = tmp_path / "v.jsonl"
    rows = [[[1, 2, 3], [4, 5, 6]], [[1, 2]]]
    lines = [json.dumps({"id": i, "vector": row}) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"line 1: .* shape is \(2, 3\), not \(2, 2\)"):
        open_vectors(path).whole()


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("sparse", {"indices": [0, 1], "values": [1.0, 2.0]}),
        ("sparse", {"indices": [[0.5], [1.0]], "values": [[1.0], [2.0]]}),
        ("sparse", {"indices": [[0], [1]], "values": [["x"], ["y"]]}),
        ("dense", {"vector": [[1.0, 2.0], [3.0]]}),
        ("tokens", {"vectors": [[[1.0, 2.0], [3.0]], [[4.0], [5.0, 6.0]]]}),
        ("tokens", {"vectors": [[[1.0, 2.0], None], [[3.0, 4.0]]]}),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path, kind, columns):
    path = tmp_path / "v.parquet"
    about = About(kind, 2, ["a", "b"] if kind == "sparse" else None)
    table = pa.table({"id": ["1", "2"], **columns})
    pq.write_table(table.replace_schema_metadata({b"lsrjax": about.json()}), path)
    with pytest.raises(InputError, match="damaged after row 0"):
        open_vectors(path).whole()


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"v.{suffix}"
    write(path, "sparse", vectors_of("sparse"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="is damaged"):
        open_vectors(path).whole()
