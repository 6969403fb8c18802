"""docs/python.md and README: their Python runs as it is, one after the other."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from programs.layouts import jsonl, lines

ROOT = pathlib.Path(__file__).parents[2]
PAGE, README = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("docs/python.md", "README.md")
)
CONFIG = """
from lsrjax.config import entry, get_default


def get_config():
    c = get_default()
    c.model.head, c.model.family = "splade", "bert"
    c.model.hidden_size = c.model.intermediate_size = 32
    c.model.num_layers = c.model.num_heads = 1
    c.tokenizer, c.init.lexical = "embedded:english", True
    c.data.source = entry("files", files="train.jsonl")
    c.data.query_length = c.data.document_length = 16
    c.loss = {"infonce": {}}
    c.batch_size, c.steps, c.data.length_parts = 4, 2, 1
    return c
"""
TEXTS = ["puzzle game", "boot loader", "image viewer", "mail server", "text editor"]


def write_data(folder):
    (folder / "my_search.py").write_text(CONFIG)
    rows = [{"query": text, "pos": [f"a {text} for all"]} for text in TEXTS]
    jsonl(folder / "train.jsonl", rows)
    data = folder / "my_data"
    texts = enumerate(TEXTS)
    jsonl(data / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in texts])
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(TEXTS)]
    jsonl(data / "queries.jsonl", asked)
    lines(data / "qrels" / "test.txt", [f"q{i} 0 d{i} 1" for i in range(len(TEXTS))])


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path):
    write_data(tmp_path)
    command = tmp_path / "bin" / "lsrjax"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lsrjax "$@"\n')
    command.chmod(0o755)
    page, readme = (
        re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for text in (PAGE, README)
    )
    assert len(page) == 6 and len(readme) == 1
    code = [*page[:-1], *readme, page[-1]]
    done = subprocess.run(
        [sys.executable, "-c", "".join(code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "Stage train" in said
    assert re.search(r"^puzzle game \[\('\w+', [\d.]+\)", said, re.MULTILINE)
    assert "puzzle game 0 " in said and "boot loader 2 " in said
    *_, last = said.strip().splitlines()
    assert re.fullmatch(r"\{'model': [\d.]+, 'bm25': 1\.0\}", last)
