"""The demo as a user runs it: what docs/start.md promises of its results."""

import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from programs import browser

from lsrjax.retrieval import results_file

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that has it as runs/demo, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    process = subprocess.run(
        [sys.executable, "-m", "lsrjax.main", "--config", "configs/demo.py"]
        + ["--workdir", str(folder / "runs/demo")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return folder, process.stdout


@pytest.mark.slow
def test_the_student_beats_the_baselines_and_the_aligned_student(demo):
    folder, printed = demo
    tasks = results_file.read(folder / "runs/demo/results.json")["tasks"]
    results, mixed = (tasks[f"debian/{of}"]["results"] for of in ("english", "mixed"))
    ndcg = {
        system: {language: values["nDCG@10"] for language, values in languages.items()}
        for system, languages in results.items()
    }
    baselines = {"bm25", "bm25 n-grams", "ibm model 1"}
    assert baselines | {"teacher", "align", "contrast"} <= set(ndcg)
    student, table = ndcg["contrast"], ndcg["ibm model 1"]
    assert student["mean"] > 0.7 and student["en"] > ndcg["bm25 n-grams"]["en"]
    assert sum(student[lang] > table[lang] for lang in student if len(lang) == 2) >= 11
    assert student["mean"] > max(
        ndcg[f"contrast {view}"]["mean"] for view in ("pivot", "source", "surface")
    )
    assert student["mean"] > ndcg["align"]["mean"]
    for text in ("bm25", "contrast", "nDCG@10", "R@100", "active terms"):
        assert text in printed
    # What docs/start.md says of the baselines.
    for name, mean in (
        ("bm25", 0.383),
        ("bm25 n-grams", 0.497),
        ("ibm model 1", 0.665),
    ):
        assert ndcg[name]["mean"] == pytest.approx(mean, abs=6e-4)
    multilingual = {
        system: mixed[system]["mean"]["nDCG@10"] for system in ("contrast", *baselines)
    }
    assert max(multilingual, key=multilingual.get) == "contrast"


@pytest.mark.slow
@browser.needed
def test_its_notebook_runs_and_shows_what_it_promises(demo, monkeypatch):
    folder, _ = demo
    python_path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", python_path)
    found = nbformat.read(ROOT / "docs" / "demo.ipynb", 4)
    kept = [cell.outputs for cell in found.cells if cell.cell_type == "code"]
    assert all(kept), "it is executed"
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(found, timeout=600, resources=where).execute()
    cells = [cell for cell in found.cells if cell.cell_type == "code"]
    shown = ["".join(one.get("text", "") for one in cell.outputs) for cell in cells]
    assert any("image/png" in one.get("data", {}) for one in cells[1].outputs)
    for line in shown[2].splitlines():
        assert "e_puzzle" in line and "e_game" in line
    best, *_ = shown[3].splitlines()
    assert "mathematics based puzzle game" in best
    assert len(re.findall("2048 puzzle is mathematics", shown[4])) == 4
