"""What trackers receive of a run, and how a config names them."""

import io
import json
import re
import subprocess
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from lsrjax import options
from lsrjax.checkpoint import saved_model
from lsrjax.config import fields
from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.errors import InputError
from lsrjax.trackers import in_thread
from lsrjax.trackers.table import TRACKERS
from lsrjax.training import other_trackers, run


def config():
    c = get_default()
    c.data.source = "debian"
    c.model.head, c.model.family, c.tokenizer = "splade", "bert", "embedded:english"
    c.loss = {"infonce": {}}
    c.steps = 4
    return c


def chosen(c):
    found = options.resolve_each(TRACKERS, c.log.trackers, "config.log.trackers")
    return {one.name: options.as_dict(one.options) for one in found}


@pytest.mark.parametrize(
    "given",
    ["mlflow", ("mlflow", "tensorboard"), ["tensorboard"], {"mlflow": {"uri": "u"}}],
)
def test_trackers_are_a_name_several_or_a_dict_with_options(given):
    c = config()
    c.log.trackers = given
    validate(c)
    names = [given] if isinstance(given, str) else list(given)
    assert list(chosen(c)) == names
    if isinstance(given, dict):
        assert chosen(c)["mlflow"] == {"uri": "u", "experiment": "lsrjax"}
    kept = json.loads(c.to_json())["log"]["trackers"]
    assert list(kept) == names


@pytest.mark.parametrize(
    "text", ["wandb", "('wandb', 'trackio')", "{'wandb': {'mode': 'offline'}}"]
)
def test_trackers_on_the_command_line(text):
    c = config()
    fields.set_field(c, "log.trackers", text, "--config")
    validate(c)
    assert "wandb" in chosen(c)
    assert ("trackio" in chosen(c)) == ("trackio" in text)
    assert (chosen(c)["wandb"]["mode"] == "offline") == ("offline" in text)


def test_an_option_of_a_tracker_is_set_by_name():
    c = config()
    c.log.trackers = "wandb"
    c.log.trackers.wandb["project"] = "milco"
    assert chosen(c)["wandb"]["project"] == "milco"


@pytest.mark.parametrize(
    "given, message",
    [
        (("tensorbord",), "'tensorbord'; known: 'tensorboard', 'wandb'"),
        ({"mlflow": {"url": "u"}}, "config.log.trackers.mlflow.url"),
        ({"wandb": {"mode": "later"}}, "'later'; known: '', 'online', 'offline'"),
    ],
)
def test_what_no_tracker_has_is_refused(given, message):
    c = config()
    c.log.trackers = given
    with pytest.raises(InputError, match=message):
        validate(c)


def test_trackers_are_of_the_whole_run():
    c = get_default()
    c.stages = {"first": config(), "second": config()}
    c.log.trackers = ("tensorboard",)
    validate(c)
    c.stages.second.log.trackers = ("tensorboard",)
    with pytest.raises(InputError, match="trackers are of the whole run"):
        validate(c)
    c.stages.second.log.trackers = ()
    validate(c)
    c.log.every = 5
    with pytest.raises(InputError, match="log.every = 5 would have no effect"):
        validate(c)


def test_parameters_are_the_config_by_dotted_name():
    c = config()
    c.model.head.pooling = "sum"
    c.log.trackers = {"mlflow": {"uri": "http://user@host"}}
    found = other_trackers.parameters(c)
    assert found["optim.lr"] == 2e-5 and found["model.head.pooling"] == "sum"
    assert found["loss.infonce"] == "{}" and found["trackers"] == "mlflow"
    assert not any("user@host" in str(value) for value in found.values())
    run_of_stages = get_default()
    run_of_stages.stages = {"align": c}
    found = other_trackers.parameters(run_of_stages)
    assert found["align.optim.lr"] == 2e-5 and "optim.lr" not in found


def test_the_revision_is_that_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert other_trackers.revision() == {}

    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "my_config.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert other_trackers.revision() == {"git_revision": head}
    (tmp_path / "my_config.py").write_text("2")
    assert other_trackers.revision() == {"git_revision": f"{head}+"}
    monkeypatch.setenv("PATH", "")
    assert other_trackers.revision() == {}


class Broken:
    """Raises whenever it is called."""

    @staticmethod
    def library(options):
        """Needs none."""

    def __init__(self, options, facts):
        self.id = "broken"

    def __getattr__(self, name):
        raise ConnectionError(f"no {name}")


class Hanging(Broken):
    """Never returns from its first call, nor from its last."""

    def __getattr__(self, name):
        time.sleep(600)


@pytest.mark.slow
def test_a_run_with_broken_trackers_is_the_same_and_goes_on_as_one(
    tmp_path, monkeypatch
):
    """A whole run: two trackers that fail, and TensorBoard over a restart."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(in_thread, "CLOSE_SECONDS", 1.0)
    monkeypatch.setattr(in_thread, "FAILED_SECONDS", 1.0)
    c = config()
    c.model.hidden_size, c.model.num_layers, c.model.intermediate_size = 12, 1, 17
    c.model.num_heads, c.batch_size = 2, 8
    c.data.query_length, c.data.document_length, c.data.length_parts = 8, 12, 1
    c.log.every, c.checkpoint.every = 1, 2
    c.dev.source = entry("debian")
    c.dev.queries, c.dev.every = 20, 2

    def do(folder, trackers=()):
        c.log.trackers = trackers
        console = Console(file=io.StringIO(), width=80)
        run.run(c, tmp_path / folder, console)
        return console.file.getvalue()

    do("alone")
    names = ("tensorboard", f"{__name__}.Broken", f"{__name__}.Hanging")
    with monkeypatch.context() as stopped:
        # Fails behind the checkpoint of step 2, at step 3.
        log = run.trackers.Tracker.log

        def stops(self, step, numbers):
            log(self, step, numbers)
            if step == 3:
                raise KeyboardInterrupt

        stopped.setattr(run.trackers.Tracker, "log", stops)
        with pytest.raises(KeyboardInterrupt):
            do("tracked", names)
    said = do("tracked", names)
    # In a file of 80 columns, nothing is wrapped before the tables of the end.
    lines = said.partition("\n\n")[0].splitlines()
    assert max(map(len, lines)) > 200
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d .", line) for line in lines)
    assert f"tracker {__name__}.Broken failed (ConnectionError" in said
    assert f"tracker {__name__}.Hanging does not answer, and is left" in said
    ours, theirs = (
        saved_model.load_model(tmp_path / folder / "train").params
        for folder in ("tracked", "alone")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    found = accumulator.EventAccumulator(str(tmp_path / "tracked/tensorboard/train"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in found.Scalars("dev_nDCG_10")] == [2, 4]
    assert len(found.Tensors("texts/text_summary")) == 2
    rows = (tmp_path / "tracked/train/texts.jsonl").read_text().splitlines()
    assert {json.loads(row)["step"] for row in rows} == {2, 4}
