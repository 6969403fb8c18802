import concurrent.futures
import hashlib
import os
import random

import numpy as np
import pytest

from lsrjax.data.examples import ANY
from lsrjax.data.reading import id_index
from lsrjax.data.reading.corpus import Corpus
from lsrjax.data.reading.texts import _LineTexts

TEXTS = {f"d{i}": f"text {i}" for i in range(40)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where indexes are kept, of files of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(id_index, "_KEPT", 0)
    return tmp_path / "cache" / "lsrjax"


@pytest.fixture
def scans(monkeypatch):
    """Names of the files that have been read through."""
    read, real = [], _LineTexts.ids
    monkeypatch.setattr(
        _LineTexts, "ids", lambda self: read.append(self.name) or real(self)
    )
    return read


def write(path, texts, time=None):
    path.write_text("".join(f"{key}\t{text}\n" for key, text in texts.items()))
    if time:
        os.utime(path, ns=(time, time))
    return path


def texts_of(files, keys=TEXTS):
    corpus = Corpus(str(files), "config.data.corpus")
    return {key: corpus.get(key, "row 0")[ANY] for key in keys}


def test_a_kept_index_gives_the_same_texts_without_a_scan(tmp_path, folder, scans):
    path = write(tmp_path / "a.tsv", TEXTS)
    assert texts_of(path) == TEXTS and len(scans) == 1
    assert len(list(folder.iterdir())) == 1
    assert texts_of(path) == TEXTS and len(scans) == 1
    (tmp_path / "b.tsv").write_text("e\tmore\n")  # other files: another index
    assert texts_of(tmp_path / "*.tsv") == TEXTS and len(scans) == 3
    assert len(list(folder.iterdir())) == 2


def test_hashes_are_the_same_in_every_process():
    # From coreutils: printf d1 | b2sum -l 64.
    assert id_index.id_hash("d1") == int.from_bytes(
        bytes.fromhex("fcd38eb77616f227"), "little", signed=True
    )


def test_what_is_kept_is_sorted_and_complete(tmp_path, folder):
    texts_of(write(tmp_path / "a.tsv", TEXTS))
    (path,) = folder.iterdir()
    digest, contents = path.read_bytes().split(b"\n", 1)
    assert digest.decode() == hashlib.blake2b(contents, digest_size=16).hexdigest()
    hashes, places = np.frombuffer(contents, np.int64).reshape(2, -1)
    assert sorted(map(id_index.id_hash, TEXTS)) == hashes.tolist()
    assert len(set(places.tolist())) == len(TEXTS)


@pytest.mark.parametrize("changed", ["size", "time", "head", "tail"])
def test_a_changed_file_is_read_again(tmp_path, folder, scans, changed):
    time = 1_600_000_000_000_000_000
    path = write(tmp_path / "a.tsv", TEXTS, time)
    texts_of(path)
    new, key = dict(TEXTS), "d0" if changed == "head" else "d39"
    new[key] = "changed" if changed == "size" else new[key].replace("text", "TEXT")
    write(path, new, time + (changed == "time"))
    assert texts_of(path) == new and len(scans) == 2
    assert len(list(folder.iterdir())) == 1  # the old one has gone


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_a_broken_index_is_made_again(tmp_path, folder, scans, content):
    path = write(tmp_path / "a.tsv", TEXTS)
    texts_of(path)
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9] if content is None else content)
    assert texts_of(path) == TEXTS and len(scans) == 2
    assert kept.read_bytes() == whole


def test_a_flipped_bit_of_an_index_is_found_and_said(tmp_path, folder, scans, caplog):
    path = write(tmp_path / "a.tsv", TEXTS)
    texts_of(path)
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    rng = random.Random(0)
    places = rng.sample(range(8 * len(whole)), 40)
    for count, place in enumerate(places, start=2):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        kept.write_bytes(flipped)
        caplog.clear()
        assert texts_of(path) == TEXTS and len(scans) == count
        assert f"{kept} is damaged; it is made again" in caplog.text
        assert kept.read_bytes() == whole


def test_several_make_it_at_once(tmp_path, folder):
    """A reader sees a whole index or none, whatever the others are doing."""
    path = write(tmp_path / "a.tsv", TEXTS)

    def one(seed):
        if random.Random(seed).random() < 0.5:
            for kept in folder.glob("*.index"):
                kept.unlink(missing_ok=True)
        return texts_of(path)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(found == TEXTS for found in pool.map(one, range(100)))
    texts_of(path)
    assert [kept.suffix for kept in folder.iterdir()] == [".index"]


def test_runs_where_nothing_can_be_written(tmp_path, monkeypatch, folder, scans):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write(tmp_path / "a.tsv", TEXTS)
    assert texts_of(path) == TEXTS == texts_of(path) and len(scans) == 2


def test_small_files_leave_nothing_behind(tmp_path, folder, monkeypatch):
    path = write(tmp_path / "a.tsv", TEXTS)
    monkeypatch.setattr(id_index, "_KEPT", path.stat().st_size + 1)
    assert texts_of(path) == TEXTS and not folder.exists()
