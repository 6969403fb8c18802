"""A model that a stage names is the one that it was begun with."""

import json
import shutil

import pytest

from lsrjax.config.fields import get_default
from lsrjax.convert.read import hub
from lsrjax.errors import InputError
from lsrjax.training import model_origins


@pytest.fixture
def config(tmp_path):
    """A config with a teacher of two files, one of which says nothing of it."""
    teacher = tmp_path / "teacher"
    (teacher / "onnx").mkdir(parents=True)
    (teacher / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_bytes(b"weights")
    (teacher / "README.md").write_text("a model")
    c = get_default()
    c.teacher.model = str(teacher)
    return c


def test_a_teacher_that_has_changed_is_named_with_its_file(config, tmp_path):
    path, teacher = tmp_path / model_origins.FILE, tmp_path / "teacher"
    model_origins.check(path, model_origins.of_stage(config, tmp_path))
    (teacher / "README.md").write_text("a better model")
    model_origins.check(path, model_origins.of_stage(config, tmp_path))
    (teacher / "model.safetensors").write_bytes(b"weightz")
    (teacher / "vocab.txt").write_text("a")
    with pytest.raises(InputError, match="teacher.model = ") as error:
        model_origins.check(path, model_origins.of_stage(config, tmp_path))
    assert "model.safetensors has changed" in str(error.value)
    assert "vocab.txt is new" in str(error.value)
    shutil.rmtree(teacher)
    teacher.mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        model_origins.check(path, model_origins.of_stage(config, tmp_path))


def test_another_name_is_another_field_of_the_config(config, tmp_path):
    path = tmp_path / model_origins.FILE
    model_origins.check(path, model_origins.of_stage(config, tmp_path))
    config.teacher.model = str(shutil.copytree(tmp_path / "teacher", tmp_path / "b"))
    (tmp_path / "b" / "config.json").write_text("[]")
    model_origins.check(path, model_origins.of_stage(config, tmp_path))
    assert json.loads(path.read_text())["teacher.model"]["name"].endswith("b")


def test_a_model_of_the_hub_is_its_commit(monkeypatch, tmp_path):
    commit = ["1111"]
    asked = []

    def fetch(name, patterns):
        asked.append(name)
        return tmp_path / "snapshots" / commit[0]

    monkeypatch.setattr(hub, "fetch", fetch)
    config = get_default()
    config.init.encoder = "somebody/model@main"
    path = tmp_path / model_origins.FILE
    model_origins.check(path, model_origins.of_stage(config, tmp_path))
    commit[0] = "2222"
    with pytest.raises(InputError, match="was commit 1111, and is 2222.*\n.*id@commit"):
        model_origins.check(path, model_origins.of_stage(config, tmp_path))
    assert set(asked) == {"somebody/model@main"}


@pytest.mark.parametrize("damage", ["{", "[]", '{"teacher.model": 1}'])
def test_a_damaged_record_is_named(config, tmp_path, damage):
    path = tmp_path / model_origins.FILE
    path.write_text(damage)
    with pytest.raises(InputError, match=r"models\.json is damaged"):
        model_origins.check(path, model_origins.of_stage(config, tmp_path))


@pytest.mark.parametrize(
    ("name", "pinned"),
    [
        ("somebody/model@5617a9f", ("somebody/model", "5617a9f")),
        ("somebody/model@refs/pr/1", ("somebody/model", "refs/pr/1")),
        ("model", ("model", None)),
    ],
)
def test_an_id_may_be_pinned(monkeypatch, tmp_path, name, pinned):
    assert hub.pinned(name) == pinned and not hub.is_local(name)
    asked = []

    def download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision))
        return str(tmp_path)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    assert hub.fetch(name, ["config.json"]) == tmp_path
    assert asked == [pinned]
