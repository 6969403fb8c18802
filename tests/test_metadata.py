"""One version, wherever a reader or a program looks for it."""

import pathlib
import re
import subprocess
import sys

import lsrjax

ROOT = pathlib.Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere():
    command = [sys.executable, "setup.py", "--version"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == lsrjax.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {lsrjax.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", changes, re.MULTILINE)[0] == lsrjax.__version__


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests/)?[\w/]+(?:\.py|/))`", text)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "lsrjax" / name).exists(), name
    for table, file in {
        "HEADS": "models/heads.py",
        "LOSSES": "losses/table.py",
        "REGULARIZERS": "losses/regularizers.py",
        "SOURCES": "data/sources.py",
        "FORMATS": "data/reading/formats.py",
        "MIXERS": "data/batching/mixing.py",
        "SAMPLERS": "data/batching/negatives.py",
        "TARGETS": "convert/targets.py",
        "COMMANDS": "__main__.py",
    }.items():
        assert f"`{table}`" in text
        code = (ROOT / "lsrjax" / file).read_text(encoding="utf-8")
        assert re.search(rf"^{table}\b.* = \{{", code, re.MULTILINE), table
