"""What a fresh installation has to do: `.ci/run` runs this with other libraries.

    pytest -n 0 -m slow tests/test_smoke.py

It needs pytest and what `setup.py` installs without extras, at its lowest versions and
at the newest ones.
"""

import importlib.util
import os
import pathlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

import lsrjax

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "tests/configs/two_stages.py"
# What a module needs besides, by the extra of `setup.py` that installs it.
EXTRAS = {
    "lsrjax.data.debian_texts.tfds": "tensorflow_datasets",
    "lsrjax.cli.search_page": "starlette",
}


def modules():
    found = [one.name for one in pkgutil.walk_packages(lsrjax.__path__, "lsrjax.")]
    return [
        name
        for name in found
        # Those run in other programs; these start one.
        if ".templates." not in name and not name.endswith("__main__")
    ]


def python(*args):
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_module_imports():
    names = [
        name
        for name in modules()
        if name not in EXTRAS or importlib.util.find_spec(EXTRAS[name])
    ]
    assert len(names) > 100
    python(
        "-c", f"import importlib\nfor name in {names}: importlib.import_module(name)"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of two stages."""
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    python("-m", "lsrjax.main", "--config", CONFIG, "--workdir", workdir)
    return workdir


def encoded(model, folder, name):
    texts = folder / "texts.txt"
    texts.write_text("a red apple\nein roter Apfel\n赤いリンゴ\n", encoding="utf-8")
    out = folder / f"{name}.npz"
    python("-m", "lsrjax.encode", "--model", model, "--texts", texts, "--out", out)
    return sparse.load_npz(out).toarray()


def test_the_demo_needs_no_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lsrjax", "train", "--config", "demo", "--dry_run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | ({} if installed() else {"PYTHONPATH": str(ROOT)}),
    )
    assert done.returncode == 0, done.stderr
    assert "Stage contrast" in done.stdout


def installed():
    """Whether the tests run beside an installed package, without its source."""
    return not (ROOT / "setup.py").exists()


def test_the_package_has_its_data():
    package = pathlib.Path(lsrjax.__file__).parent
    if installed():
        assert "site-packages" in package.parts
        assert (package / "recipes" / "demo.py").is_file()
    assert (package / "py.typed").is_file()
    assert list(package.glob("data/debian_texts/*.parquet"))
    assert list(package.glob("convert/templates/*.py"))


def test_the_doctor_and_the_plan_find_nothing(tmp_path):
    python("-m", "lsrjax.doctor", "--config", CONFIG, "--workdir", tmp_path / "run")
    planned = python("-m", "lsrjax.main", "--config", CONFIG, "--dry_run")
    assert "Stage first" in planned and "Stage second" in planned


def test_a_run_of_two_stages_encodes_as_its_exports_do(trained, tmp_path):
    vectors = encoded(trained, tmp_path, "run")
    assert (vectors > 0).sum(axis=1).min() > 0
    for target in ("lsrjax", "milco-hf"):
        out = tmp_path / target
        python("-m", "lsrjax.convert", "--from", trained, "--to", target, "--out", out)
        np.testing.assert_array_equal(encoded(out, tmp_path, target), vectors)


def test_the_same_command_again_finds_the_run_finished(trained):
    before = (trained / "second" / "metrics.jsonl").read_bytes()
    python("-m", "lsrjax.main", "--config", CONFIG, "--workdir", trained)
    assert (trained / "second" / "metrics.jsonl").read_bytes() == before
