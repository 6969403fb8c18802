import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "lsrjax").rglob("*.py"))
# Shipped inside of exported folders, to run in other programs without this package.
TEMPLATES = [path for path in FILES if path.parent.name == "templates"]
FILES = [path for path in FILES if path not in TEMPLATES]

# What everybody may import.
COMMON = {"errors", "finite", "paths", "progress", "tables", "trees"}
# What each part of the package may import of the others, besides. A part may import its
# own modules; programs may import whatever is not a program above them, and nothing
# imports `main`.
ALLOWED = {
    "sharding": set(),
    "reps": {"sharding"},
    "ops": set(),
    "rendezvous": set(),
    "topology": set(),
    "terminal": set(),
    "config_names": set(),
    "hosts": {"rendezvous", "terminal"},
    "numbers": set(),
    "preemption": {"hosts", "terminal"},
    "watchdog": {"hosts", "terminal"},
    "trackers": set(),
    "report": set(),
    "tokenizer": set(),
    "models": {"ops", "reps", "sharding"},
    "health": {"reps"},
    "losses": {"reps"},
    "objective": {"losses", "reps"},
    "secrets": set(),
    "regularizers": {"reps"},
    "control": {"regularizers"},
    "optim": set(),
    "flops": {"models"},
    "data": {"tokenizer"},
    "convert": {"models", "tokenizer"},
    "retrieval": {"data", "models", "reps", "sharding"},
    "prepare": {"data", "retrieval"},
}
# From the lowest to the highest.
PROGRAMS = (
    "config_data",
    "config_effects",
    "config_checks",
    "config",
    "config_run",
    "command",
    "train",
    "loop",
    "checkpoint",
    "term_statistics",
    "fitted",
    "references",
    "build",
    "planned",
    "plan",
    "origins",
    "prepared",
    "saved",
    "postmortem",
    "assembly",
    "early",
    "stages",
    "results",
    "kept_config",
    "run",
    "export",
    "encode",
    "doctor_checks",
    "doctor",
    "bench",
    "main",
)


def part(module):
    """`retrieval` of `lsrjax.retrieval.encode`."""
    return module.split(".")[1]


def imported(path):
    """The parts of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {part(name) for name in names if name.startswith("lsrjax.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    relative = path.relative_to(ROOT / "lsrjax")
    own = relative.parts[0].removesuffix(".py")
    if relative.name == "__main__.py":
        own = "main"  # a command, beside the part that it is named for
    found = imported(path) - {own}
    if own in ("__init__", "errors", "trees"):
        assert not found
        return
    if own in COMMON:
        assert found <= {"errors"}
        return
    found -= COMMON
    if own in PROGRAMS:
        above = set(PROGRAMS[PROGRAMS.index(own) :])
        assert not found & above
        assert found <= set(PROGRAMS) | set(ALLOWED)
    else:
        assert own in ALLOWED, f"{own} is new: say here what it may import"
        assert found <= ALLOWED[own]


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
    for path in (ROOT / "lsrjax" / "data").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            found = {name.split(".")[0] for name in names} & frameworks
            assert found <= ({"grain"} if path.name == "loader.py" else set()), path


def python(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_the_package_imports_at_once():
    code = (
        "import time; start = time.perf_counter(); import lsrjax;"
        "print(time.perf_counter() - start)"
    )
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_training_on_embedded_data_needs_no_other_framework():
    code = """
import sys
import lsrjax.main, lsrjax.run, lsrjax.stages, lsrjax.data.loader
from lsrjax.data import embedded, sources
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.retrieval.bm25 import BM25

groups = sources.debian("group", "dev")
TextTokenizer(embedded.MULTILINGUAL_TOKENIZER).batch(["a text"], 8, (4,))
BM25([groups[i].positives[0]["en"] for i in range(20)]).search(["library"], 3)
others = ["torch", "transformers", "datasets", "tensorflow_datasets", "tensorflow"]
others += ["tensorboard", "wandb", "mlflow", "matplotlib"]
print([name for name in others if name in sys.modules])
"""
    assert python(code) == "[]"
