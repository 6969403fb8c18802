"""To and from a local stand-in for the Hugging Face hub's HTTP API."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import milco_models
import pytest
import retrievers
from programs import from_hub, local_hub

from lsrjax.cli import convert
from lsrjax.convert import open_model, targets
from lsrjax.convert.read import hub
from lsrjax.errors import InputError
from lsrjax.training import model_origins

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture
def server(monkeypatch):
    real = huggingface_hub.HfApi
    with local_hub.serve() as server:

        def local(**options):
            return real(endpoint=server.address, token=server.token, **options)

        server.token = local_hub.TOKEN
        monkeypatch.setattr(huggingface_hub, "HfApi", local)
        yield server


@pytest.mark.parametrize("public", [False, True])
def test_an_export_is_uploaded_whole(server, tmp_path, capsys, public):
    out = tmp_path / "out"
    command = ["--from", str(GOLDEN / "bert"), "--to", "lsrjax", "--out", str(out)]
    convert.main([*command, "--push", "someone/tiny", *["--public"] * public])
    assert server.made == {"someone/tiny": not public}
    written = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }
    assert server.repositories["someone/tiny"] == written and written
    assert f"Uploaded to {server.address}/someone/tiny" in capsys.readouterr().out


@pytest.fixture
def weights(server, tmp_path, monkeypatch):
    """A folder whose weights the hub wants in its storage."""
    # Xet, the client's other way, is a protocol of a compiled library.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "config.json").write_text("{}")
    names = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for size, name in enumerate(names, start=3):
        (tmp_path / name).write_bytes(bytes(range(256)) * 1000 * size)
    server.large = names
    return tmp_path


def test_large_files_go_to_the_hub_s_storage(server, weights):
    hub.push(weights, "someone/tiny")
    written = {path.name: path.read_bytes() for path in weights.iterdir()}
    assert server.repositories["someone/tiny"] == written and len(written) == 3
    large = [hashlib.sha256(written[name]).hexdigest() for name in server.large]
    assert sorted(server.stored) == sorted(server.verified) == sorted(large)
    # What is there already is not sent again.
    server.repositories["someone/tiny"].clear()
    hub.push(weights, "someone/tiny")
    assert server.repositories["someone/tiny"] == written and len(server.verified) == 2


def test_storage_that_takes_no_more_makes_no_commit(server, weights):
    server.full = True
    with pytest.raises(InputError, match="is written, but was not uploaded"):
        hub.push(weights, "someone/tiny")
    assert not server.repositories["someone/tiny"] and len(list(weights.iterdir())) == 3


def test_a_refusal_leaves_the_folder_and_says_what_to_do(server, tmp_path):
    server.token = "hf_wrong"
    (tmp_path / "file").write_text("content")
    with pytest.raises(InputError, match=r"401(.|\n)*`hf auth login`(.|\n)*hf upload"):
        hub.push(tmp_path, "someone/tiny")
    assert (tmp_path / "file").exists() and not server.repositories


def test_no_hub_there(server, tmp_path, monkeypatch):
    server.address = "http://127.0.0.1:9"  # discard; nobody listens
    with pytest.raises(InputError, match="is written, but was not uploaded"):
        hub.push(tmp_path, "someone/tiny")


def test_a_name_that_cannot_be(server, tmp_path):
    with pytest.raises(InputError, match="--push a/b/c"):
        hub.push(tmp_path, "a/b/c")
    assert not server.requests


def test_public_without_push(tmp_path, capsys):
    command = ["--from", "x", "--to", "lsrjax", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        convert.main([*command, "--public"])
    assert "add --push" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "target"),
    [
        ("splade", "splade"),
        ("splade towers", "splade"),
        ("words", "inference-free"),
        ("csr", "csr"),
        ("multi-vector", "multi-vector"),
    ],
)
def test_a_run_pushes_the_format_of_the_model_s_own_library(
    case, target, tmp_path, monkeypatch
):
    """The first that takes it, whatever transformers says of its tokenizer."""
    monkeypatch.setattr(targets, "_check_tokens", lambda model, folder: None)
    assert targets.write_first(retrievers.model_of(case), tmp_path / "out") == target
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.slow
def test_models_by_their_ids(tmp_path):
    milcos = ("milco-hf", "milco-reference", "milco-sparse-encoder", "lsrjax")
    models = {target: milco_models.made("echo") for target in milcos}
    cases = {"words": "inference-free", "splade towers": "splade"}
    cases |= {name: name for name in ("csr", "multi-vector", "colbert")}
    for case, target in cases.items():
        models[target] = retrievers.model_of(case)
    folder = tmp_path / "models"
    with local_hub.serve() as server:
        for target, model in models.items():
            (folder / target).mkdir(parents=True)
            targets.TARGETS[target].write(model, folder / target)
            server.repositories[f"someone/{target}"] = {
                path.relative_to(folder / target).as_posix(): path.read_bytes()
                for path in (folder / target).rglob("*")
                if path.is_file()
            }
        server.gated.add("someone/gated")
        program = [sys.executable, from_hub.__file__, str(folder), "someone"]
        environ = os.environ | {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": local_hub.TOKEN,
        }
        ended = subprocess.run(program, env=environ, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert "is gated: accept its terms" in said.pop("gated")
    assert "no repository of this id" in said.pop("unknown")
    assert said.keys() == models.keys()
    for target, same in said.items():
        assert all(same.values()), (target, same)
        assert ("vectors" in same) == (target not in from_hub.READ_HERE)


@pytest.mark.parametrize("place", ["~/run", "file://{home}/run", "file://{home}/a%20b"])
def test_a_model_trained_here_is_found_as_paths_are_written(
    place, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["--from", str(GOLDEN / "bert"), "--to", "lsrjax"]
    convert.main([*command, "--out", str(tmp_path / "run")])
    shutil.copytree(tmp_path / "run", tmp_path / "a b")
    reference = place.format(home=tmp_path)
    found = open_model.open_model(reference, tmp_path)
    assert found.spec == open_model.open_portable(reference).spec
    assert found.spec.head == "splade"
    assert model_origins._state(reference, tmp_path)["files"]


def test_models_elsewhere_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'gs://b/m' is not on this machine"):
        open_model.open_model("gs://b/m", tmp_path)
