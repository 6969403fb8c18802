"""`results.json`: one shape, which is read back, of runs and evaluations."""

import json

import pytest

from lsrjax.errors import InputError
from lsrjax.retrieval import results_file


def task(value):
    results = {"b": {"ja": {"nDCG@10": value}, "de": {"nDCG@10": 1.0}}}
    return {"metrics": ["nDCG@10"], "data": {"p": {"queries": 2}}, "results": results}


def test_results_are_read_back_in_their_order_and_written_as_a_whole(tmp_path):
    path = tmp_path / "results.json"
    assert results_file.read(path) == {"tasks": {}}
    tasks = {"z": task(0.25), "a": task(0.5)}
    results_file.write(path, tasks, model="m")
    content = path.read_text("utf-8")
    found = results_file.read(path)
    assert found.pop("lsrjax") and found == {"model": "m", "tasks": tasks}
    assert list(found["tasks"]) == ["z", "a"] and content.index("ja") < content.index(
        "de"
    )
    with pytest.raises(ValueError, match=r"a: nDCG@10 of b in ja is not finite"):
        results_file.write(path, {"z": task(0.25), "a": task(float("nan"))})
    assert path.read_text("utf-8") == content
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_runs_of_the_first_release_had_systems_beside_tasks(tmp_path):
    values = {"nDCG@10": 0.5, "multilingual nDCG@10": 0.25, "query_terms": 3.0}
    old = {"bm25": {"en": values}, "tasks": {"own": task(0.5)}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(old))
    tasks = results_file.read(path)["tasks"]
    assert list(tasks) == ["debian/english", "own"] and tasks["own"] == task(0.5)
    assert tasks["debian/english"] == {
        "metrics": ["nDCG@10", "multilingual nDCG@10"],
        "data": {},
        "results": {"bm25": {"en": values}},
    }


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"lsrjax": "1", "tasks": []}', '{"lsrjax": "1", "tasks": {"a": {}}}']
    + ['{"train": []}', '{"bm25": {"en": 3}}', '{"bm25": {"en": {"RR": "x"}}}'],
)
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"results\.json is damaged"):
        results_file.read(path)
