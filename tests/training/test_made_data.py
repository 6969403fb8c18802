"""What is made of a stage's data once is made again when it is of something else."""

import json

import numpy as np
import pytest

from lsrjax.config.fields import get_default
from lsrjax.training import made_data


class Notes(list):
    """Stands for a tracker."""

    note = list.append


def kept(path, key, value, notes):
    def make():
        made.append(key)
        return {"a": np.array([value])}

    made = []
    found = made_data._kept(path, ("a",), make, key, notes)["a"]
    return found.tolist(), bool(made)


def test_arrays_are_made_once_for_what_they_are_made_from(tmp_path):
    path, notes = tmp_path / "x.npz", Notes()
    assert kept(path, "one", 1, notes) == ([1], True)
    assert kept(path, "one", 2, notes) == ([1], False)
    assert not notes
    assert kept(path, "two", 3, notes) == ([3], True)
    assert kept(path, "two", 4, notes) == ([3], False)
    assert len(notes) == 1 and "was made from other data" in notes[0]
    path.write_bytes(path.read_bytes()[:60])
    assert kept(path, "two", 5, notes) == ([5], True)
    assert len(notes) == 2 and "is damaged" in notes[1]


def test_arrays_that_say_nothing_of_their_origin_are_made_again(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([1]))
    assert kept(tmp_path / "x.npz", "one", 2, Notes()) == ([2], True)


def changed_data(config, manifest, models):
    manifest["files"]["rows.jsonl"]["digest"] = "other"


def changed_field(config, manifest, models):
    config.prepare.depth = 49


def changed_nested_field(config, manifest, models):
    config.data.format.query = "question"


def changed_teacher(config, manifest, models):
    models["teacher.model"]["files"]["model.safetensors"] = "other"


def moved(config, manifest, models):
    manifest["files"]["rows.jsonl"]["mtime"] = 2.0
    models["teacher.model"]["name"] = "elsewhere"


def other_threads(config, manifest, models):
    config.data.threads = 7


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (changed_data, True),
        (changed_field, True),
        (changed_nested_field, True),
        (changed_teacher, True),
        (moved, False),
        (other_threads, False),
    ],
)
def test_the_key_is_of_data_fields_and_models(tmp_path, change, differs):
    def key():
        (tmp_path / "data.json").write_text(json.dumps(manifest))
        return made_data._made_from(config, ("prepare", "data"), tmp_path, models)

    config = get_default()
    manifest = {"files": {"rows.jsonl": {"digest": "one", "mtime": 1.0}}}
    models = {"teacher.model": {"name": "t", "files": {"model.safetensors": "one"}}}
    before = key()
    assert key() == before
    change(config, manifest, models)
    assert (key() != before) == differs
