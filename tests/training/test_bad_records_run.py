"""Runs on data with bad records: to their end where allowed, else stopped clearly."""

import io
import json
import pathlib
import runpy

import pytest
from programs import launch
from rich.console import Console

from lsrjax.errors import InputError
from lsrjax.training import run

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "with_bad_records.py"
NAMED = "train/bad_records.jsonl"
# Of 100 rows.
KINDS = {
    3: "empty text",
    17: "wrong type",
    31: "broken UTF-8",
    58: "broken JSON",
    66: "bad score",
    90: "no scores",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rows = [
        {
            "query": f"old file {i}",
            "pos": ["the library reads files"],
            "neg": ["small fonts", f"screen {i}"],
            "pos_scores": [2.0],
            "neg_scores": [1.0, 0.5],
        }
        for i in range(100)
    ]
    rows[3]["pos"], rows[17]["query"] = [" "], 17
    rows[66]["neg_scores"] = [1.0, float("nan")]
    rows[90]["pos_scores"] = rows[90]["neg_scores"] = None
    lines = [json.dumps(row).encode() for row in rows]
    lines[31] = lines[31].replace(b"small", b"sm\xffll")
    lines[58] = lines[58][:-5]
    path = tmp_path_factory.mktemp("data") / "x.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture
def config(file, monkeypatch):
    monkeypatch.setenv("BAD_RECORDS_FILE", str(file))
    return runpy.run_path(str(CONFIG))["get_config"]()


def run_quietly(config, workdir):
    console = Console(file=io.StringIO(), width=300)
    run.run(config, workdir, console)
    return console.file.getvalue()


@pytest.mark.slow
def test_a_run_stops_clearly_and_goes_on_when_allowed(config, file, tmp_path):
    """And data that has changed in between is refused."""
    config.data.bad_records = 0.05
    with pytest.raises(InputError) as error:
        run_quietly(config, tmp_path)
    assert str(error.value).startswith("6 bad records (")
    assert "config.data.bad_records = 0.05 allows 5:" in str(error.value)
    assert not (tmp_path / "train" / "done.json").exists()

    config.data.bad_records = 0.06
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    try:
        with pytest.raises(InputError, match=r"x\.jsonl is truncated: write it"):
            run_quietly(config, tmp_path)
    finally:
        file.write_bytes(whole)

    said = run_quietly(config, tmp_path)
    assert (tmp_path / "train" / "done.json").exists()
    counts = "1 bad score, 1 broken JSON, 1 broken UTF-8, 1 empty text, 1 no scores"
    assert f"6 bad records were replaced ({counts}, 1 wrong type)" in said
    entries = [json.loads(line) for line in (tmp_path / NAMED).open()]
    assert {e["index"]: e["kind"] for e in entries} == KINDS
    assert [e["line"] for e in entries] == [i + 1 for i in KINDS]
    assert all(e["replaced_by"] not in KINDS for e in entries)


def start(folder, file, monkeypatch, processes, *flags):
    monkeypatch.setenv("BAD_RECORDS_FILE", str(file))
    folder.mkdir(exist_ok=True)
    command = ["-m", "lsrjax.main", "--config", str(CONFIG)]
    command += ["--workdir", str(folder / "run"), *flags]
    return launch.start(command, folder, processes=processes, devices=1)


@pytest.mark.slow
def test_two_processes_name_what_one_names(file, tmp_path, monkeypatch):
    named = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        mesh = f"--config.mesh.data={processes}"
        for started in start(folder, file, monkeypatch, processes, mesh):
            assert started.ends(600) == 0, started.said()
        assert [path.name for path in folder.rglob("bad_records*")] == [NAMED[6:]]
        named.append((folder / "run" / NAMED).read_bytes())
    assert named[0] == named[1] and named[0].count(b"\n") == len(KINDS)


@pytest.mark.slow
def test_too_many_end_every_process(file, tmp_path, monkeypatch):
    flags = ["--config.mesh.data=2", "--config.data.bad_records=0"]
    processes = start(tmp_path / "run", file, monkeypatch, 2, *flags)
    assert [started.ends(600) for started in processes] == [2, 2]
    said = processes[0].said() + processes[1].said()
    assert "bad record" in said and "allows 0:" in said
    assert "Traceback" not in said
