"""`python -m lsrjax.convert` as a command: what it writes, and what it refuses."""

import dataclasses
import json
import pathlib
import re
import shutil

import pytest
from programs import tiny

from lsrjax.checkpoint import saved_model
from lsrjax.cli import convert as export
from lsrjax.convert import open_model, targets
from lsrjax.convert.open_model import tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec


def run_of(folder, head="splade", family="bert", **options):
    """A run of one finished stage, of random weights."""
    tokenizer = tokenizer_folder("embedded:english")
    size = TextTokenizer(tokenizer).vocab_size
    encoder = tiny.encoder(family, vocab_size=size, hidden_size=8, max_positions=64)
    spec = RetrieverSpec.of(head, encoder, **options)
    stage = folder / "train"
    stage.mkdir(parents=True)
    model = saved_model.SavedModel(
        spec, retriever.init_params(spec, 0), tokenizer, None, "random"
    )
    saved_model.save_model(stage, model)
    config = {"stages": {}, "data": {"query_length": 9, "document_length": 33}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", '{"stages": {', r"config.json is damaged \(Expecting"),
        (
            "config.json",
            "[]",
            r"config.json is damaged \(it holds a list",
        ),
        ("config.json", '{"stages": 5}', "stages is 5, which has to be an object"),
        ("results.json", '{"train": []}', "train is .., which has to be an object"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, capsys, file, text, message):
    run = run_of(tmp_path / "run", tied=True)
    # Limits that are not set are infinite, which is no damage.
    config = {"data": {"negative_max_score": float("inf"), "query_length": 9}}
    (run / "config.json").write_text(json.dumps(config))
    assert open_model.open_portable(str(run)).query_length == 9
    (run / file).write_text(text)
    with pytest.raises(SystemExit) as stop:
        convert("--from", run, "--to", "splade", "--out", tmp_path / "out")
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def convert(*args):
    export.main([str(arg) for arg in args])


@pytest.mark.parametrize(
    ("target", "head", "options", "library"),
    [
        ("splade", "splade", {"tied": True}, "sentence-transformers"),
        ("csr", "csr", {"latents": 16, "active_latents": 4}, "sentence-transformers"),
        ("multi-vector", "colbert", {"embedding_size": 4}, "sentence-transformers"),
        ("pylate", "colbert", {"embedding_size": 4}, "PyLate"),
        ("onnx", "dense", {"pooling": "cls"}, "onnx"),
    ],
)
def test_a_runs_folder_says_how_it_is_loaded(
    tmp_path, capsys, target, head, options, library
):
    if head == "csr":
        options = options | {"pooling": "mean"}
    run = run_of(tmp_path / "run", head, **options)
    convert("--from", run, "--to", target, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"library_name: {library}\n" in card.split("---")[1]
    assert "```python\n" in card and "path/to/this/folder" in card
    said = capsys.readouterr().out
    assert f"{target}, for {targets.TARGETS[target].reads}" in said
    # The code of the card, with the folder's name.
    first, *_ = card.split("```python\n")[1].splitlines()
    after = said[said.index("What to do next:") :]
    assert f"  {first}\n" in after and f'"{tmp_path / "out"}"' in after


@pytest.mark.parametrize(
    ("target", "head", "options", "message"),
    [
        ("csr", "splade", {}, "whose head is 'splade'. Possible are onnx, splade,"),
        (
            "multi-vector",
            "colbert",
            {"embedding_size": 4, "towers": "separate"},
            "with a tower for queries and one for documents. Possible are lsrjax",
        ),
        ("onnx", "m3", {}, "whose head is 'm3'. Possible are bge-m3, lsrjax"),
        (
            "pylate",
            "colbert",
            {"embedding_size": 4, "query_marker": 5, "marker_place": 0},
            "whose marker is in front of a text's first token. Possible are multi-vec",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    tmp_path, capsys, target, head, options, message
):
    run = run_of(tmp_path / "run", head, **options)
    with pytest.raises(SystemExit) as stop:
        convert("--from", run, "--to", target, "--out", tmp_path / "out")
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_out_is_a_path_as_users_write_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = ("--from", GOLDEN / "bert", "--to", "lsrjax", "--out")
    convert(*command, "~/out")
    assert (tmp_path / "home" / "out" / "model.json").is_file()
    with pytest.raises(SystemExit):
        convert(*command, "gs://b/out")
    assert "--out: 'gs://b/out' is not on this" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("target", "family"),
    [
        *(("onnx", "norbert3"), ("onnx", "norbert4")),
        *(("onnx", "deberta-v2"), ("onnx", "xmod")),
    ],
)
def test_an_encoder_that_the_other_program_lacks_is_refused(
    target, family, tmp_path, capsys
):
    run = run_of(tmp_path / "run", family=family, tied=False)
    with pytest.raises(SystemExit) as stop:
        convert("--from", run, "--to", target, "--out", tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    assert f"over an encoder of the family {family}. Possible are" in said
    assert "lsrjax" in said.partition("Possible are")[2]
    convert("--from", run, "--to", "lsrjax", "--out", tmp_path / "out")
    again = open_model.open_portable(str(tmp_path / "out")).spec
    assert again == open_model.open_portable(str(run)).spec


def test_separate_towers_keep_both(tmp_path):
    run = run_of(tmp_path / "run", "dense", pooling="cls", towers="separate")
    convert("--from", run, "--to", "lsrjax", "--out", tmp_path / "out")
    before, after = (
        saved_model.load_model(path) for path in (run / "train", tmp_path / "out")
    )
    assert before.spec == after.spec and "query_tower" in after.params


@pytest.mark.parametrize(
    ("limit", "lengths"), [(8, (8, 8)), (100, (64, 64)), (None, (64, 64))]
)
def test_the_tokenizer_may_say_how_long_a_text_is(limit, lengths, tmp_path):
    golden = pathlib.Path(__file__).parents[1] / "golden/bert"
    folder = pathlib.Path(shutil.copytree(golden, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"model_max_length": limit})
    )
    found = open_model.open_portable(str(folder))
    assert (found.query_length, found.document_length) == lengths


@pytest.mark.parametrize(
    "change",
    [{"truncation_side": "left"}, {"mask_token": "a"}, {"pad_token": 7}],
)
def test_an_export_with_other_tokens_is_not_written(
    change, tmp_path, monkeypatch, capsys
):
    target = targets.TARGETS["splade"]

    def write(model, folder):
        target.write(model, folder)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | change
        path.write_text(json.dumps(config), encoding="utf-8")

    changed = dataclasses.replace(target, write=write)
    monkeypatch.setitem(targets.TARGETS, "splade", changed)
    run = run_of(tmp_path / "run", tied=True)
    with pytest.raises(SystemExit) as ended:
        convert("--from", run, "--to", "splade", "--out", tmp_path / "out")
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert "would not read the tokenizer of the export" in capsys.readouterr().err


def test_a_budget_of_terms_goes_into_the_export_and_its_card(tmp_path, capsys):
    run = run_of(tmp_path / "run", tied=True)
    args = ("--from", run, "--to")
    convert(*args, "splade", "--out", tmp_path / "top", "--prune", "top:9")
    name = "config_sentence_transformers.json"
    assert json.loads((tmp_path / "top" / name).read_text())["max_active_dims"] == 9
    assert open_model.open_portable(str(tmp_path / "top")).spec.most_active == 9
    assert "the 9 largest weights are kept" in (tmp_path / "top/README.md").read_text()
    convert(*args, "splade", "--out", tmp_path / "mass", "--prune", "mass:0.9")
    assert "max_active_dims" not in (tmp_path / "mass" / name).read_text()
    card = (tmp_path / "mass/README.md").read_text()
    assert "lsrjax encode --prune mass:0.9" in card
    for target, prune, message in (
        ("onnx", "top:9", "of whose vectors 9 weights are kept"),
        ("lsrjax", "ratio:0.1", "cannot hold --prune ratio:0.1"),
        ("splade", "best:3", "--prune is 'best:3'"),
    ):
        with pytest.raises(SystemExit):
            convert(*args, target, "--out", tmp_path / "no", "--prune", prune)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
