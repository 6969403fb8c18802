"""Indexes on disk: what they hold, how builds end, and how damage is found."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from programs import seismic_here
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.engines.engine import InMemory
from lsrjax.retrieval.index_folder import build_index, choose, open_index
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import search
from lsrjax.retrieval.vector_formats.vectors import About

ROWS, COLUMNS = 50, 31
IDS = [f"doc-{row}é" for row in range(ROWS)]
TEXTS = [(key, f"The text of {key}.\n") for key in IDS]
MADE_OF = {"model": "runs/x", "weights": "12ab", "role": "document"}


def matrix(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.random((rows, COLUMNS)) * (rng.random((rows, COLUMNS)) < 0.3)
    return sparse.csr_matrix(dense.astype(np.float32))


def vectors(ids=IDS, made=None):
    about = About("sparse", COLUMNS, [f"t{i}" for i in range(COLUMNS)], MADE_OF)
    return InMemory(ids, matrix() if made is None else made, about)


def built(folder, name="exact", texts=TEXTS, **values):
    build_index(folder, vectors(), choose("sparse", name, values), texts)
    return folder


@pytest.mark.parametrize("name", ["exact", seismic_here.SEISMIC, "milvus"])
def test_what_was_indexed_is_found(tmp_path, name):
    folder = built(tmp_path / "index", name)
    with open_index(folder) as index:
        assert len(index) == ROWS and list(index.ids) == IDS
        assert index.ids[np.int32(7)] == IDS[7] and index.ids[-1] == IDS[-1]
        assert index.texts[3:5] == [TEXTS[3][1], TEXTS[4][1]]
        assert index.terms[30] == "t30" and index.made_of == MADE_OF
        assert index.kind == "sparse" and index.options["name"] == name
        queries = matrix(6, seed=1)
        hits, scores = index.search(queries, 5)
        expected = search(queries, matrix(), 5)
        np.testing.assert_allclose(scores, expected[1], rtol=2e-3)
        assert (hits[:, 0] == expected[0][:, 0]).mean() > 0.8
    # Milvus Lite serves one program at a time: the first has let it go.
    open_index(folder).close()
    assert not list(tmp_path.glob("*.partial"))


def test_texts_need_not_be_stored(tmp_path):
    assert open_index(built(tmp_path / "index", texts=None)).texts is None


def test_each_kind_of_vectors_has_an_engine(tmp_path):
    assert choose("sparse").name == "seismic"
    assert choose("dense").name == "exact"
    assert choose("tokens").name == "maxsim"
    with pytest.raises(InputError, match="seismic takes sparse .* Use exact"):
        choose("dense", "seismic")
    with pytest.raises(InputError, match="'lucene'; known: 'exact'"):
        choose("sparse", "lucene")
    with pytest.raises(InputError, match=r"--engine.blok .*--engine.block"):
        choose("sparse", "exact", {"blok": 3})
    tokens = TokenMatrix(np.ones((4, 3), np.float32), np.array([0, 1, 1, 4]))
    few = InMemory(["a", "b", "c"], tokens, About("tokens", 3))
    build_index(tmp_path / "index", few, choose("tokens"))
    hits, scores = open_index(tmp_path / "index").search(tokens[2:], 3)
    assert hits.tolist() == [[0, 2, -1]] and scores.tolist() == [[9, 9, 0]]


def test_an_existing_folder_stays(tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(InputError, match="exists"):
        built(folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]


class Stopped(Exception):
    pass


class Breaking(InMemory):
    """Vectors that end in an error after the first rows."""

    def __init__(self, error):
        super().__init__(IDS, matrix(), About("sparse", COLUMNS))
        self._error = error

    def blocks(self, rows=8192):
        yield from InMemory(IDS[:9], matrix()[:9], self.about).blocks(rows)
        raise self._error


@pytest.mark.parametrize("name", ["exact", seismic_here.SEISMIC, "milvus"])
def test_a_build_that_stops_leaves_nothing_with_the_name(tmp_path, name):
    folder = tmp_path / "index"
    with pytest.raises(Stopped):
        build_index(folder, Breaking(Stopped()), choose("sparse", name))
    assert not folder.exists() and (tmp_path / "index.partial").is_dir()
    with pytest.raises(InputError, match="is no index: .* build that was stopped"):
        open_index(folder)
    # The same command begins anew.
    built(folder, name)
    assert not (tmp_path / "index.partial").exists()
    open_index(folder).close()


@seismic_here.NEEDED
def test_a_bad_input_leaves_nothing_at_all(tmp_path):
    with pytest.raises(InputError, match="damaged"):
        build_index(
            tmp_path / "index", Breaking(InputError("damaged")), choose("sparse")
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_of_others_is_not_removed(tmp_path):
    (tmp_path / "index.partial").mkdir()
    (tmp_path / "index.partial" / "thesis.tex").touch()
    with pytest.raises(InputError, match="in the way"):
        built(tmp_path / "index")
    assert (tmp_path / "index.partial" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["exact", seismic_here.SEISMIC])
def test_damage_to_any_file_is_named(tmp_path, name):
    folder = built(tmp_path / "index", name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        whole = path.read_bytes()
        at = len(whole) // 2
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for damaged in (flipped, whole[:at], whole + b"}"):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
                open_index(folder)
        path.unlink()
        with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
            open_index(folder)
        path.write_bytes(whole)
    open_index(folder)


def test_without_digests_sizes_are_compared(tmp_path):
    folder = built(tmp_path / "index")
    path = folder / "engine" / "0.weights.f32"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\0")
    open_index(folder, verify=False)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"0\.weights\.f32 has"):
        open_index(folder, verify=False)


def test_a_milvus_file_that_lost_its_documents_is_found(tmp_path):
    folder = built(tmp_path / "index", "milvus")
    shutil.rmtree(folder / "engine" / "milvus.db")
    with pytest.raises(InputError, match="no collection"):
        open_index(folder)


def test_a_milvus_file_that_lost_some_documents_is_found(tmp_path):
    from pymilvus import MilvusClient

    folder = built(tmp_path / "index", "milvus")
    with open_index(folder) as index:
        client = MilvusClient(str(folder.absolute() / "engine" / "milvus.db"))
        name = json.loads((folder / "engine" / "milvus.json").read_text())["collection"]
        client.load_collection(name)
        client.delete(name, ids=[3, 4])
        assert len(index) == ROWS
    with pytest.raises(InputError, match="48 documents, not 50"):
        open_index(folder)


def test_an_index_names_no_code(tmp_path):
    from lsrjax.retrieval import index_folder

    folder = built(tmp_path / "index")
    values = json.loads((folder / "index.json").read_text())
    values.pop("digest")
    values["engine"] = {"name": "antigravity.Engine"}
    index_folder._write(folder / "index.json", values)
    with pytest.raises(InputError, match="cannot name code"):
        open_index(folder)


def test_a_token_goes_only_to_a_server_that_the_search_names(tmp_path, monkeypatch):
    import pymilvus

    from lsrjax.retrieval import index_folder

    folder, theirs = built(tmp_path / "index", "milvus"), "http://theirs:19530"
    path = folder / "engine" / "milvus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"uri": theirs}))
    values = json.loads((folder / "index.json").read_text())
    values.pop("digest")
    values["engine"]["uri"] = theirs
    values["files"]["engine/milvus.json"] = [
        path.stat().st_size,
        index_folder.digest_of(path),
    ]
    index_folder._write(folder / "index.json", values)
    sent = []

    def client(uri, token):
        sent.append((uri, token))
        raise pymilvus.MilvusException(message="nobody is there")

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv("MILVUS_TOKEN", "me:secret")
    for changes in ({}, {"drop_ratio": 0.1}, {"uri": theirs}, {"uri": "http://ours:1"}):
        with pytest.raises(InputError, match="cannot be opened"):
            open_index(folder, changes)
    named = [(theirs, "me:secret"), ("http://ours:1", "me:secret")]
    assert sent == [(theirs, ""), (theirs, ""), *named]


def test_documents_outside_their_file_are_refused(tmp_path):
    import pyarrow as pa

    from lsrjax.retrieval import index_folder

    path = tmp_path / "documents.arrow"
    offsets = pa.py_buffer(np.array([0, 1, 1 << 30, 2], "<i4").tobytes())
    ids = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"ab"))
    with pa.ipc.new_file(str(path), pa.schema([("id", pa.string())])) as file:
        file.write_batch(pa.record_batch([ids], names=["id"]))
    with pytest.raises(InputError, match=r"documents\.arrow is damaged"):
        index_folder._documents(path, verify=True)


@seismic_here.NEEDED
def test_only_options_of_searches_change(tmp_path):
    folder = built(tmp_path / "index", "seismic", postings=700)
    index = open_index(folder, {"heap_factor": 0.5})
    assert index.options["heap_factor"] == 0.5 and index.options["postings"] == 700
    with pytest.raises(InputError, match="postings cannot be changed .* heap_factor"):
        open_index(folder, {"postings": 3})


def test_ids_twice_are_refused(tmp_path):
    with pytest.raises(InputError, match="'doc-4é' for one"):
        build_index(
            tmp_path / "index",
            vectors([*IDS[:-1], IDS[4]]),
            choose("sparse", "exact"),
        )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (TEXTS[:-1], "it ends where .* 'doc-49é'"),
        ([*TEXTS, ("more", "x")], "'more' is in the file"),
        ([TEXTS[1], TEXTS[0], *TEXTS[2:]], "it has 'doc-1é' where .* 'doc-0é'"),
    ],
)
def test_texts_of_other_vectors_are_refused(tmp_path, texts, message):
    with pytest.raises(InputError, match=message):
        built(tmp_path / "index", texts=texts)
    assert not list(tmp_path.iterdir())


def test_queries_of_another_model_are_refused(tmp_path):
    index = open_index(built(tmp_path / "index"))
    with pytest.raises(InputError, match="have 3 columns"):
        index.search(sparse.csr_matrix((1, 3), dtype=np.float32), 5)


def test_a_folder_that_is_no_index(tmp_path):
    with pytest.raises(InputError, match="is no index"):
        open_index(pathlib.Path(tmp_path))
