"""What a run pushes to the hub, when, and that it cannot be hurt by it."""

import json
import pathlib
import runpy
import threading

import pytest
from programs import local_hub
from rich.console import Console

from lsrjax.checkpoint import digests
from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default
from lsrjax.config.secrets import hidden
from lsrjax.distributed import activity
from lsrjax.errors import InputError
from lsrjax.training import pushes, run

GOLDEN = pathlib.Path(__file__).parents[1] / "configs" / "golden_infonce.py"
TOKEN = "hf_" + "a" * 30


class Checkpoints:
    """All steps are complete; the second is the best."""

    def wait(self):
        pass

    def best(self):
        return 0.9, 20


class Child:
    """Stands in for the process; `code` is what each ends with."""

    code, error, asked = 0, "", ()
    held = threading.Event()

    def __init__(self, command, **options):
        Child.asked += (json.loads(command[-1]),)
        assert options["env"]["JAX_PLATFORMS"] == "cpu"
        self.returncode = self.code

    def communicate(self):
        self.held.wait(10)
        return "https://hub/me/model\n", self.error

    def poll(self):
        return self.returncode


@pytest.fixture
def pushed(tmp_path, monkeypatch):
    """Steps that are pushed of a run of three checkpoints, and what it says."""
    monkeypatch.setattr(digests, "recorded_steps", lambda folder: [10, 20, 30])
    monkeypatch.setattr(pushes.subprocess, "Popen", Child)
    monkeypatch.setattr(pushes.huggingface_hub, "get_token", lambda: TOKEN)
    Child.asked, Child.code, Child.error, Child.held = (), 0, "", threading.Event()
    Child.held.set()

    def go(when, repo="me/model", use="last"):
        config = get_default()
        config.checkpoint.use = use
        config.checkpoint.push, config.checkpoint.push_when = repo, when
        notes = []
        one = pushes.Pushes(tmp_path, config, Checkpoints(), notes.append)
        for step in (10, 20, 30):
            one.saved(step, last=step == 30)
            while one._thread and not one._due.empty():
                pass
        one.finish(activity.Progress())
        one.stop()
        return [asked["step"] for asked in Child.asked], notes

    return go


def test_the_end_is_pushed_once(pushed):
    steps, notes = pushed("end")
    assert steps == [30]
    assert notes == ["  Step 30 is pushed to https://hub/me/model"]
    assert Child.asked[0]["repo"] == "me/model" and "head" not in Child.asked[0]


def test_the_end_is_the_checkpoint_in_use(pushed):
    assert pushed("end", use="best")[0] == [20]


def test_every_one_is_pushed_but_those_overtaken(pushed):
    steps, notes = pushed("every")
    assert steps[-1] == 30 and steps == sorted(set(steps)) and len(notes) == len(steps)


def test_the_best_is_pushed_where_it_is_new(pushed):
    assert pushed("best")[0] == [20]


def test_nothing_is_pushed_unasked(pushed):
    assert pushed("end", repo="") == ([], [])


def test_a_failure_is_said_without_the_token(pushed):
    Child.code, Child.error = 1, f"401 for {TOKEN}, sk-{'b' * 30}"
    steps, (note,) = pushed("end")
    assert steps == [30]
    assert note == (
        "  Step 30 was not pushed to me/model, and the run goes on: 401 for ***, ***"
    )


def test_tokens_are_hidden():
    assert hidden(f"a {TOKEN} b") == "a *** b" and hidden("secret", "secret") == "***"


def test_bad_settings_are_refused(monkeypatch):
    config = runpy.run_path(str(GOLDEN))["get_config"]()
    config.checkpoint.push = "me/model"
    validate(config)
    config.checkpoint.push_when = "best"
    with pytest.raises(
        InputError, match="push_when is 'best', but dev.source is empty"
    ):
        validate(config)
    config.checkpoint.push_when, config.checkpoint.push = "every", ""
    with pytest.raises(InputError, match="push_when = 'every' would have no effect"):
        validate(config)
    config.checkpoint.push, config.checkpoint.push_when = "a/b/c", "end"
    with pytest.raises(InputError, match="push is 'a/b/c'; give the id of a reposit"):
        validate(config)
    config.checkpoint.push = "me/model"
    monkeypatch.setattr(pushes.huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="there is no login .*`hf auth login`"):
        pushes.check(config)


@pytest.mark.slow
def test_a_run_pushes_its_model_to_the_hub(tmp_path, monkeypatch):
    config = runpy.run_path(str(GOLDEN))["get_config"]()
    config.steps, config.optim.warmup_steps, config.data.length_parts = 1, 0, 1
    config.checkpoint.push = "me/tiny"
    with local_hub.serve() as server, open(tmp_path / "log", "w") as log:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", local_hub.TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        run.run(config, tmp_path / "run", Console(file=log))
        files = server.repositories["me/tiny"]
        assert server.made == {"me/tiny": True}
    assert {"README.md", "config.json", "model.safetensors"} <= files.keys()
    said = (tmp_path / "log").read_text()
    assert "Step 1 is pushed to" in " ".join(said.split())
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = [*files.values(), *(path.read_bytes() for path in kept)]
    assert not any(local_hub.TOKEN.encode() in one for one in written)
