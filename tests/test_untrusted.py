"""What files that come with a model may not do: name code, or other folders."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from programs import tiny

from lsrjax import lookup, options
from lsrjax.checkpoint import saved_model
from lsrjax.checkpoint.names_on_disk import MODEL_FILE
from lsrjax.config import get_default
from lsrjax.convert.read import modules, sentence_transformers
from lsrjax.errors import InputError
from lsrjax.models import heads
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import kept_config

SPEC = RetrieverSpec.of(
    "dense", tiny.encoder(vocab_size=7, hidden_size=4, num_heads=1, max_positions=8)
)
PAYLOAD = """
import pathlib
from lsrjax.models.layers import Head

pathlib.Path('ran').touch()


class H(Head):
    pass
"""


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A module beside a model, in the current folder, that leaves a trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "payload_beside.py").write_text(PAYLOAD)
    return tmp_path


def write_model(folder, head):
    values = SPEC.to_dict() | {"head": head}
    if head == "payload_beside.H":
        values["options"] = {}
    (folder / MODEL_FILE).write_text(json.dumps(values))


def test_an_entry_among_a_model_s_options_is_one_of_its_table(payload, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        inner: object = options.option("dense", "a head", table=heads.HEADS)

    own = type("Own", (heads.HEADS["dense"],), {"Options": Options})
    monkeypatch.setitem(heads.HEADS, "own", own)
    values = SPEC.to_dict() | {"head": "own"}
    nested = {"inner": {"name": "csr", "latents": 99}}
    found = RetrieverSpec.from_dict(values | {"options": nested})
    inner = found.options.inner
    assert (inner.name, inner.options.latents) == ("csr", 99)
    written = json.loads(json.dumps(found.to_dict()))
    assert RetrieverSpec.from_dict(written) == found
    assert found.replaced(query_prompt="x").options == found.options
    with pytest.raises(InputError, match="is none of"):
        RetrieverSpec.from_dict(values | {"options": {"inner": "payload_beside.H"}})
    assert "payload_beside" not in sys.modules and not (payload / "ran").exists()


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("model", "head", {"name": "payload_beside.H"}),
        ("model", "family", {"name": "payload_beside.H"}),
        ("regularizer", "name", "payload_beside.H"),
        ("regularizer", "schedule", {"name": "payload_beside.H"}),
        (None, "loss", {"payload_beside.H": {}}),
    ],
)
def test_a_run_s_kept_config_imports_nothing(group, field, value, payload):
    config, run = get_default(), payload / "run"
    run.mkdir()
    kept_config.keep(config, run)
    kept = json.loads((run / "config.json").read_text())
    (kept if group is None else kept[group])[field] = value
    (run / "config.json").write_text(json.dumps(kept))
    (run / "train").mkdir()
    (run / "train" / "done.json").write_text('{"steps": 1}')
    with pytest.raises(InputError, match="holds a run with another config"):
        kept_config.keep(config, run)
    assert "payload_beside" not in sys.modules and not (payload / "ran").exists()


@pytest.mark.parametrize(
    "head",
    [
        "payload_beside.H",
        "payload_beside.nothing",
        "lsrjax.models.heads.SpladeHead",  # harmless, but not by that name
        "unheard",
        "",
        ["payload_beside.H"],
        None,
    ],
)
def test_a_head_of_a_file_is_one_of_the_table(head, payload):
    write_model(payload, head)
    with pytest.raises(InputError, match=r"model\.json: The head .* is none of") as e:
        saved_model.load_spec(payload)
    assert "'splade'" in str(e.value) and "config.model.head" in str(e.value)
    assert "payload_beside" not in sys.modules and not (payload / "ran").exists()
    write_model(payload, "dense")
    assert saved_model.load_spec(payload) == SPEC


def test_a_head_that_the_user_names_is_read(payload):
    write_model(payload, "payload_beside.H")
    try:
        own = heads.own_head("payload_beside.H", "--head")
        assert (payload / "ran").exists()
        assert saved_model.load_spec(payload).head == "payload_beside.H"
        assert heads.head_class("payload_beside.H") is own
    finally:
        sys.modules.pop("payload_beside", None)
        lookup._IMPORTED.pop("payload_beside.H", None)


@pytest.mark.parametrize("program", ["encode", "convert"])
def test_the_programs_run_nothing_of_a_model(program, payload):
    write_model(payload, "payload_beside.H")
    (payload / "texts.txt").write_text("a\n")
    options = {
        "encode": ["--model", ".", "--texts", "texts.txt", "--out", "o.npz"],
        "convert": ["--from", ".", "--to", "lsrjax", "--out", "o"],
    }[program]
    found = subprocess.run(
        [sys.executable, "-m", f"lsrjax.{program}", *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr and not (payload / "ran").exists()


@pytest.fixture
def model(tmp_path):
    """A folder beside which there is another, and links in it to both."""
    root = tmp_path / "model"
    (root / "1_Pooling").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (root / "away").symlink_to(tmp_path / "other")
    (root / "again").symlink_to(root / "1_Pooling")
    return root


@pytest.mark.parametrize("name", ["", ".", "1_Pooling", "again", "1_Pooling/../again"])
def test_folders_of_modules_are_inside(name, model):
    assert modules.inside(model, name, model / "modules.json") == model / name


@pytest.mark.parametrize(
    "name",
    [
        *("..", "../other", "1_Pooling/../../other", "away", "away/x", "/", 7, None),
        *("a\0b", "1_Pooling/\ud800"),
    ],
)
def test_folders_of_modules_lead_nowhere_else(name, model):
    with pytest.raises(InputError, match=r"modules\.json names the folder .* inside"):
        modules.inside(model, name, model / "modules.json")
    absolute = str(model.parent / "other")
    with pytest.raises(InputError, match="not inside of"):
        modules.inside(model, absolute, model / "modules.json")


def test_a_folder_of_sentence_transformers_is_read_from_itself_alone(model):
    there = "sentence_transformers.models."
    listed = [
        {"type": f"{there}Transformer", "path": ""},
        {"type": f"{there}Pooling", "path": "../other"},
    ]
    (model / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match=r"names the folder '\.\./other'"):
        sentence_transformers.read(str(model))
