import concurrent.futures
import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.data.examples import ANY
from lsrjax.data.reading import id_index as index
from lsrjax.data.reading.corpus import Corpus, state
from lsrjax.data.reading.judgements import read_qrels
from lsrjax.errors import InputError

TEXTS = {"7": "Grüße", "d-1": "a house", "x" * 90: "数学 に基く", "0": "zero"}


def write_jsonl(path, texts):
    rows = [{"docid": key, "text": text} for key, text in texts.items()]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")  # the last line has no end


def write_tsv(path, texts):
    path.write_bytes("".join(f"{k}\t{t}\r\n" for k, t in texts.items()).encode())


def write_parquet(path, texts):
    table = pa.table({"_id": list(texts), "text": list(texts.values())})
    pq.write_table(table, path, row_group_size=3)


WRITERS = {"c.jsonl": write_jsonl, "c.tsv": write_tsv, "c.parquet": write_parquet}


@pytest.fixture(params=WRITERS)
def path(request, tmp_path):
    WRITERS[request.param](tmp_path / request.param, TEXTS)
    return tmp_path / request.param


def opened(path):
    places = str(path) if isinstance(path, pathlib.Path) else path
    return Corpus(places, "config.data.corpus")


def test_texts_by_id(path):
    found = opened(path)
    assert len(found) == len(TEXTS) and found.languages == (ANY,)
    for key, text in reversed(TEXTS.items()):
        assert found.get(key, "row 0") == {ANY: text}


def test_threads_read_at_once(path):
    found = opened(path)
    keys = list(TEXTS) * 200
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda key: found.get(key, "row 0")[ANY], keys))
    assert texts == [TEXTS[key] for key in keys]


def test_a_missing_id_is_named_with_its_row_and_file(path):
    with pytest.raises(InputError) as error:
        opened(path).get("D9", "train.jsonl, row 3")
    assert f"train.jsonl, row 3: the id 'D9' is not in {path} (4 texts)" in str(
        error.value
    )


def test_ids_of_one_hash_are_told_apart(path, monkeypatch):
    monkeypatch.setattr(index, "id_hash", lambda key: 5)
    found = opened(path)
    for key, text in TEXTS.items():
        assert found.get(key, "row 0") == {ANY: text}
    with pytest.raises(InputError, match="'D9' is not in"):
        found.get("D9", "row 0")


def test_an_id_with_two_texts_is_refused(tmp_path):
    write_tsv(tmp_path / "a.tsv", TEXTS)
    write_tsv(tmp_path / "b.tsv", TEXTS | {"0": "another"})
    with pytest.raises(
        InputError, match=r"a\.tsv, line 4 and .*b\.tsv, line 4: the id '0' .* twice"
    ):
        opened(tmp_path / "*.tsv")


@pytest.mark.parametrize("one_hash", [False, True])
def test_a_text_that_is_repeated_is_taken_once(path, tmp_path, monkeypatch, one_hash):
    """In one file or in several, twice or more often; as MIRACL's Korean corpus has."""
    if one_hash:
        monkeypatch.setattr(index, "id_hash", lambda key: 5)
    shutil.copy(path, tmp_path / f"again{path.suffix}")
    write_tsv(tmp_path / "third.tsv", {"d-1": "a house", "new": "text"})
    found = opened(
        [str(path), f"{tmp_path}/again{path.suffix}", f"{tmp_path}/third.tsv"]
    )
    assert len(found) == len(TEXTS) + 1
    for key, text in TEXTS.items():
        assert found.get(key, "row 0") == {ANY: text}
    items = [found.documents.item(i) for i in range(len(found.documents))]
    assert items == [(k, {ANY: t}) for k, t in [*TEXTS.items(), ("new", "text")]]


def test_languages_and_shards(tmp_path):
    write_tsv(tmp_path / "en.0.tsv", {"1": "one", "2": "two"})
    write_tsv(tmp_path / "en.1.tsv", {"3": "three"})
    write_jsonl(tmp_path / "de.jsonl", {"1": "eins", "3": "drei"})
    found = opened({"en": f"{tmp_path}/en.*.tsv", "de": [f"{tmp_path}/de.jsonl"]})
    assert found.languages == ("en", "de") and len(found) == 3
    assert found.get("3", "row") == {"en": "three", "de": "drei"}
    assert found.get("2", "row") == {"en": "two"}


def test_titles_come_first(tmp_path):
    row = {"_id": 3, "title": "TeX", "text": "sets type"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.tsv").write_text("3\tsets type\tTeX\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    for suffix in ("jsonl", "tsv", "parquet"):
        found = opened(tmp_path / f"a.{suffix}").get("3", "row")
        assert found == {ANY: "TeX sets type"}


def test_an_index_holds_no_texts(path, monkeypatch):
    """16 bytes a text stay in memory; a text is read when it is asked for."""
    found = opened(path)
    (index,) = found._indexes.values()
    held = [v for v in vars(index).values() if isinstance(v, np.ndarray)]
    assert sum(array.nbytes for array in held) == 16 * len(TEXTS)
    (file,) = index._files
    if path.suffix == ".parquet":
        buffer = file._rows._rows._batches[0].column(1).buffers()[2]
        before = pa.total_allocated_bytes()
        assert buffer.size and opened(path) and pa.total_allocated_bytes() == before
    else:
        assert not [v for v in vars(file._lines).values() if isinstance(v, bytes)]
    read, real = [], type(file).read
    counted = lambda self, offset: read.append(offset) or real(self, offset)  # noqa: E731
    monkeypatch.setattr(type(file), "read", counted)
    found.get("d-1", "row")
    assert len(read) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"docid": 1, "text": "a"}\n{"doc', "line 2 is not JSON in UTF-8"),
        ("a.jsonl", "[1, 2]\n", "line 1 is list, not an object"),
        ("a.jsonl", '{"text": "a"}\n', "line 1 has no id; its fields are text"),
        (
            "a.jsonl",
            '{"id": 1, "body": "a"}\n',
            "line 1 has no text; its fields are id",
        ),
        ("a.jsonl", '{"id": 1, "text": null}\n', "the text is None, not a string"),
        ("a.tsv", "1\ta\n2 b\n", "line 2 has 1 cells: .*id, text and maybe title"),
        ("a.parquet", "PAR1", r"a\.parquet \(4 bytes\) is not a whole Parquet file"),
        ("a.xls", "1,a\n", "unknown type '.xls' of a file of texts; known are .jsonl"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        opened(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_no_files_and_empty_ones(tmp_path):
    with pytest.raises(InputError, match=r"config\.data\.corpus: no file matches"):
        opened(tmp_path / "nothing.tsv")
    write_tsv(tmp_path / "a.tsv", {"1": " "})
    with pytest.raises(InputError, match=r"row 4: the text of the id '1' .*is empty"):
        opened(tmp_path / "a.tsv").get("1", "row 4")
    (tmp_path / "b.tsv").write_text("")
    with pytest.raises(InputError, match=r"\(0 texts\)"):
        opened(tmp_path / "b.tsv").get("1", "row 4")


def test_judgements(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\tc\t1\n")
    assert read_qrels(path) == {"q1": {"a": 2, "b": 0}, "q2": {"c": 1}}
    path.write_text("query-id\tcorpus-id\tscore\nq1 a 1\n")
    with pytest.raises(InputError, match=r"train\.tsv, line 2 is \['q1 a 1'\]"):
        read_qrels(path)


def saved(path, **splits):
    datasets = pytest.importorskip("datasets")
    rows = {
        name: datasets.Dataset.from_dict({"_id": list(t), "text": list(t.values())})
        for name, t in splits.items()
    }
    whole = datasets.DatasetDict(rows) if len(rows) > 1 else next(iter(rows.values()))
    whole.save_to_disk(path)
    return {"dataset": str(path)}


def test_texts_of_data_sets(tmp_path, monkeypatch):
    """They stay in the data set's own files; languages are told as of files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = saved(tmp_path / "x", train=TEXTS)
    before = pa.total_allocated_bytes()
    found = opened(name)
    assert pa.total_allocated_bytes() == before
    assert found.languages == (ANY,) and len(found) == len(TEXTS)
    for key, text in TEXTS.items():
        assert found.get(key, "row 0") == {ANY: text}
    write_tsv(tmp_path / "en.tsv", {"7": "greetings"})
    several = opened({"en": f"{tmp_path}/en.tsv", "de": name})
    assert several.get("7", "row") == {"en": "greetings", "de": "Grüße"}
    with pytest.raises(InputError, match=r"'D9' is not in /.*x \(4 texts\)"):
        found.get("D9", "row 0")


def test_splits_of_data_sets(tmp_path):
    name = saved(tmp_path / "x", train={"1": "one"}, dev={"1": "other"})
    assert opened(name | {"split": "dev"}).get("1", "row") == {ANY: "other"}
    with pytest.raises(
        InputError,
        match=r"has the splits train, dev\. Say which: .*x', \"split\": 'train'",
    ):
        opened(name)
    with pytest.raises(InputError, match="split 'test'.*could not be read"):
        opened(name | {"split": "test"})
    with pytest.raises(InputError, match="save_to_disk has no subsets"):
        opened(name | {"subset": "part", "split": "dev"})


def test_an_index_of_a_data_set_is_kept(tmp_path, monkeypatch):
    name = saved(tmp_path / "x", train=TEXTS)
    monkeypatch.setattr(index, "_KEPT", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened(name)
    monkeypatch.setattr("lsrjax.data.reading.texts._TableTexts.ids", None)
    assert opened(name).get("7", "row") == {ANY: "Grüße"}


def test_the_state_of_a_data_set_tells_its_contents(tmp_path):
    name = saved(tmp_path / "x", train=TEXTS)
    before = state(name, "config.data.corpus")
    assert state(name, "config.data.corpus") == before
    saved(tmp_path / "y", train={"1": "one"})
    (arrow,) = (tmp_path / "y").glob("*.arrow")
    (old,) = (tmp_path / "x").glob("*.arrow")
    arrow.replace(old)
    assert state(name, "config.data.corpus") != before


def test_a_mark_of_byte_order_is_no_part_of_an_id(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf1\tone\n2\ttwo\n")
    assert opened(tmp_path / "a.tsv").get("1", "row") == {ANY: "one"}
