"""Our ColBERT in PyLate and in the program of ColBERT's authors, as released."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from retrievers import CASES, TEXTS, assert_same, model_of, ours

from lsrjax.convert import targets
from lsrjax.retrieval.maxsim import TokenMatrix

PROGRAM = pathlib.Path(__file__).parents[1] / "programs" / "colbert_elsewhere.py"
# What they import, where it is not here in the version that they ask for; their search
# engines, which ask for more, are not used.
LIBRARIES = (
    *("transformers==4.57.6", "huggingface-hub>=0.34,<1", "tokenizers>=0.22,<0.23"),
    *("sentence-transformers==5.3.0", "datasets==4.5.0", "accelerate", "ninja"),
    *("bitarray", "ujson==5.12.0", "fastkmeans==0.5.0", "GitPython", "gitdb", "smmap"),
    *("setuptools<81", "pylate==1.6.0", "colbert-ai==0.2.22"),
)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """A folder with both programs."""
    folder = tmp_path_factory.mktemp("programs")
    wanted = ["--quiet", "--no-deps", "--target", str(folder), *LIBRARIES]
    subprocess.run([sys.executable, "-m", "pip", "install", *wanted], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["pylate", "pylate xlm-roberta", "colbert", "colbert xlm-roberta"]
)
def test_vectors_are_the_same_in_their_program(libraries, case, tmp_path):
    program = case.split()[0]
    if program == "colbert" and not shutil.which("g++"):
        pytest.skip("ColBERT compiles a part of itself; there is no g++")
    model, folder, given = model_of(case), tmp_path / "model", tmp_path / "texts.json"
    folder.mkdir()
    targets.TARGETS[CASES[case][0]].write(model, folder)
    given.write_text(json.dumps(TEXTS), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(libraries),
        "HF_HUB_OFFLINE": "1",
        # For ninja, and where it builds.
        "PATH": f"{libraries / 'bin'}:{os.environ['PATH']}",
        "TORCH_EXTENSIONS_DIR": str(libraries / "built"),
    }
    command = [sys.executable, PROGRAM, program, folder, given, tmp_path / "found.npz"]
    subprocess.run(command, env=environment, check=True)
    with np.load(tmp_path / "found.npz") as found:
        for role in ("query", "document"):
            tokens = TokenMatrix(found[f"{role}_tokens"], found[f"{role}_starts"])
            assert_same(tokens, ours(model, TEXTS, role))
