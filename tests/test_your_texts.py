"""docs/your_texts.md: its config and commands, as they are."""

import csv
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from lsrjax import options
from lsrjax.config import check_run
from lsrjax.data.debian_texts import embedded
from lsrjax.retrieval import metrics
from lsrjax.retrieval.runs import read_run
from lsrjax.retrieval.tasks.table import TASKS, loaded

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS, QUERIES, TRAINED = 300, 60, 640


def section():
    return (ROOT / "docs" / "your_texts.md").read_text(encoding="utf-8")


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_data(folder):
    """Titles as queries for their texts; the ids of the first queries' documents."""
    train, held_out = (
        [(group.query["en"], group.positives[0]["en"]) for group in groups]
        for groups in (
            itertools.islice(embedded.examples("group", "train"), TRAINED),
            itertools.islice(embedded.examples("group", "dev"), DOCUMENTS),
        )
    )
    write_lines(folder / "train.jsonl", ({"query": q, "pos": [d]} for q, d in train))
    data = folder / "my_data"
    (data / "qrels").mkdir(parents=True)
    texts = ({"_id": f"d{i}", "text": d} for i, (_, d) in enumerate(held_out))
    write_lines(data / "corpus.jsonl", texts)
    asked = ({"_id": f"q{i}", "text": held_out[i][0]} for i in range(QUERIES))
    write_lines(data / "queries.jsonl", asked)
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(QUERIES))
    (data / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The folder in which all commands have run, and what they printed, by command."""
    pytest.importorskip("seismic")
    pytest.importorskip("milvus_lite")
    folder = tmp_path_factory.mktemp("path")
    write_data(folder)
    config = section().split("```python\n")[1].split("```")[0]
    (folder / "my_search.py").write_text(config)
    printed = []
    lines = [line for line in section().splitlines() if line.startswith("    lsrjax ")]
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(line)],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        printed.append((line.split()[1], done.stdout))
    return folder, printed


def test_one_table_becomes_a_benchmark_and_training_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [(f"query {i // 2}", f'text "{i}", größer\n') for i in range(60)]
    with open("pairs.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("query", "text"), *pairs])
    exec(section().split("```python\n")[2].split("```")[0], {})
    chosen = options.resolve(TASKS, {"name": "beir", "path": "my_data"}, "task")
    (task,) = loaded(chosen)
    assert task.corpus[:] == [text for _, text in pairs]
    # A tenth of 30, with all of their texts.
    numbers = [int(query.split()[1]) for query in task.queries]
    assert len(set(numbers)) == 3
    assert task.relevant == [{2 * n: 1, 2 * n + 1: 1} for n in numbers]
    lines = pathlib.Path("train.jsonl").read_text("utf-8").splitlines()
    trained = [json.loads(line) for line in lines]
    rest = [{"query": q, "pos": [t]} for q, t in pairs if q not in task.queries]
    assert trained != rest and sorted(map(str, trained)) == sorted(map(str, rest))


def test_one_table_of_several_languages_becomes_a_benchmark_of_each(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # The same query in both, and a text that both have.
    pairs = [(f"query {i}", f"text {max(i, 9)}") for i in range(30)]
    rows = [(language, *pair) for pair in pairs for language in ("de", "ja")]
    with open("pairs.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("language", "query", "text"), *rows])
    exec(section().split("```python\n")[2].split("```")[0], {})
    given = {"name": "beir", "path": "my_data/{language}", "languages": ["de", "ja"]}
    tasks = list(loaded(options.resolve(TASKS, given, "task")))
    lines = pathlib.Path("train.jsonl").read_text("utf-8").splitlines()
    trained = [json.loads(line) for line in lines]
    for task, language in zip(tasks, ("de", "ja"), strict=True):
        assert len(task.queries) == 3 and len(task.corpus) == 21
        own = [row["query"] for row in trained if row["language"] == language]
        assert sorted([*own, *task.queries]) == sorted(query for query, _ in pairs)
    # One index has the texts of all.
    first, second = (set(task.document_ids) for task in tasks)
    assert not first & second


def test_the_config_of_several_languages_can_be_run():
    made: dict = {}
    exec(section().split("```python\n")[3].split("```")[0], made)
    check_run.validate(made["get_config"]())


@pytest.mark.slow
def test_every_command_of_the_path_runs(path):
    names = [name for name, _ in path[1]]
    assert names == "train evaluate encode index search index search".split()


@pytest.mark.slow
def test_the_model_is_evaluated_beside_bm25(path):
    folder, printed = path
    written = json.loads((folder / "results" / "results.json").read_text("utf-8"))
    found = written["tasks"]["beir"]["results"]
    assert set(found) == {"model", "bm25"}
    table = dict(printed)["evaluate"]
    for system, values in found.items():
        ndcg = values["all"]["nDCG@10"]
        assert 0.6 < ndcg < 1
        assert re.search(rf"^{system} +{f'{ndcg:.3f}'[1:]}", table, re.MULTILINE)


@pytest.mark.slow
def test_one_query_shows_documents_and_the_terms_that_matched(path):
    shown = next(text for name, text in path[1] if name == "search")
    assert re.search(r"terms [\d.]+: puzzle [\d.]+ \([\d.]+ x [\d.]+\)", shown)


@pytest.mark.slow
def test_the_run_of_milvus_finds_what_the_queries_ask_for(path):
    folder, _ = path
    run = read_run(folder / "run.trec")
    assert len(run) == QUERIES
    ranked = [sorted(run[f"q{i}"], key=run[f"q{i}"].get)[::-1] for i in range(QUERIES)]
    hits = np.array(
        [[int(d[1:]) for d in (some + ["d-1"] * 10)[:10]] for some in ranked]
    )
    values = metrics.per_query(hits, list(range(QUERIES)), ["nDCG@10"])["nDCG@10"]
    written = json.loads((folder / "results" / "results.json").read_text("utf-8"))
    exact = written["tasks"]["beir"]["results"]["model"]["all"]["nDCG@10"]
    assert values.mean() == pytest.approx(exact, abs=0.02)
