"""Every engine against exact search over the whole matrix."""

import sys

import numpy as np
import pytest
from programs import seismic_here
from scipy import sparse

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.retrieval import maxsim
from lsrjax.retrieval.engines.engine import InMemory
from lsrjax.retrieval.engines.exact import Exact
from lsrjax.retrieval.engines.table import ENGINES
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import search
from lsrjax.retrieval.vector_formats.vectors import About

COLUMNS = 601


def matrix(rows, seed, columns=COLUMNS, terms=30):
    """Sparse vectors of Zipf-like terms, some of them without a weight."""
    rng = np.random.default_rng(seed)
    ranks = np.minimum(rng.zipf(1.3, (rows, terms)), columns) - 1
    made = sparse.csr_matrix(
        (
            rng.gamma(2.0, 1.0, rows * terms).astype(np.float32),
            ranks.ravel() * 7 % columns,
            np.arange(rows + 1) * terms,
        ),
        shape=(rows, columns),
    )
    made.sum_duplicates()
    made.data[:] = np.minimum(made.data, 9)
    made.data[np.repeat(np.arange(rows) % 11 == 5, np.diff(made.indptr))] = 0
    made.eliminate_zeros()
    return made


def opened(name, folder, vectors, **values):
    """An engine over vectors, built and opened again."""
    chosen = options.resolve(ENGINES, {"name": name, **values}, "--engine")
    folder.mkdir(exist_ok=True)
    chosen.entry.build(folder, vectors, chosen.options)
    return chosen.entry.open(folder, chosen.options)


def vectors_of(matrix, kind="sparse"):
    """Vectors with the ids d0, d1, …"""
    ids = [f"d{number}" for number in range(matrix.shape[0])]
    return InMemory(ids, matrix, About(kind, matrix.shape[1]))


def recall(found, expected):
    """Share of the expected hits that are found."""
    kept = [set(e[e >= 0]) for e in expected]
    got = sum(len(set(f) & e) for f, e in zip(found, kept, strict=True))
    return got / sum(map(len, kept))


def assert_same_up_to_ties(hits, expected, scores):
    """Documents whose scores differ in their last bits may change places."""
    close = np.isclose(np.diff(scores, axis=1), 0, rtol=0, atol=1e-4)
    tied = np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)))
    tied[:, -1] = True  # with a document beyond the depth
    assert ((hits == expected) | tied).all()
    assert (hits == expected).mean() > 0.9


@pytest.mark.parametrize("block", [1, 37, 4096])
def test_exact_equals_search(tmp_path, block):
    documents, queries = matrix(300, 1), matrix(23, 2)
    vectors = vectors_of(documents)
    engine = opened("exact", tmp_path, vectors, block=block, batch=5)
    for depth in (1, 10, 400):
        expected = search(queries, documents, depth)
        found = engine.search(queries, depth)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_exact_takes_dense_vectors_and_negative_weights(tmp_path):
    rng = np.random.default_rng(3)
    documents = sparse.csr_matrix(rng.normal(size=(90, 13)).astype(np.float32))
    queries = sparse.csr_matrix(rng.normal(size=(7, 13)).astype(np.float32))
    engine = opened("exact", tmp_path, vectors_of(documents, "dense"), block=40)
    hits, scores = engine.search(queries, 90)
    products = queries.toarray() @ documents.toarray().T
    np.testing.assert_array_equal(hits, np.argsort(-products, axis=1, kind="stable"))
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    ("file", "kind", "place", "value"),
    [
        ("columns.i32", "<i4", 40, COLUMNS),
        ("columns.i32", "<i4", 40, -1),
        ("starts.i64", "<i8", 3, 1 << 40),
        ("starts.i64", "<i8", 0, 1),
        ("starts.i64", "<i8", -1, 9999),
    ],
)
def test_exact_reads_nothing_outside_its_files(tmp_path, file, kind, place, value):
    opened("exact", tmp_path, vectors_of(matrix(60, 1)))
    array = np.fromfile(tmp_path / f"0.{file}", kind)
    array[place] = value
    array.tofile(tmp_path / f"0.{file}")
    with pytest.raises(InputError, match="does not fit the index"):
        Exact.open(tmp_path, Exact.Options()).search(matrix(3, 2), 5)


@seismic_here.NEEDED
@pytest.mark.parametrize("columns", [COLUMNS, 70_001])
def test_seismic_finds_what_exact_finds(tmp_path, columns):
    """Also in its form for more columns than 16 bits number."""
    documents, queries = matrix(800, 4, columns), matrix(60, 5, columns)
    engine = opened("seismic", tmp_path, vectors_of(documents), threads=1)
    expected = search(queries, documents, 10)
    hits, scores = engine.search(queries, 10)
    assert hits.dtype == np.int32 and scores.dtype == np.float32
    assert recall(hits, expected[0]) >= 0.95
    products = (queries @ documents.T).toarray()
    there = hits >= 0
    rows = np.nonzero(there)[0]
    # Weights are stored in 16 bits.
    np.testing.assert_allclose(scores[there], products[rows, hits[there]], rtol=2e-3)
    assert (np.diff(np.where(there, scores, 0), axis=1) <= 0).all()
    empty = np.diff(queries.indptr) == 0
    assert empty.any() and (hits[empty] == -1).all()


def test_milvus_ranks_as_exact_does(tmp_path):
    documents, queries = matrix(300, 6, 300_007), matrix(23, 7, 300_007)
    engine = opened("milvus", tmp_path, vectors_of(documents))
    try:
        expected = search(queries, documents, 12)
        hits, scores = engine.search(queries, 12)
        np.testing.assert_allclose(scores, expected[1], rtol=1e-5)
        assert_same_up_to_ties(hits, *expected)
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["exact", seismic_here.SEISMIC, "milvus"])
def test_vectors_come_back(tmp_path, name):
    documents = matrix(60, 8)
    engine = opened(name, tmp_path, vectors_of(documents))
    try:
        asked = np.array([7, 5, 41, 7, 0])  # document 5 has no weight
        found = engine.vectors(asked)
        assert found.shape == (5, COLUMNS)
        expected = documents[asked].toarray()
        np.testing.assert_allclose(found.toarray(), expected, rtol=1e-3)
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["exact", seismic_here.SEISMIC, "milvus"])
def test_documents_without_weights(tmp_path, name):
    nothing = sparse.csr_matrix((3, COLUMNS), dtype=np.float32)
    engine = opened(name, tmp_path, vectors_of(nothing))
    try:
        hits, scores = engine.search(matrix(4, 9), 5)
        assert hits.tolist() == [[-1] * 5] * 4 and not scores.any()
    finally:
        engine.close()


@pytest.mark.parametrize("name", [seismic_here.SEISMIC, "milvus"])
def test_negative_weights_are_refused(tmp_path, name):
    documents = matrix(20, 10)
    documents.data[documents.indptr[13]] = -0.5
    with pytest.raises(InputError, match=r"document number 13 has -0\.5.*exact"):
        opened(name, tmp_path, vectors_of(documents))


@seismic_here.NEEDED
def test_seismic_refuses_what_16_bits_cannot_hold(tmp_path):
    documents = matrix(20, 10)
    documents.data[documents.indptr[3]] = 70_000
    with pytest.raises(InputError, match="document number 3 has 70000"):
        opened("seismic", tmp_path, vectors_of(documents))


def tokens(texts, seed, longest, width=7):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, longest, texts)
    counts[::9] = 0
    made = rng.normal(size=(counts.sum(), width)).astype(np.float32)
    return TokenMatrix(made, np.concatenate([[0], np.cumsum(counts)]))


@pytest.mark.parametrize("at_once", [3, 300, 16_384])
def test_maxsim_equals_search(tmp_path, at_once):
    documents, queries = tokens(83, 11, 40), tokens(21, 12, 9)
    vectors = vectors_of(documents, "tokens")
    engine = opened("maxsim", tmp_path, vectors, tokens=at_once, queries=4)
    expected = search(queries, documents, 20)
    hits, scores = engine.search(queries, 20)
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5)
    assert_same_up_to_ties(hits, *expected)
    assert (hits[::9] == -1).all()  # queries without a token


def test_maxsim_in_16_bits(tmp_path):
    documents, queries = tokens(83, 13, 40), tokens(21, 14, 9)
    vectors = vectors_of(documents, "tokens")
    engine = opened("maxsim", tmp_path, vectors, dtype="float16")
    hits, found = engine.search(queries, 5)
    half = TokenMatrix(
        documents.tokens_TD.astype(np.float16).astype(np.float32), documents.starts
    )
    exact = maxsim.scores(queries, half)
    for row in np.flatnonzero(hits[:, 0] >= 0):
        np.testing.assert_allclose(found[row], exact[row, hits[row]], rtol=1e-5)
    stored = engine.vectors(np.array([4, 2]))
    np.testing.assert_array_equal(stored.tokens_TD, half[[4, 2]].tokens_TD)
    documents.tokens_TD[3, 3] = 1e6
    with pytest.raises(InputError, match="too large for float16"):
        opened("maxsim", tmp_path, vectors, dtype="float16")


def test_milvus_in_a_file_of_ones_own(tmp_path):
    uri = str(tmp_path / "mine.db")
    vectors = vectors_of(matrix(20, 15))
    values = {"uri": uri, "collection": "texts"}
    first = tmp_path / "first"
    opened("milvus", first, vectors, **values).close()
    with pytest.raises(InputError, match="has a collection 'texts'. Drop it"):
        opened("milvus", tmp_path / "second", vectors, **values)
    chosen = options.resolve(ENGINES, {"name": "milvus", **values}, "--engine")
    engine = chosen.entry.open(first, chosen.options)
    engine.close()
    (first / "milvus.json").write_text(
        f'{{"uri": "{uri}", "collection": "other", "stored": 1}}'
    )
    with pytest.raises(InputError, match="no collection 'other'"):
        chosen.entry.open(first, chosen.options)


def test_milvus_uris_hold_no_password(tmp_path):
    node = {"name": "milvus", "uri": "http://me:secret@host:1"}
    with pytest.raises(InputError, match="MILVUS_TOKEN"):
        options.resolve(ENGINES, node, "--engine")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("seismic", "seismic", "search"), ("milvus", "pymilvus", "milvus")],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'lsrjax\[{extra}\]'"):
        opened(name, tmp_path, vectors_of(matrix(3, 16)))
