"""Paths as users write them."""

import os
import socket

import pytest

from lsrjax import paths
from lsrjax.data.reading.files import found_files
from lsrjax.errors import InputError


def known(path):
    return path.endswith((".jsonl", ".parquet"))


def found(pattern):
    return paths.files(str(pattern), "config.data.source.files", known)


def made(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_home_and_file_urls():
    home = os.environ["HOME"]
    assert paths.local("~/a/b", "x") == f"{home}/a/b" and paths.local("~", "x") == home
    for url in (
        *("file:///a/b c", "file://localhost/a/b%20c", "file:/a/b c"),
        *("FILE:///a/b c", "File://LOCALHOST/a/b c"),
    ):
        assert paths.local(url, "x") == "/a/b c"
    for plain in ("a/b", "./~", "/a", "a:b", "en:/a", "me/data"):
        assert paths.local(plain, "x") == plain


def test_a_percent_sign_in_the_name_of_a_file(tmp_path):
    made(tmp_path, "50%20.jsonl")
    url = f"file://{tmp_path}/50%20.jsonl"
    assert paths.local(url, "x") == f"{tmp_path}/50%20.jsonl"


@pytest.mark.parametrize(
    "url",
    [
        *("gs://b/run", "s3://b", "hf://datasets/a", "gs:/b", "GS://b"),
        *("file://elsewhere/run", "file:run", "file://~/run"),
    ],
)
def test_other_places_are_refused_and_named(url, tmp_path):
    with pytest.raises(InputError, match=f"--workdir: '{url}' is not on this machine"):
        paths.local(url, "--workdir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("gs://b/run", ("gs", "b", "run")),
        ("s3://my.bucket/runs/a b/", ("s3", "my.bucket", "runs/a b")),
    ],
)
def test_a_work_directory_may_be_in_a_bucket(place, parts):
    assert paths.workdir(place, "--workdir") == place
    assert paths.in_bucket(place) and paths.parts_of(place) == parts


def test_of_a_bucket_a_work_directory_is_a_part(tmp_path):
    for place in ("gs://b", "s3://b/"):
        with pytest.raises(InputError, match=r"whole bucket.*3?://b/runs/first"):
            paths.workdir(place, "--workdir")
    for place in ("hf://b/a", "gs:/b/a", "gs:///a", "abfs://b/a"):
        with pytest.raises(InputError, match="is not on this machine"):
            paths.workdir(place, "--workdir")
    assert paths.workdir("~/a", "x") == paths.local("~/a", "x")
    assert not paths.in_bucket("runs/a") and not list(tmp_path.iterdir())


def test_an_unknown_home_is_refused():
    with pytest.raises(InputError, match="~nobody-of-this-name/a.*does not know"):
        paths.local("~nobody-of-this-name/a", "x")


@pytest.mark.parametrize("folder", ["[set 1]", "a*b", "what?", "x,y", "{a}", "[!a]"])
def test_what_exists_is_taken_for_itself(tmp_path, folder):
    made(tmp_path, f"{folder}/a.jsonl", f"{folder}/b.jsonl", "s/other.jsonl")
    assert found(f"{folder}/a.jsonl") == [f"{folder}/a.jsonl"]
    assert found(f"{folder}/*.jsonl") == [f"{folder}/a.jsonl", f"{folder}/b.jsonl"]
    several = (f"{folder}/a.jsonl", "s/*.jsonl")
    assert found_files(several, "x") == [f"{folder}/a.jsonl", "s/other.jsonl"]


def test_patterns_leave_folders_out(tmp_path):
    made(tmp_path, "in/a.jsonl", "in/old.jsonl/b.jsonl")
    assert found("in/*.jsonl") == ["in/a.jsonl"]
    assert found("in/**/*.jsonl") == ["in/a.jsonl", "in/old.jsonl/b.jsonl"]
    assert found("nothing*") == []


def test_what_is_no_file_is_named_and_never_opened(tmp_path):
    """To open a pipe that nobody writes to would wait forever."""
    made(tmp_path, "a.jsonl")
    os.mkfifo("pipe.jsonl")
    with pytest.raises(InputError, match=r"pipe\.jsonl is a pipe or device, not a fi"):
        found("*.jsonl")
    with pytest.raises(InputError, match=r"pipe\.jsonl is a pipe or device"):
        found("pipe.jsonl")
    os.remove("pipe.jsonl")
    os.symlink("nowhere", "link.jsonl")
    with pytest.raises(InputError, match=r"link\.jsonl is a link to nothing"):
        found("*.jsonl")
    os.remove("link.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jsonl")
        with pytest.raises(InputError, match=r"s\.jsonl is a pipe or device"):
            found("*.jsonl")


def test_a_folder_of_shards(tmp_path):
    """As a clone of a data set of the hub has them: what is beside them is not read."""
    made(
        tmp_path,
        *(f"clone/data/train-0000{i}-of-00003.parquet" for i in range(3)),
        *("clone/README.md", "clone/.git/x.parquet", "clone/data/_SUCCESS.parquet"),
        "clone/dataset_infos.json",
    )
    shards = [f"clone/data/train-0000{i}-of-00003.parquet" for i in range(3)]
    assert found("clone") == found("clone/data/") == shards or found("clone/data/")
    assert [os.path.normpath(path) for path in found("clone/data/")] == shards
    made(tmp_path, "parts/lang=de/a.parquet", "parts/lang=en/a.parquet")
    assert len(found("parts")) == 2


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("data/train-0.parquet", "data/test-0.parquet"), r"splits \(test, train\)"),
        (("train.jsonl", "validation.jsonl"), r"splits \(train, validation\)"),
        (("a/0.parquet", "b/0.parquet"), r"folders \(a, b\)"),
    ],
)
def test_a_folder_of_several_sets_is_not_read_as_one(tmp_path, names, what):
    made(tmp_path / "clone", *names)
    with pytest.raises(InputError, match=f"clone has files of several {what}"):
        found("clone")
    assert len(paths.files("clone", "x", known, whole=True)) == 2
