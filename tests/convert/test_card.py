"""The model card says what is known of a model, and that the rest is not known."""

import pathlib
import re

import pytest
import yaml
from programs import tiny

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.write import public
from lsrjax.convert.write.card import write_card
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import task_tables

ENCODER = tiny.encoder(
    "xlm-roberta",
    vocab_size=401,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=67,
    max_positions=66,
)
SPEC = RetrieverSpec.of(
    "milco", ENCODER, lexecho=True, pivot_vocab_size=307, query_prompt='q: "'
)
ALIGN = {
    "init": {"encoder": "BAAI/bge-m3", "head": "naver/splade-v3"},
    "data": {
        "source": {"name": "files", "files": "/home/someone/data/pairs.jsonl"},
        "group_size": 1,
    },
    "loss": {"alignment": {}},
    "steps": 5000,
    "batch_size": 256,
    "seed": 3,
}
DISTILL = {
    "init": {"model": "stage:align"},
    "data": {"source": {"name": "debian"}, "group_size": 8},
    "loss": {"kl": {}},
    "regularizer": {"name": "flops", "query": 1e-3, "document": 1e-5},
    "optim": {"lr": 2e-5, "schedule": "cosine"},
    "steps": 0,
    "epochs": 3.0,
    "batch_size": 64,
    "seed": 3,
}
SCORES = {
    system: {
        "no": {"nDCG@10": value, "query_terms": 11.25, "document_terms": 33.0},
        "mean": {"nDCG@10": value, "query_terms": 11.25, "document_terms": 33.0},
    }
    for system, value in (("bm25", 0.25), ("distill", 0.5), ("distill pivot", 0.375))
}


def tables(results, stage):
    data = {"debian/english": {"queries": 7}}
    task = {"metrics": ["nDCG@10"], "data": data, "results": results}
    return task_tables.markdown(task_tables.of_stage({"debian/english": task}, stage))


def card(folder, **known):
    model = SavedModel(
        SPEC, {}, pathlib.Path(), None, "/home/someone/runs/demo/distill", 64, 256
    )
    model = SavedModel(**(vars(model) | known))
    write_card(folder, model, "    load()\n", library="some-library")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "someone" not in text  # other people's folders
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1]
    return yaml.safe_load(front), text


def test_everything_known(tmp_path):
    front, text = card(
        tmp_path,
        config=DISTILL,
        stages={"align": ALIGN, "distill": DISTILL},
        results=SCORES["distill"],
        evaluation=tables(SCORES, "distill"),
    )
    assert front["license"] == "other"  # MIT and a non-commercial one
    assert front["language"] == ["no"]
    assert front["library_name"] == "some-library"
    assert front["base_model"] == ["BAAI/bge-m3", "naver/splade-v3"]
    assert {"milco", "sparse"} <= set(front["tags"])
    (index,) = front["model-index"]
    assert index["name"] == "demo/distill"
    shown = {one["dataset"]["name"]: one["metrics"] for one in index["results"]}
    norwegian = next(found for name, found in shown.items() if name.endswith(": no"))
    assert norwegian == [{"type": "ndcg_at_10", "value": 0.5, "name": "nDCG@10"}]
    assert text.index("# demo/distill") < text.index("## How to load\n\nload()")
    assert "| head of stage `align` | naver/splade-v3 | cc-by-nc-sa-4.0 |" in text
    assert "| data of stage `align` | …/pairs.jsonl | unknown |" in text
    assert "Debian package descriptions" in text
    assert "loss `kl`, 3 epochs of 64 examples, learning rate 2e-05 (cosine)" in text
    assert "stage `align`: loss `alignment`, 5,000 steps of 256" in text
    assert "| distill | **.500** | **.500** |" in text
    assert "| distill pivot | .375 | .375 |" in text
    assert "| no | 11.2 | 33.0 |" in text
    assert '- stands before queries: "q: \\""' in text


def test_what_is_not_known_is_said_to_be_unknown(tmp_path):
    front, text = card(tmp_path)
    assert front["license"] == "unknown"
    assert front["language"] == ["multilingual"]
    assert not {"base_model", "model-index"} & front.keys()
    assert text.count("No evaluation of this model was recorded") == 2
    assert "How it was trained was not recorded" in text
    assert "…/distill | unknown |" in text


def test_a_model_whose_licence_is_not_listed_is_pointed_to(tmp_path):
    front, text = card(tmp_path, name="me/mine")
    assert front["license"] == "unknown"
    assert "| weights | me/mine | see the card of me/mine |" in text


@pytest.mark.parametrize(
    ("name", "licence"), [("BAAI/bge-m3", "mit"), ("me/mine", "unknown")]
)
def test_the_licence_of_what_was_only_converted(tmp_path, name, licence):
    assert card(tmp_path, name=name)[0]["license"] == licence


def test_dev_figures_are_an_evaluation(tmp_path):
    dev = {"source": {"name": "files", "files": "/home/someone/dev set/dev.jsonl"}}
    known = {"config": DISTILL | {"dev": dev}, "dev": {"nDCG@10": 0.43219}}
    front, text = card(tmp_path, **known)
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.43219
    assert "On the dev data (…/dev.jsonl):" in text
    assert "| nDCG@10 | 0.4322 |" in text
    assert "No evaluation" not in text


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("data.source.files", "/home/someone/my data/rows.jsonl", "…/rows.jsonl"),
        ("data.source.files", "file:///home/someone/rows.jsonl", "…/rows.jsonl"),
        ("data.source.files", "~/someone/rows.jsonl", "…/rows.jsonl"),
        ("data.source.files", "someone/rows.jsonl", "…/rows.jsonl"),
        ("data.source.files", "someone, and/others/rows-*.jsonl", "…,…/rows-*.jsonl"),
        ("data.source.files", "rows.jsonl", "rows.jsonl"),
        (
            "data.source.files",
            ["a/someone/x.jsonl", "y.jsonl"],
            ["…/x.jsonl", "y.jsonl"],
        ),
        (
            "data.corpus",
            {"en": "/x/someone is here/docs.tsv", "de": ["~/a/de.tsv", "b.tsv"]},
            {"en": "…/docs.tsv", "de": ["…/de.tsv", "b.tsv"]},
        ),
        (
            "data.format.queries",
            {"de": {"dataset": "/srv/someone/q", "split": "train"}},
            {"de": {"dataset": "…/q", "split": "train"}},
        ),
        (
            "data.source.dataset",
            {"me/docs": ["en", "de"], "/home/someone/own": ""},
            {"me/docs": ["en", "de"], "…/own": ""},
        ),
        # Of models of earlier releases.
        (
            "data.corpus",
            "en:/x/someone is here/docs.tsv,de:docs.de.tsv",
            "en:…/docs.tsv,de:docs.de.tsv",
        ),
        ("data.corpus", "de:datasets:me/docs", "de:datasets:me/docs"),
        ("dev.source.files", r"C:\Users\someone\dev.jsonl", "C:…/dev.jsonl"),
        ("init.model", "/home/someone/a b/model", "…/model"),
        ("init.model", "stage:align", "stage:align"),
        ("teacher.model", "me/teacher", "me/teacher"),
        (
            "data.sets.web.source.files",
            "file:/srv/someone/web.jsonl",
            "file:…/web.jsonl",
        ),
        ("log.trackers", {"mlflow": {"uri": "https://me:secret@host"}}, ["mlflow"]),
        ("log.trackers", ["wandb"], ["wandb"]),
        ("optim.freeze", "norm/|scale$", "norm/|scale$"),
        ("anything", "/home/some one/x.txt", "…/x.txt"),
        ("anything", "see /home/someone/x.txt", "see …/x.txt"),
    ],
)
def test_a_config_is_shown_without_folders(tmp_path, field, value, shown):
    config, wanted = value, shown
    for key in reversed(field.split(".")):
        config, wanted = {key: config}, {key: wanted}
    assert public.tree(config) == wanted
    _, text = card(tmp_path, config=config)
    assert "some one" not in text


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("/home/someone/model", "# model\n"),
        ("./models/mine", "# mine\n"),
        ("me/mine", "# me/mine\n"),
    ],
)
def test_a_folder_is_called_by_its_own_name(tmp_path, name, title):
    assert title in card(tmp_path, name=name)[1]


def test_another_stage_s_results_are_left_out_and_no_baseline_is():
    baselines = {"bm25 n-grams": SCORES["bm25"], "ibm model 1": SCORES["bm25"]}
    others = SCORES | baselines | {"align": SCORES["bm25"]}
    shown = tables(others, "distill")
    assert "align" not in shown
    assert all(f"| {name} |" in shown for name in ("bm25", *baselines))
    assert tables(SCORES | baselines, "align") == ""
