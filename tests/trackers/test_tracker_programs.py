"""Each tracker with its own program, offline, and a run that is killed and resumed."""

import json
import os
import struct
import subprocess
import sys
import time

import pytest

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.trackers.in_thread import InThread
from lsrjax.trackers.table import TRACKERS
from lsrjax.trackers.tracker import RunFacts

PARAMETERS = {"optim.lr": 2e-5, "loss.kl.weight": 1.0, "git_revision": "0a1b2c+"}
DEV = {"dev_nDCG@10": 0.5, "dev_nDCG@10/da": 0.25, "dev_nDCG@10/ja": 0.75}


def row(step):
    return (step, "query", "da", "et | bibliotek", "pivot", f"library {step}.00")


def session(folder, chosen, first, last, notes, failed=False):
    """Steps of a run; at an even one an evaluation, with all sample texts so far."""
    facts = RunFacts("my run", folder, PARAMETERS)
    (one,) = options.resolve_each(TRACKERS, chosen, "config.log.trackers")
    one.entry.library(one.options)
    tracker = InThread(one, facts, notes.append)
    tracker.stage("align", first)
    for step in range(first + 1, last + 1):
        tracker.log("align", step, {"loss": 1 / step, "active_query_pivot/da": 8.0})
        if step % 2 == 0:
            tracker.log("align", step, DEV, "dev")
            rows = [row(s) for s in range(2, step + 1, 2)]
            tracker.texts("align", step, rows)
    tracker.close(failed, time.monotonic() + 60)


def resumed(folder, chosen):
    """Ends by an error after step 5, and goes on from the checkpoint of step 3."""
    notes = []
    session(folder, chosen, 0, 5, notes, failed=True)
    session(folder, chosen, 3, 8, notes)
    assert notes == []
    path = folder / "trackers" / f"{next(iter(chosen))}.json"
    return json.loads(path.read_text())["id"]


LOSSES = {step: pytest.approx(1 / step) for step in range(1, 9)}


def test_tensorboard_reads_a_resumed_run_as_one(tmp_path):
    pytest.importorskip("tensorboardX")
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    resumed(tmp_path, {"tensorboard": {}})
    assert len(list((tmp_path / "tensorboard" / "align").iterdir())) == 2
    found = event_accumulator.EventAccumulator(
        str(tmp_path / "tensorboard" / "align"),
        {event_accumulator.TENSORS: 0, event_accumulator.SCALARS: 0},
    ).Reload()
    steps = [(e.step, e.value) for e in found.Scalars("loss")]
    assert dict(steps) == LOSSES and len(steps) == 8
    assert [e.step for e in found.Scalars("dev_nDCG_10/ja")] == [2, 4, 6, 8]
    texts = {
        e.step: e.tensor_proto.string_val[0].decode()
        for e in found.Tensors("texts/text_summary")
    }
    assert set(texts) == {2, 4, 6, 8}
    assert "| 6 | query | da | et \\| bibliotek | pivot | library 6.00 |" in texts[6]
    (config, *_) = found.Tensors("config/text_summary")
    assert "| git_revision | 0a1b2c+ |" in config.tensor_proto.string_val[0].decode()


def test_tensorboard_leaves_out_what_was_rolled_back(tmp_path):
    pytest.importorskip("tensorboardX")
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    (one,) = options.resolve_each(TRACKERS, {"tensorboard": {"folder": "tb"}}, "")
    tracker = InThread(one, RunFacts("my run", tmp_path, {}), print)
    for first, value in ((0, 9.0), (2, 1.0)):
        tracker.stage("align", first)
        for step in range(first + 1, 5):
            tracker.log("align", step, {"loss": value})
    tracker.close(False, time.monotonic() + 60)
    found = event_accumulator.EventAccumulator(str(tmp_path / "tb" / "align")).Reload()
    steps = [(e.step, e.value) for e in found.Scalars("loss")]
    assert steps == [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0)]


def wandb_records(path):
    """The records of an offline run: chunks of LevelDB's log behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too small for the head of a chunk
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    id = resumed(tmp_path, {"wandb": {"project": "milco"}})
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{id}.wandb"))
    assert len(files) == 2  # `wandb sync` joins files of one id
    records = [record for path in files for record in wandb_records(path)]
    logged = [
        {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    steps = [
        (one["align/step"], one["align/loss"]) for one in logged if "align/loss" in one
    ]
    assert dict(steps) == LOSSES and len(steps) == 8
    dev = [one["align/step"] for one in logged if "align/dev_nDCG@10/ja" in one]
    assert dev == [2, 4, 6, 8]
    rows = [one["align/texts/nrows"] for one in logged if "align/texts/nrows" in one]
    assert rows == [1, 2, 3, 4]
    runs = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    assert {(one.run_id, one.project, one.display_name) for one in runs} == {
        (id, "milco", "my run")
    }
    config = {
        item.key: json.loads(item.value_json)
        for record in records
        for item in record.config.update
    }
    assert config["git_revision"] == "0a1b2c+" and config["optim.lr"] == 2e-5


def test_wandb_without_an_account_is_refused_before_it_would_ask(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    program = "from lsrjax.trackers.wandb import Wandb\nWandb.library(Wandb.Options())"
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    environ["NETRC"] = str(tmp_path / "netrc")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True
    )
    assert "InputError" in done.stderr and "there is no account" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_mlflow_goes_on_with_the_same_run(tmp_path, monkeypatch, store):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    if store == "file":
        uri = f"file://{tmp_path}/mlruns"
    id = resumed(tmp_path, {"mlflow": {"uri": uri, "experiment": "milco"}})
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("milco")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == id and run.info.run_name == "my run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {key: str(value) for key, value in PARAMETERS.items()}
    steps = [(m.step, m.value) for m in client.get_metric_history(id, "align/loss")]
    assert dict(steps) == LOSSES and len(steps) == 8
    dev = client.get_metric_history(id, "align/dev_nDCG_10.ja")
    assert sorted(m.step for m in dev) == [2, 4, 6, 8]
    path = mlflow.artifacts.download_artifacts(
        run_id=id, artifact_path="texts/align.json", tracking_uri=uri
    )
    with open(path) as file:
        table = json.load(file)
    assert table["data"] == [list(row(step)) for step in (2, 4, 6, 8)]
    assert table["columns"][0] == "step"
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_trackio_goes_on_with_the_same_run(tmp_path):
    pytest.importorskip("trackio")
    # trackio takes its folder from the environment, once.
    program = f"""
import json, pathlib, sys
sys.path += {sys.path!r}
from trackers import test_tracker_programs as tests
folder = pathlib.Path({str(tmp_path)!r})
id = tests.resumed(folder, {{"trackio": {{"project": "milco"}}}})
from trackio.sqlite_storage import SQLiteStorage
logs = SQLiteStorage.get_logs("milco", id)
found = {{"id": id, "runs": SQLiteStorage.get_runs("milco"), "logs": logs}}
found["config"] = SQLiteStorage.get_run_config("milco", id)
(folder / "found.json").write_text(json.dumps(found, default=str))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # its banner goes to the log
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["runs"] == [found["id"]]
    assert found["config"]["git_revision"] == "0a1b2c+"
    logs = found["logs"]
    steps = [(one["step"], one["align/loss"]) for one in logs if "align/loss" in one]
    assert dict(steps) == LOSSES and len(steps) == 8
    dev = [one["step"] for one in logs if "align/dev_nDCG@10/ja" in one]
    assert dev == [2, 4, 6, 8]
    tables = [one["align/texts"] for one in logs if "align/texts" in one]
    rows = [table["_value"] for table in tables]
    assert [len(one) for one in rows] == [1, 2, 3, 4]
    assert rows[0][0]["text"] == "et | bibliotek"


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_missing_library_is_reported_with_its_extra(name, monkeypatch):
    library = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, library, None)
    (one,) = options.resolve_each(TRACKERS, {name: {}}, "config.log.trackers")
    with pytest.raises(InputError, match=rf"pip install 'lsrjax\[{name}\]'"):
        one.entry.library(one.options)
