"""The evaluation of a run: files with hand-computed numbers, and what is printed.

Two stages are played by models that know the words of a tiny corpus.
"""

import io
import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from programs.layouts import jsonl, lines
from rich.console import Console
from scipy import sparse

from lsrjax.checkpoint import results_file
from lsrjax.config import check_tasks
from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default
from lsrjax.data.debian_texts.embedded import LANGUAGES, load
from lsrjax.data.examples import Group, Pair
from lsrjax.errors import InputError
from lsrjax.retrieval import task_tables
from lsrjax.training import evaluate_run

CONCEPTS = {"library": 0, "図書": 0, "maus": 1, "mouse": 1, "server": 2, "editor": 3}
GROUPS = [
    Group("a", {"en": "library", "ja": "図書"}, [{"en": "a library [i]"}], []),
    Group("b", {"en": "mouse", "de": "maus"}, [{"en": "mouse tool"}], []),
    Group("c", {"en": "server", "de": "server"}, [{"en": "a server"}], []),
    # Its document equals that of the first.
    Group("d", {"en": "library too"}, [{"en": "a library [i]"}], []),
]
PAIRS = [Pair("1", "library", "図書", "ja"), Pair("2", "a tool", "ein werkzeug", "de")]


class Model:
    """Finds documents by concept; without a pivot view, by none but English words."""

    def __init__(self, stage):
        sizes = {"terms": 4} if stage == "teacher" else {"pivot": 4, "source": 4}
        token = types.SimpleNamespace(token=lambda i: list("LMSE")[i])
        self.encoder = types.SimpleNamespace(
            spec=types.SimpleNamespace(views=sizes, sparse=True), tokenizer=token
        )
        self.pivot_tokenizer = token

    def queries(self, texts, languages=None):
        rows = np.zeros((len(texts), 4), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                if word in CONCEPTS:
                    row[CONCEPTS[word]] += 1.5
        first, *other = self.encoder.spec.views
        views = {first: sparse.csr_matrix(rows)}
        return views | {view: sparse.csr_matrix(0 * rows) for view in other}

    documents = queries

    def knows(self, language):
        return True


@pytest.fixture
def config():
    teacher, student, run = (get_default() for _ in range(3))
    teacher.data.query_languages = {"en": 1}
    student.data.query_languages = {"en": 1, "ja": 2}  # of which German is no part
    with run.unlocked():
        run.stages = ConfigDict({"teacher": teacher, "align": student}, sort_keys=False)
    run.evaluate.test = "debian"
    run.evaluate.examples = ("de", "ja", "ko")
    return run


@pytest.fixture
def evaluated(config, tmp_path, monkeypatch):
    """The folder of an evaluated run."""
    examples = {("group", "test"): GROUPS, ("pair", "train"): PAIRS}
    monkeypatch.setattr(
        evaluate_run.embedded, "examples", lambda *which: examples[which]
    )
    monkeypatch.setattr(
        evaluate_run.saved_model, "load_model", lambda folder: folder.name
    )
    monkeypatch.setattr(
        evaluate_run.stage_models, "placed", lambda stage, model, mesh: model
    )
    monkeypatch.setattr(
        evaluate_run.Searcher, "of", lambda model, *_, stated: Model(model)
    )
    console = Console(file=io.StringIO(), width=80)
    evaluate_run.evaluate_run(config, tmp_path, console)
    said = " ".join(console.file.getvalue().split())
    assert (
        said == "Evaluating 7 queries in 3 languages on 4 documents of the test split."
    )
    return tmp_path


def test_results_are_by_system_language_and_metric(evaluated):
    tasks = results_file.read(evaluated)["tasks"]
    assert list(tasks) == ["debian/english", "debian/mixed"]
    found, mixed = (task["results"] for task in tasks.values())
    baselines = ["bm25", "bm25 n-grams", "ibm model 1"]
    models = ["teacher", "align", "align pivot", "align source"]
    assert list(found) == [*baselines, *models]
    assert list(mixed) == [name for name in found if name != "teacher"]
    columns = ["en", "de", "ja", "mean", "worst"]
    assert all(list(found[name]) == columns for name in baselines)
    assert list(found["teacher"]) == ["en"]
    both = {"nDCG@10", "R@100"}
    assert set(found["bm25"]["mean"]) == both
    terms = {"query_terms", "document_terms", "index_bytes"}
    assert set(found["teacher"]["en"]) == both | terms
    assert set(found["align"]["ja"]) == set(mixed["align"]["ja"]) == both | terms

    scores = {
        system: {
            language: values["nDCG@10"] for language, values in by_language.items()
        }
        for system, by_language in found.items()
    }
    assert [*scores["bm25"].values()] == [1.0, 0.5, 0.0, 0.25, 0.0]
    # Only the pairs tell that 図書 is a library; none has the word maus.
    assert scores["bm25 n-grams"] == scores["bm25"]
    assert [*scores["ibm model 1"].values()] == [1.0, 0.5, 1.0, 0.75, 0.5]
    assert scores["teacher"] == {"en": 1.0}
    # The mean is over the languages but English, all of them for every system.
    everything = dict.fromkeys(columns, 1.0)
    assert scores["align"] == scores["align pivot"] == everything
    assert set(scores["align source"].values()) == {0.0}
    assert found["align pivot"]["de"]["query_terms"] == 1.0
    assert found["align source"]["de"]["document_terms"] == 0.0


def test_examples_are_queries_that_only_the_last_model_answers(evaluated):
    german, japanese = json.loads((evaluated / "examples.json").read_text())
    assert (german["query"], german["lang"]) == ("maus", "de")
    assert (japanese["query"], japanese["lang"]) == ("図書", "ja")
    assert german["terms"] == {"pivot": [["M", 1.5]], "source": []}
    assert german["found"] == [[1, "mouse", True]]
    assert german["because"] == [["M", "pivot", 2.25]]
    assert japanese["found"] == [[1, "library", True]]  # the first of two titles


def test_tables_and_examples_fit_eighty_columns(evaluated):
    console = Console(file=io.StringIO(), width=80)
    evaluate_run.show(evaluated, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines[:-3])) <= 80
    text = "\n".join(lines)
    for part in (
        "debian/english: nDCG@10",
        "debian/english: R@100",
        "debian/mixed: nDCG@10",
        "debian/mixed: query_terms",
        "cost of a document: active terms, bytes in an index",
        "mean over all languages but en",
        "maus",
        "図書",
    ):
        assert part in text
    rows = [line.split() for line in lines if line.startswith("align source")]
    assert rows[0] == ["align", "source", *[".000"] * 5]
    # Each document holds one word that the models know.
    speed = json.loads((evaluated / "speed.json").read_text())
    assert list(speed) == ["teacher", "align"] and min(speed.values()) > 0
    costs = [line.split() for line in lines if line.startswith("align pivot")][3]
    assert costs[2:] == ["1.0", "6", "-"]
    # BM25 has no terms to count, and the teacher no German.
    assert sum(line.startswith("bm25 n-grams") for line in lines) == 4
    teacher = next(line for line in lines if line.startswith("teacher"))
    assert teacher.split() == ["teacher", "1.000", *"----"]


def test_without_examples_none_are_shown(config, tmp_path, monkeypatch, evaluated):
    config.evaluate.examples = ()
    console = Console(file=io.StringIO(), width=80)
    evaluate_run.evaluate_run(config, tmp_path, console)
    assert json.loads((tmp_path / "examples.json").read_text()) == []
    evaluate_run.show(tmp_path, console)
    assert "one a language" not in console.file.getvalue()


def edit(folder):
    path = folder / "results.json"
    path.write_text(path.read_text().replace("1.0", "2.0"))


def cut(folder):
    path = folder / "results.json"
    path.write_bytes(path.read_bytes()[:40])


def lose(folder):
    (folder / "examples.json").unlink()


def lose_digests(folder):
    (folder / results_file.DIGESTS_FILE).unlink()


def edit_digests(folder):
    path = folder / results_file.DIGESTS_FILE
    path.write_text(path.read_text().replace("1", "2", 1))


@pytest.mark.parametrize("damage", [edit, cut, lose, lose_digests, edit_digests])
def test_results_that_are_not_as_they_were_written_are_set_aside(evaluated, damage):
    folder = evaluated
    console = Console(file=io.StringIO(), width=200)
    assert evaluate_run.are_sound(folder, console)
    assert not console.file.getvalue()
    assert len(results_file.read(folder)["tasks"]) == 2
    damage(folder)
    left = [path.name for path in folder.glob("*.json") if "config" not in path.name]
    if damage in (edit, cut, edit_digests):
        with pytest.raises(InputError, match="not as they were written"):
            results_file.read(folder)
    assert not evaluate_run.are_sound(folder, console)
    assert "not as they were written" in console.file.getvalue()
    assert not (folder / "results.json").exists()
    aside = folder / "damaged" / "results"
    assert {path.name for path in aside.iterdir()} == set(left)


def test_languages_that_the_data_does_not_have_are_refused():
    assert load("dev").languages == load("test").languages == LANGUAGES
    c = get_default()
    c.steps = 1
    c.model.head = "splade"
    c.tokenizer = "embedded:english"
    c.data.source = c.evaluate.test = "debian"
    c.loss = {"infonce": {}}
    c.evaluate.examples = ("ja", "jp")
    with pytest.raises(InputError, match=r"config\.evaluate\.examples names jp; .*ja"):
        validate(c)
    c.evaluate.examples = ("ja",)
    validate(c)
    c.data.query_languages = {"en": 1, "cz": 2, "*": 0}
    with pytest.raises(
        InputError, match=r"config\.data\.query_languages names cz, but"
    ):
        validate(c)


def test_tasks_are_evaluated_with_the_last_stage_and_put_into_results(
    config, tmp_path, evaluated, capsys
):
    data = tmp_path / "data"
    jsonl(
        data / "corpus.jsonl",
        [{"_id": "1", "text": "a library"}, {"_id": "2", "text": "server"}],
    )
    jsonl(
        data / "queries.jsonl",
        [{"_id": "q", "text": "図書"}, {"_id": "r", "text": "server"}],
    )
    lines(data / "qrels" / "test.tsv", ["q\t1\t2", "r\t2\t1"])
    config.evaluate.tasks = {"own": {"name": "beir", "path": str(data)}}
    config.evaluate.test = ""
    config.evaluate.examples = ()
    workdir = tmp_path / "run"
    workdir.mkdir()
    console = Console(file=io.StringIO(), width=80)
    evaluate_run.evaluate_run(config, workdir, console)
    found = results_file.read(workdir)
    assert list(found) == ["lsrjax", "tasks"]
    results = found["tasks"]["own"]["results"]
    assert list(results) == ["bm25", "align", "align pivot", "align source"]
    assert results["align"]["all"]["nDCG@10"] == 1.0
    assert results["bm25"]["all"]["nDCG@10"] == 0.5
    assert evaluate_run.are_sound(workdir, console)
    evaluate_run.show(workdir, console)
    assert "own: nDCG@10" in console.file.getvalue()
    tables = task_tables.markdown(found["tasks"])
    assert "| align | **1.000** |" in tables and "beir/all: 2 documents" in tables


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"bier": {}}, r"tasks\['bier'\] is 'bier'; known: 'beir'"),
        ({"beir": {"pth": "x"}}, "the nearest is .*path"),
        ({"own": "beir"}, "give a dict of the task's options"),
        ({"debian/mixed": {"name": "debian"}}, "has the name of a table of config"),
        ({"own": {"name": "clef", "path": "x"}}, "languages is empty"),
    ],
)
def test_tasks_that_cannot_be_used_are_named(config, tasks, message):
    config.evaluate.tasks = tasks
    with pytest.raises(InputError, match=message):
        check_tasks.evaluated(config)
