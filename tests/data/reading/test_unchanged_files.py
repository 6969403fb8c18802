"""Data files that are not what they were when the run began."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry
from lsrjax.data.reading import unchanged_files
from lsrjax.data.sources import open_source
from lsrjax.errors import InputError


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two files of rows, a corpus, and dev data."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        rows = [
            {"query_text": f"{name} {i}", "positive_document_ids": [str(i)]}
            for i in range(20)
        ]
        pq.write_table(pa.Table.from_pylist(rows), f"{name}.parquet")
    text = "".join(f"{i}\ttext {i}\n" for i in range(20))
    (tmp_path / "docs.tsv").write_text(text)
    (tmp_path / "dev.jsonl").write_text('{"query": "q", "pos": ["p"]}\n')
    c = get_default()
    c.data.source.files, c.data.corpus = "*.parquet", {"en": "docs.tsv"}
    c.dev.source, c.dev.source.files = "files", "dev.jsonl"
    return c


def check(c, path):
    unchanged_files.check_files(path / unchanged_files.FILE, c.data, c.dev)


def test_every_file_is_told(tmp_path, config):
    check(config, tmp_path)
    written = (tmp_path / unchanged_files.FILE).read_bytes()
    files = json.loads(written)["files"]
    assert list(files) == ["a.parquet", "b.parquet", "docs.tsv", "dev.jsonl"]
    for name, state in files.items():
        stat = os.stat(name)
        assert state["size"] == stat.st_size and state["mtime"] == stat.st_mtime
        assert state["absolute"] == str(tmp_path / name)
        assert state["digest"] == unchanged_files.digest(name)
    assert len({state["digest"] for state in files.values()}) == 4
    os.utime("docs.tsv", (1, 1))  # copied, or restored: the same contents
    check(config, tmp_path)
    assert (tmp_path / unchanged_files.FILE).read_bytes() == written


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def longer(path):
    path.write_bytes(path.read_bytes() + b"21\ta text\n")


def flipped(path):
    """One bit, size and time as before."""
    stat, contents = path.stat(), bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def copied(path):
    path.with_name("c.parquet").write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("docs.tsv", cut, r"docs\.tsv is truncated .*: \d+ bytes then, \d+ now"),
        ("b.parquet", cut, r"b\.parquet is truncated .*bytes then"),
        ("docs.tsv", longer, r"docs\.tsv has grown: \d+ bytes then, \d+ now"),
        ("dev.jsonl", flipped, r"dev\.jsonl has other contents of the same size \(29"),
        ("a.parquet", flipped, r"a\.parquet has other contents of the same size"),
        ("a.parquet", os.unlink, r"a\.parquet is missing"),
        ("a.parquet", copied, r"c\.parquet is new"),
    ],
)
def test_a_change_is_refused_and_named(tmp_path, config, name, change, message):
    check(config, tmp_path)
    before = (tmp_path / unchanged_files.FILE).read_bytes()
    change(tmp_path / name)
    for _ in range(2):
        with pytest.raises(InputError, match=message) as error:
            check(config, tmp_path)
    assert str(error.value).count("\n  ") == 1
    assert "start over with another --workdir" in str(error.value)
    assert (tmp_path / unchanged_files.FILE).read_bytes() == before
    assert "--accept_changed_data" in str(error.value)


@pytest.mark.parametrize("change", [cut, longer, flipped, os.unlink, copied])
def test_a_change_is_accepted_by_saying_so_and_named(tmp_path, config, change):
    path = tmp_path / unchanged_files.FILE
    check(config, tmp_path)
    assert unchanged_files.accept(path, config.data, config.dev, []) == []
    change(tmp_path / "a.parquet")
    (said,) = unchanged_files.accept(path, config.data, config.dev, [])
    assert ("c.parquet" if change is copied else "a.parquet") in said
    check(config, tmp_path)
    assert json.loads(path.read_text())["accepted"] == [[said]]


def test_data_sets_and_folders(tmp_path, config):
    own = data_set(source=entry("files", files="a.parquet"), corpus="docs.tsv")
    beir = data_set(
        source=entry("files", files="beir"), format=entry("beir", split="dev")
    )
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv"):
        path = tmp_path / "beir" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    with config.unlocked():
        config.data.sets = {"one": own, "two": beir}
    check(config, tmp_path)
    files = json.loads((tmp_path / unchanged_files.FILE).read_text())["files"]
    names = ["corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"]
    shown = [f"beir/{name}" for name in names]
    assert list(files) == ["a.parquet", "docs.tsv", *shown, "dev.jsonl"]


def test_large_files_are_read_in_part(tmp_path, monkeypatch):
    """Both ends, and blocks in between: of 1,000 bytes, 20 + 20 and 9 times 10."""
    for name, size in (("_WHOLE", 500), ("_END", 20), ("_BLOCK", 10), ("_BLOCKS", 10)):
        monkeypatch.setattr(unchanged_files, name, size)
    path = tmp_path / "x"
    contents = bytes(range(250)) * 4
    path.write_bytes(contents)
    wanted = unchanged_files.digest(path)
    seen = []
    for i in range(1000):
        path.write_bytes(contents[:i] + b"\xff" + contents[i + 1 :])
        seen += [i] if unchanged_files.digest(path) != wanted else []
    blocks = [i for start in range(100, 1000, 100) for i in range(start, start + 10)]
    assert seen == [*range(20), *blocks, *range(980, 1000)]
    path.write_bytes(contents[:500])
    wanted = unchanged_files.digest(path)
    for i in (0, 250, 499):
        path.write_bytes(contents[:i] + b"\xff" + contents[i + 1 : 500])
        assert unchanged_files.digest(path) != wanted


def test_embedded_data_needs_none(tmp_path):
    c = get_default()
    c.data.source = "debian"
    check(c, tmp_path)
    unchanged_files.check_versions(tmp_path / unchanged_files.FILE, [object()])
    assert not list(tmp_path.iterdir())


def test_a_damaged_manifest_is_named(tmp_path, config):
    (tmp_path / unchanged_files.FILE).write_text('{"files": ')
    with pytest.raises(InputError, match=r"data\.json is damaged .*Delete it"):
        check(config, tmp_path)


def test_versions_of_data_sets(tmp_path):
    """The fingerprint of `datasets` is that of what was saved."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path / unchanged_files.FILE
    c = get_default()
    c.data.source = entry("datasets", dataset=str(tmp_path / "x"))
    rows = [{"query": "q", "pos": ["p"]}]
    for count, fits in ((1, True), (1, True), (2, False)):
        data = datasets.Dataset.from_list(rows * count)
        if not path.is_file() or not fits:
            data.save_to_disk(tmp_path / "x")
        sources = [open_source(c.data, "group")]
        if fits:
            unchanged_files.check_versions(path, sources)
            found = json.loads(path.read_text())["versions"][str(tmp_path / "x")]
            assert (
                f"fingerprint {sources[0].versions[c.data.source.dataset][-16:]}"
                in found
            )
            continue
        with pytest.raises(InputError, match=r"data set .*x was .*fingerprint"):
            unchanged_files.check_versions(path, sources)
