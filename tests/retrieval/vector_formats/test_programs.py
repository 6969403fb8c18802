"""Each format is read by the program it is for, which ranks as exact search does."""

import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from programs import anserini_here
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.search import search
from lsrjax.retrieval.vector_formats.table import FORMATS, format_of
from lsrjax.retrieval.vector_formats.vectors import About
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles

DOCUMENTS, QUERIES, COLUMNS, DEPTH = 211, 13, 97, 10
# Longer than programs may keep of a term, equal up to there; dots; other scripts.
SAME = "e_" + "a" * 40
TERMS = [f"{SAME}{i}" for i in range(9)] + ["m_.", "e_a.b", "m_▁Straße", "m_猫", "#13"]
# Of vocabularies of bytes and wordpieces; the syntax of queries; what readers may trim.
TERMS += 'Ġb ##b B b e_ <s> a:b a^2 * " \\ é'.split() + ["e\u0301", "\u200b", "\ufeff"]
# Blanks, as in the vocabularies of Gemma and ModernBERT.
WORDS = ["", "m_  ", "m_   ", "a b", "\n", "\t", "\x1cx", "\u2028", "m_\u3000", "\xa0"]
LONG = ["x" * 101, "x" * 256, "x" * 257, "\0x", "x\0"]
TERMS += ["😀" * 100, *WORDS, *LONG]
STAND_INS = {name: f"#{TERMS.index(name)}" for name in [*WORDS, *LONG]}
# The last one's stand-in is the name of another term, as is the next one.
TERMS += [STAND_INS["x\0"], "#" + STAND_INS["x\0"]]
STAND_INS["x\0"] = "##" + STAND_INS["x\0"]
TERMS += [f"m_{i}" for i in range(COLUMNS - len(TERMS))]
IDS = [f"doc {i}/é" for i in range(DOCUMENTS)]
ABOUT = About("sparse", COLUMNS, TERMS, {})


def weights(count, seed):
    """Multiples of 1/8, which half precision holds, too."""
    rng = np.random.default_rng(seed)
    found = rng.integers(1, 40, (count, COLUMNS)) / 8
    found *= rng.random((count, COLUMNS)) < 0.2
    if count == DOCUMENTS:
        found[5] = 0
    found[:, :9] *= 2  # so that terms which are easily mixed up decide
    return sparse.csr_matrix(found.astype(np.float32))


DOCS, ASKED = weights(DOCUMENTS, 1), weights(QUERIES, 2)
DENSE = np.random.default_rng(3).standard_normal((DOCUMENTS, 8)).astype(np.float32)


def written(tmp_path, name, matrix=DOCS, about=ABOUT, whole=False):
    form = FORMATS[name]
    path = tmp_path / f"{name}{form.suffix}"
    target = Target.of(path, form, about, whole)
    files = VectorFiles(tmp_path / "partial", {"": target}, {})
    files.add({"": matrix[:100]}, IDS[:100])
    files.add({"": matrix[100:]}, IDS[100:])
    files.finish()
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def named(matrix, row, stand_ins=None):
    places = slice(matrix.indptr[row], matrix.indptr[row + 1])
    columns, values = matrix.indices[places], matrix.data[places]
    return {
        (stand_ins or {}).get(TERMS[c], TERMS[c]): float(v)
        for c, v in zip(columns, values, strict=True)
    }


def assert_ranked(found, docs=DOCS, asked=ASKED):
    """`found`: (id, score) of each query's hits; ties may be in any order."""
    exact = (asked @ docs.T).toarray()
    _, wanted = search(asked, docs, DEPTH)
    for query, hits in enumerate(found):
        scores = [exact[query, IDS.index(key)] for key, _ in hits]
        np.testing.assert_allclose([score for _, score in hits], scores, rtol=2e-3)
        np.testing.assert_allclose(sorted(scores)[::-1], wanted[query], rtol=1e-6)


def test_seismic(tmp_path):
    seismic = pytest.importorskip("seismic")
    index = seismic.SeismicIndex.build(
        str(written(tmp_path, "seismic")),
        n_postings=DOCUMENTS,
        centroid_fraction=0.5,
        summary_energy=1.0,
        num_threads=1,
    )
    kind = seismic.get_seismic_string()
    found = []
    for query in range(QUERIES):
        one = named(ASKED, query, {name: STAND_INS[name] for name in LONG})
        hits = index.search(
            query_id=str(query),
            query_components=np.array([*one], dtype=kind),
            query_values=np.array([*one.values()], np.float32),
            k=DEPTH,
            query_cut=len(one),
            heap_factor=0.0,
        )
        found.append([(key, score) for _, score, key in hits])
    assert_ranked(found)


def test_qdrant(tmp_path):
    models = pytest.importorskip("qdrant_client.models")
    from qdrant_client import QdrantClient

    points = rows(written(tmp_path, "qdrant"))
    with warnings.catch_warnings(action="ignore"):
        client = QdrantClient(":memory:")
    client.create_collection(
        "c", {}, sparse_vectors_config={"text": models.SparseVectorParams()}
    )
    client.upsert("c", [models.PointStruct(**point) for point in points])
    found = []
    for query in ASKED:
        asked = models.SparseVector(
            indices=query.indices.tolist(), values=query.data.tolist()
        )
        hits = client.query_points("c", asked, using="text", limit=DEPTH).points
        found.append([(hit.payload["id"], hit.score) for hit in hits])
    assert_ranked(found)


def test_qdrant_and_milvus_take_embeddings(tmp_path):
    about = About("dense", 8)
    docs = sparse.csr_matrix(DENSE)
    assert (
        np.array(
            [row["vector"] for row in rows(written(tmp_path, "milvus", docs, about))],
            np.float32,
        ).tolist()
        == DENSE.tolist()
    )
    models = pytest.importorskip("qdrant_client.models")
    from qdrant_client import QdrantClient

    points = rows(written(tmp_path, "qdrant", docs, about))
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=8, distance=models.Distance.DOT)
    client.create_collection("c", {"text": params})
    client.upsert("c", [models.PointStruct(**point) for point in points])
    asked = np.random.default_rng(4).standard_normal((3, 8)).astype(np.float32)
    found = []
    for query in asked:
        hits = client.query_points("c", query.tolist(), using="text", limit=DEPTH)
        found.append([(hit.payload["id"], hit.score) for hit in hits.points])
    assert_ranked(found, docs, sparse.csr_matrix(asked))


def test_milvus(tmp_path):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(tmp_path / "lite.db"))
    schema = client.create_schema()
    schema.add_field("id", pymilvus.DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("vector", pymilvus.DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection("c", schema=schema, index_params=index)
    client.insert("c", rows(written(tmp_path, "milvus")))
    asked = [
        dict(zip(query.indices.tolist(), query.data.tolist(), strict=True))
        for query in ASKED
    ]
    hits = client.search("c", data=asked, limit=DEPTH, anns_field="vector")
    client.close()
    assert_ranked([[(hit["id"], hit["distance"]) for hit in own] for own in hits])


def test_anserini_reads_whole_impacts(tmp_path):
    impacts = DOCS * 8
    path = written(tmp_path, "anserini", impacts, whole=True)
    for row, found in enumerate(rows(path)):
        assert set(found) == {"id", "contents", "vector"} and found["id"] == IDS[row]
        assert found["vector"] == named(impacts, row, STAND_INS)
        assert all(isinstance(one, int) for one in found["vector"].values())
    ranks = sorted(found["vector"].values(), reverse=True)
    assert [*found["vector"].values()] == ranks


@pytest.mark.slow
@anserini_here.NEEDED
def test_anserini(tmp_path):
    (tmp_path / "parts").mkdir()
    form, impacts = FORMATS["anserini"], DOCS * 8
    for part, rows in enumerate((slice(0, 100), slice(100, DOCUMENTS))):
        path = tmp_path / f"parts/part-{part}.jsonl"
        target = Target.of(path, form, ABOUT, True)
        files = VectorFiles(tmp_path / "p", {"": target}, {}, beside=False)
        files.add({"": impacts[rows]}, IDS[rows])
        files.finish()
    indexed = anserini_here.index(tmp_path / "parts", tmp_path / "index")
    assert indexed == DOCUMENTS - 1  # but the text without weights
    # Each term alone, the queries, one of as many terms as Lucene takes, and none.
    asked = sparse.vstack([sparse.eye_array(COLUMNS), ASKED * 8], format="csr")
    form = FORMATS["anserini-topics"]
    path = tmp_path / "topics.tsv"
    files = VectorFiles(
        tmp_path / "p", {"": Target.of(path, form, ABOUT, True)}, {}, beside=False
    )
    keys = [f"q {i}/é#" for i in range(asked.shape[0])]
    files.add({"": asked}, keys)
    files.add({"": asked[:1] * 0}, ["none"])
    files.finish()
    out = tmp_path / "run.txt"
    found = anserini_here.search(tmp_path / "index", path, out, DOCUMENTS)
    assert found.keys() == {*keys}
    exact = (asked @ impacts.T).toarray()
    for key, scores in zip(keys, exact, strict=True):
        wanted = {IDS[row]: scores[row] for row in np.flatnonzero(scores)}
        assert dict(found[key]) == pytest.approx(wanted, abs=1e-3)
        ranked = [wanted[document] for document, _ in found[key]]
        assert ranked == sorted(ranked, reverse=True)


def test_anserini_gets_no_topics_that_it_passes_over(tmp_path):
    form = FORMATS["anserini-topics"]
    many = About("sparse", 1025, [f"t{i}" for i in range(1025)])
    append = form.appender(many, True)
    row = sparse.csr_matrix(np.ones((1, 1025), np.float32))
    assert len(append(row[:, :1024], ["q"], 0)["lines"].split()) == 1025
    with pytest.raises(InputError, match=r"'q' has 1,025 terms.*--prune top:1024"):
        append(row, ["q"], 0)
    with pytest.raises(InputError, match=r"'q' add up to 20,971,520.*--quantize"):
        append(row[:, :20] * 2**20, ["q"], 0)
    for key in ("a\tb", "a\n", " a", ""):
        with pytest.raises(InputError, match="Rename it"):
            append(row[:, :1], [key], 0)


@pytest.mark.parametrize("name", ["opensearch", "elasticsearch"])
def test_bulk_lines_have_no_dots_in_names(tmp_path, name):
    lines = rows(written(tmp_path, name))
    dots = {name: f"#{TERMS.index(name)}" for name in ("m_.", "e_a.b")}
    for row, (action, document) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        assert action == {"index": {"_id": IDS[row]}}
        assert document == {"vector": named(DOCS, row, dots)}


def test_arrow_reads_parquet(tmp_path):
    table = pq.read_table(written(tmp_path, "parquet"))
    assert table["id"].to_pylist() == IDS
    assert table["indices"][7].as_py() == DOCS[7].indices.tolist()
    assert table["values"][7].as_py() == DOCS[7].data.tolist()


def test_negative_weights_are_refused_by_name(tmp_path):
    wrong = DOCS.copy()
    wrong.data[wrong.indptr[105]] = -1
    for name in ("anserini", "opensearch"):
        with pytest.raises(InputError, match=r"'doc 105/é' has the weight -1"):
            written(tmp_path, name, wrong)


def test_a_format_goes_with_the_name_of_its_file(tmp_path):
    assert format_of("", tmp_path / "a.jsonl")[0] == "jsonl"
    assert format_of("", tmp_path / "folder")[0] == "npz"
    assert format_of("seismic", tmp_path / "a.jsonl")[0] == "seismic"
    with pytest.raises(InputError, match=r"--format qdrant ends with \.jsonl"):
        format_of("qdrant", tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"known: npz, jsonl"):
        format_of("lucene", tmp_path / "a.npz")
