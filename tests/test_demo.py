"""The demo as a user runs it: what docs/start.md promises of its results."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_student_beats_the_baselines_and_the_aligned_student(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "lsrjax.main", "--config", "configs/demo.py"]
        + ["--workdir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    ndcg = {
        system: {language: values["nDCG@10"] for language, values in languages.items()}
        for system, languages in results.items()
    }
    baselines = {"bm25", "bm25 n-grams", "ibm model 1"}
    assert baselines | {"teacher", "align", "contrast"} <= set(ndcg)
    student, table = ndcg["contrast"], ndcg["ibm model 1"]
    assert student["mean"] > 0.7 and student["en"] > ndcg["bm25 n-grams"]["en"]
    assert sum(student[lang] > table[lang] for lang in student if lang != "mean") >= 11
    assert student["mean"] > max(
        ndcg[f"contrast {view}"]["mean"] for view in ("pivot", "source", "surface")
    )
    assert student["mean"] > ndcg["align"]["mean"]
    for text in ("bm25", "contrast", "nDCG@10", "R@100", "active terms"):
        assert text in process.stdout
    # What docs/start.md says of the baselines.
    for name, mean in (
        ("bm25", 0.383),
        ("bm25 n-grams", 0.497),
        ("ibm model 1", 0.665),
    ):
        assert ndcg[name]["mean"] == pytest.approx(mean, abs=6e-4)
    multilingual = {
        system: results[system]["mean"]["multilingual nDCG@10"]
        for system in ("contrast", *baselines)
    }
    assert max(multilingual, key=multilingual.get) == "contrast"
