"""The published recipes, as they stand and with what their docstrings change."""

import pathlib
import runpy
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lsrjax.config.check_run import validate
from lsrjax.config.fields import set_field
from lsrjax.data.batching import mixing
from lsrjax.data.batching.mixing import open_sets
from lsrjax.data.reading.files import subsets
from lsrjax.models.adapters import ADAPTERS
from lsrjax.models.heads import HEADS
from lsrjax.training import optimizer, run

RECIPES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
EMBEDDED = [
    path
    for path in RECIPES
    if "On the embedded data" in " ".join(path.read_text().split())
]


FORMS = ("splade", "inference_free", "csr")  # of configs/scandinavian.py
# Each that runs on the embedded data, in each of its forms.
SMALL = [
    (path, form)
    for path in EMBEDDED
    for form in (FORMS if path.stem == "scandinavian" else ("",))
]


def config_of(path, form=""):
    return runpy.run_path(str(path))["get_config"](*filter(None, [form]))


def on_embedded_data(path, form=""):
    """The config with the flags that follow in its docstring."""
    text = runpy.run_path(str(path))["__doc__"]
    flags = text[text.index("embedded") :]
    if form == "csr":
        flags = flags.partition("of all forms but csr:")[0]
    lines = [line for line in flags.splitlines() if line.startswith("    --config.")]
    config = config_of(path, form)
    for flag in shlex.split("\n".join(lines)):
        name, _, value = flag.removeprefix("--config.").partition("=")
        set_field(config, name, value, "--config")
    return config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_short(path):
    validate(config_of(path))
    assert f"    lsrjax train --config {path.stem}" in path.read_text()
    several_stages = ("demo", "heads", "negatives", "techniques")
    if path.stem not in several_stages:
        assert len(path.read_text().splitlines()) < 60


def test_every_head_and_adapter_is_compared():
    (path,) = (path for path in RECIPES if path.stem == "heads")
    stages = config_of(path).stages.values()
    assert {one.model.head.name for one in stages} == set(HEADS)
    assert {name for one in stages for name in one.adapt} == set(ADAPTERS)


MILCO = [path for path in RECIPES if path.stem in ("align", "distill")]


@pytest.mark.parametrize(
    "form",
    ["graded", "negatives", "batches", "pretraining", "alignment", "optimizers"],
)
def test_each_comparison_of_techniques_starts_from_the_same(form):
    (path,) = (path for path in RECIPES if path.stem == "techniques")
    config = config_of(path, form)
    validate(config)
    assert config.evaluate.split == "dev" and len(config.stages) > 5
    compared = [c for c in config.stages.values() if c.model.head.get("lexecho")]
    for one in compared:
        assert one.init.keys() == {"model", "idf_echo", "ngrams"}
        if form not in ("pretraining", "alignment"):
            assert one.init["model"]["model"] == "stage:align"


@pytest.mark.parametrize("path", MILCO, ids=lambda path: path.stem)
def test_a_published_recipe_has_two_variants_that_say_where_each_value_is_from(path):
    get_config = runpy.run_path(str(path))["get_config"]
    paper, script = get_config("paper"), get_config("script")
    validate(paper)
    validate(script)
    assert get_config() == paper != script
    for one in (paper, script):
        # The reference's optimizer has no decay, and its models keep their dropout.
        assert one.optim.weight_decay == 0 and one.model.dropout == -1
        assert one.dev.source.name and one.dev.every
    lines = path.read_text().splitlines()
    set_lines = [line for line in lines if line.startswith("    c.") and " = " in line]
    sourced = ("# both", "# paper", "# script", "# ours", "# stage 1's")
    unsourced = [line for line in set_lines if not any(s in line for s in sourced)]
    # What is a default of this program, or follows from the line below.
    assert all("c.data.source" in line for line in unsourced), unsourced


def test_the_variants_differ_where_paper_and_script_do():
    values = {
        (path.stem, variant): runpy.run_path(str(path))["get_config"](variant)
        for path in MILCO
        for variant in ("paper", "script")
    }
    paper, script = values["align", "paper"], values["align", "script"]
    assert (paper.data.document_length, script.data.document_length) == (256, 512)
    assert (paper.epochs, script.epochs) == (2, 1)
    assert (paper.optim.schedule, script.optim.schedule) == ("cosine", "linear")
    assert (paper.optim.warmup_steps, script.optim.warmup_steps) == (10_000, 0)
    named = " ".join(paper.data.source.dataset)
    assert "wikititles" in named and "mmarco_query" not in named
    named = " ".join(script.data.source.dataset)
    assert "mmarco_query" in named and "wikititles" not in named
    paper, script = values["distill", "paper"], values["distill", "script"]
    assert (paper.data.query_length, paper.data.document_length) == (512, 512)
    assert (script.data.query_length, script.data.document_length) == (64, 256)
    assert (paper.seed, script.seed) == (0, 42)


@pytest.mark.parametrize(("path", "form"), SMALL)
def test_the_flags_of_its_docstring_make_it_run_on_the_embedded_data(path, form):
    config = on_embedded_data(path, form)
    validate(config)
    own = [one.source for one in mixing.named_sets(config.data).values()]
    assert all(one.name == "debian" or one.files == "embedded" for one in own)
    assert own and config.steps <= 300


def test_every_variant_of_the_pretraining_is_valid_and_another():
    (path,) = (path for path in RECIPES if path.stem == "pretrain")
    get_config = runpy.run_path(str(path))["get_config"]
    names = ["", "condenser", "mlm", "bag_of_words", "crops", "cloze", "title"]
    configs = [get_config(name) for name in names]
    for config in configs:
        validate(config)
    shown = {f"{c.loss} {c.data.source.pairs} {c.model.head}" for c in configs}
    assert len(shown) == len(names)


# Columns of the data sets of configs/scandinavian.py, as others read them.
DDSC = {
    "query": "Et spørgsmål",
    "positive": "Et svar",
    "negative": None,
    "task": "text-matching-short",
    "language": "danish",
    "instruction": "Find svaret.",
    "prompt": [{"role": "user", "content": "…"}],
    "response": "…",
}
HARD = {"query": "En fråga", "negative": "Nej", "task": "retrieval"}
SCANDINAVIAN = {
    "Fremtind/all-nli-norwegian": [
        {
            "anchor": "En mann spiser.",
            "positive": "Noen spiser.",
            "negative": "Ingen spiser.",
        }
    ],
    "alexandrainst/scandi-qa": [
        {
            "id": 1,
            "question": "Hvor?",
            "answers": {"text": ["Her"], "answer_start": [0]},
            "context": "Her.",
            "answer_en": "Here",
        }
    ],
    "DDSC/nordic-embedding-training-data": [
        DDSC,
        DDSC | HARD | {"language": "swedish"},
        DDSC,
    ],
}


def test_the_scandinavian_data_sets_are_read_with_their_negatives(
    tmp_path, monkeypatch
):
    """From clones with the layout of the hub's; each row of DDSC is in one set."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (path,) = (path for path in RECIPES if path.stem == "scandinavian")
    data = config_of(path).data
    for name, rows in SCANDINAVIAN.items():
        file = tmp_path / name / "data/train-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    for own in data.sets.values():
        ((name, _), *_) = subsets(own.source.dataset)
        own.source.dataset = str(tmp_path / name)
    nli, qa, ddsc, hard = open_sets(data, "group")
    assert [len(one) for one in (nli, qa, ddsc, hard)] == [1, 1, 2, 1]
    languages = ((nli, "*"), (qa, "*"), (ddsc, "danish"), (hard, "swedish"))
    found = [
        [text[own] for text in (s[0].query, *s[0].positives, *s[0].negatives)]
        for s, own in languages
    ]
    assert found == [
        ["En mann spiser.", "Noen spiser.", "Ingen spiser."],
        ["Hvor?", "Her."],
        ["Et spørgsmål", "Et svar"],
        ["En fråga", "Et svar", "Nej"],
    ]


def test_the_scandinavian_forms_have_the_project_s_values():
    (path,) = (path for path in RECIPES if path.stem == "scandinavian")
    forms = {form: config_of(path, form) for form in FORMS}
    for form, config in forms.items():
        validate(config)
        assert config.init.encoder["model"].startswith("ltg/norbert")
        assert (config.optim.lr, config.batch_size, config.epochs) == (2e-5, 16, 1)
        assert config.data.query_length == config.data.document_length == 256
        assert config.dev.task.name == "nanobeir" and config.dev.metric == "nDCG@10"
        assert list(config.log.trackers) == ["mlflow"]
        assert mixing.group_sizes(config.data) == [2, 1, 1, 2]
        # DDSC's both halves together have the turns of each other set.
        assert mixing.set_weights(config.data, [1] * 4) == [1, 1, 0.6, 0.4]
        rates = optimizer.logged_rates(config.optim)
        assert rates == ({"lr_head_static": 50} if form == "inference_free" else {})
    assert forms["splade"].regularizer.query == 5e-4
    assert forms["inference_free"].regularizer.document == 3e-3
    assert config_of(path) == forms["splade"] != forms["csr"]


@pytest.mark.slow
def test_recipes_take_a_step_on_the_embedded_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # First the one that others take as their teacher.
    order = sorted(SMALL, key=lambda one: one[0].stem != "splade")
    for path, form in order:
        if path.stem == "mtd_sparse":
            continue  # it goes on from configs/heads.py
        if path.stem == "scandinavian" and form != "csr":
            continue  # the steps of configs/splade.py and configs/inference_free.py
        config = on_embedded_data(path, form)
        config.steps = 1
        if config.dev.source.name:
            config.dev.queries = 10
        config.optim.warmup_steps = 0
        for data in list(config.data.sets.values()) or [config.data]:
            data.source.split = "dev"
        config.data.length_parts = 1
        config.checkpoint.every = 1
        # Two layers: the least that `condenser` has an early and a late part of.
        config.model.hidden_size, config.model.num_layers = 32, 2
        folder = tmp_path / "runs" / path.stem / form
        run.run(config, folder, Console(quiet=True))
        assert (folder / "train" / "done.json").is_file()


NEGATIVES = ("splade", "ance", "adore", "ar2")


def negatives(name):
    (path,) = (path for path in RECIPES if path.stem == "negatives")
    return runpy.run_path(str(path))["get_config"](name)


@pytest.mark.parametrize("name", NEGATIVES)
def test_negatives_of_later_stages_are_those_of_earlier_ones(name):
    for variant in (name, f"{name}_small"):
        config = negatives(variant)
        validate(config)
        mined = [one.prepare.negatives for one in config.stages.values()]
        assert any(one.startswith("stage:") for one in mined)
        again = [one.prepare.every for one in config.stages.values()]
        assert any(again) == (name in ("ance", "adore"))
    assert {one.data.source.name for one in config.stages.values()} == {"debian"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ance", "adore"])
def test_negatives_are_mined_in_turn_on_the_embedded_data(name, tmp_path):
    config = negatives(f"{name}_small")
    for one in config.stages.values():
        one.data.source.split = "dev"
        one.steps, one.dev.queries, one.checkpoint.every = 2, 5, 2
        one.prepare.every = min(one.prepare.every, 1)
        one.optim.warmup_fraction = 0.0
        if one.init.get("model") is None:
            one.model.hidden_size, one.model.num_layers = 32, 1
    run.run(config, tmp_path, Console(quiet=True))
    assert all((tmp_path / stage / "done.json").is_file() for stage in config.stages)
    mined = {path.parent.parent.name for path in tmp_path.glob("*/mined/1.npz")}
    every = {key for key, one in config.stages.items() if one.prepare.every}
    assert mined == every
