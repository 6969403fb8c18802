import ast
import functools
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "lsrjax").rglob("*.py"))
# Shipped inside of exported folders, to run in other programs without this package.
TEMPLATES = [path for path in FILES if path.parent.name == "templates"]
FILES = [path for path in FILES if path not in TEMPLATES]

# From the bottom to the top; each room imports only those before it.
ROOMS = [
    "errors",
    "lookup",
    "options",
    "finite",
    "json_files",
    "paths",
    "ops",
    "distributed",
    "models",
    "tokenizer",
    "data",
    "losses",
    "optimizers",
    "retrieval",
    "checkpoint",
    "convert",
    "initial",
    "trackers",
    "config",
    "training",
    "api",
    "cli",
    "bench",
]
# `python -m lsrjax.encode` and its like, which start what is in cli/.
COMMANDS = {"__main__.py", "main.py", "encode.py", "doctor.py"} | {
    f"{room}/__main__.py" for room in ("checkpoint", "convert")
}


@functools.cache
def imported(path):
    """The modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("lsrjax.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    relative = path.relative_to(ROOT / "lsrjax")
    rooms = {name.split(".")[1] for name in imported(path)}
    if str(relative) in COMMANDS:
        assert rooms <= {"cli", "bench", "errors"}
    elif str(relative) == "__init__.py":
        assert rooms == {"api"}  # for type checkers, and when a call is first used
    else:
        own = relative.parts[0].removesuffix(".py")
        assert rooms <= set(ROOMS[: ROOMS.index(own) + 1])


def test_contributors_are_shown_the_rooms_from_the_top():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = text[text.index("## Find your way") :].split("\n    configs/")[0]
    rooms = re.findall(r"^ {6}(\w+)(?:/|\.py) {2,}\S", shown, re.MULTILINE)
    assert rooms == ROOMS[::-1]


def test_no_file_of_the_package_imports_another_in_a_circle():
    names = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES
    }
    graph = {
        name: {
            other
            for other in names.values()
            if any(
                one == other or one.startswith(f"{other}.") for one in imported(path)
            )
        }
        for path, name in names.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def made_in(path):
    """The names that a file defines, wherever in the file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)} | {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def test_names_are_imported_from_the_file_that_makes_them():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES
    }
    made = {name: made_in(path) for name, path in modules.items()}
    again = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        for name in imported(path)
        if name not in modules and f"{name}.__init__" not in modules
        if name.rpartition(".")[2] not in made.get(name.rpartition(".")[0], ())
    ]
    assert not again


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_what_is_shipped_runs_without_us(path):
    known = {*sys.stdlib_module_names, "torch", "transformers"}
    if path.name.startswith("sparse_encoder"):
        known.add("sentence_transformers")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level:
            assert path.with_name(f"{node.module}.py") in TEMPLATES
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        assert {name.split(".")[0] for name in names} <= known


def test_data_is_numpy_but_for_the_loader():
    frameworks = {"jax", "flax", "optax", "grain", "torch", "transformers"}
    for path in (ROOT / "lsrjax" / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            found = {name.split(".")[0] for name in names} & frameworks
            needed = {"loader.py": {"grain"}}.get(path.name, set())
            assert found <= needed, path


def python(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_the_package_imports_at_once():
    code = """
import sys
before = set(sys.modules)
import lsrjax
print(*sorted(set(sys.modules) - before))
"""
    # Nothing beyond the standard library, and little of that.
    loaded = set(python(code).split())
    assert {name.split(".")[0] for name in loaded} <= {
        "lsrjax",
        *sys.stdlib_module_names,
    }
    assert not {name for name in loaded if name.startswith("lsrjax.")}
    assert len(loaded) < 30, loaded


def test_training_on_embedded_data_needs_no_other_framework():
    code = """
import sys
import lsrjax.cli.train, lsrjax.training.run, lsrjax.data.batching.loader
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.retrieval.bm25 import BM25

groups = embedded.examples("group", "dev")
TextTokenizer(embedded.MULTILINGUAL_TOKENIZER).batch(["a text"], 8, (4,))
BM25([groups[i].positives[0]["en"] for i in range(20)]).search(["library"], 3)
others = ["torch", "transformers", "datasets", "tensorflow_datasets", "tensorflow"]
others += ["tensorboard", "wandb", "mlflow", "matplotlib"]
print([name for name in others if name in sys.modules])
"""
    assert python(code) == "[]"
