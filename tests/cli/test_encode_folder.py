"""`lsrjax encode` to a folder of parts: any head, processes, devices, and damage."""

import hashlib
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
from programs import launch, tiny
from scipy import sparse

from lsrjax.checkpoint import saved_model
from lsrjax.cli import encode
from lsrjax.convert.open_model import tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.vector_formats.reading import open_vectors

WORDS = "red apple a library of numbers кот мышь 猫 über tree".split()
TEXTS = {f"d{i}": " ".join(WORDS[: i % 12]) + f" {i}" for i in range(37)}
HEADS = {
    "splade": {},
    "csr": {"latents": 32, "active_latents": 5, "revived_latents": 4},
    "dense": {"embedding_size": 5},
    "colbert": {"embedding_size": 5},
    "m3": {"embedding_size": 5},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A stage of random weights by head."""
    tokenizer = tokenizer_folder("embedded:english")
    size = TextTokenizer(tokenizer).vocab_size
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for head, options in HEADS.items():
        encoder = tiny.encoder(vocab_size=size, hidden_size=8, max_positions=24)
        spec = RetrieverSpec.of(head, encoder, **options)
        params = retriever.init_params(spec, 3)
        model = saved_model.SavedModel(spec, params, tokenizer, None, "random")
        (folder / head).mkdir()
        saved_model.save_model(folder / head, model)
        found[head] = folder / head, model
    return found


@pytest.fixture
def texts(tmp_path):
    """Two files, one of Parquet's like, one with a text that is there twice."""
    folder = tmp_path / "texts"
    folder.mkdir()
    rows = [{"id": key, "text": text} for key, text in TEXTS.items()]
    lines = [json.dumps(row) for row in rows]
    (folder / "a.jsonl").write_text("\n".join(lines[:20]) + "\n")
    tsv = [f"{row['id']}\t{row['text']}" for row in rows[18:]]
    (folder / "b.tsv").write_text("\n".join(tsv) + "\n")
    return folder


def run(*args):
    encode.main([str(arg) for arg in args])


def files_of(folder):
    """Path -> digest of what a folder has."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def expected(model, view, **more):
    made = TextEncoder(model.spec, TextTokenizer(model.tokenizer))
    found = made.encode(model.params, [*TEXTS.values()], 24, **more)[view]
    return found.tokens_TD if isinstance(found, TokenMatrix) else found.toarray()


def assert_holds(folder, wanted):
    ids, found = open_vectors(folder).whole()
    assert ids == [*TEXTS]
    found = found.tokens_TD if isinstance(found, TokenMatrix) else found.toarray()
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_any_head_is_encoded_into_parts(tmp_path, models, texts, head, capsys):
    folder, model = models[head]
    out = tmp_path / "out"
    run("--model", folder, "--texts", texts, "--out", out, "--part_rows", 16)
    assert "37 texts encoded in" in capsys.readouterr().out
    views = [*model.spec.views]
    assert len(views) == (3 if head == "m3" else 1)
    for view in views:
        own = out if len(views) == 1 else out / view
        names = ["part-00000.npz", "part-00001.npz", "part-00002.npz"]
        assert sorted(path.name for path in (own / "parts").iterdir()) == names
        assert_holds(own, expected(model, view))
    if head == "m3":
        with pytest.raises(Exception, match="several views of the texts. Name one"):
            open_vectors(out)
        assert open_vectors(out / "terms").terms[1012].startswith("terms_")


def test_processes_share_the_parts_and_make_the_bytes_of_one(
    tmp_path, models, texts, capsys
):
    args = ("--model", models["splade"][0], "--texts", texts, "--part_rows", 8)
    args = (*args, "--prune", "top:20", "--batch_size", 4)
    run(*args, "--out", tmp_path / "one")
    for number in (2, 0):
        own = ("--num_processes", 3, "--process_id", number)
        run(*args, "--out", tmp_path / "three", *own)
        assert "those of other processes are not there" in capsys.readouterr().out
        assert not (tmp_path / "three/manifest.json").exists()
    run(*args, "--out", tmp_path / "three", "--num_processes", 3, "--process_id", 1)
    assert "37 texts encoded in" in capsys.readouterr().out
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


@pytest.mark.parametrize("what", ["changed", "shorter", "missing", "no record"])
def test_a_damaged_part_is_named_and_encoded_again(
    tmp_path, models, texts, capsys, what
):
    out = tmp_path / "out"
    args = ("--model", models["splade"][0], "--texts", texts, "--out", out)
    run(*args, "--part_rows", 16)
    whole = files_of(out)
    path = out / "parts/part-00001.npz"
    times = {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    content = bytearray(path.read_bytes())
    content[-400] ^= 1
    if what == "no record":
        (out / "records/00001.json").unlink()
    elif what == "missing":
        path.unlink()
    else:
        path.write_bytes(content if what == "changed" else content[:-9])
    if what != "no record":
        with pytest.raises(Exception, match=r"part-00001\.npz (has|is missing)"):
            open_vectors(out).whole()
    capsys.readouterr()
    run(*args, "--part_rows", 16)
    said = capsys.readouterr().out
    assert what == "no record" or "part-00001.npz" in said
    assert "2 of 3 parts are there already" in said
    assert files_of(out) == whole
    for name in ("part-00000.npz", "part-00002.npz"):
        assert (out / "parts" / name).stat().st_mtime_ns == times[name]


def test_parts_of_something_else_are_not_mixed_in(tmp_path, models, texts, capsys):
    args = ("--model", models["splade"][0], "--texts", texts, "--out", tmp_path / "out")
    run(*args)
    for more, message in (
        (("--prune", "top:3"), "prune: there '', asked 'top:3'"),
        (("--part_rows", 5), "part_rows: there 32768, asked 5"),
    ):
        with pytest.raises(SystemExit):
            run(*args, *more)
        assert message in capsys.readouterr().err
    with open(texts / "b.tsv", "a") as file:
        file.write("new\ttext\n")
    with pytest.raises(SystemExit):
        run(*args)
    assert "texts: there {'texts': 'a.jsonl, b.tsv', 'number': 37" in (
        capsys.readouterr().err
    )


def test_terms_are_pruned_and_quantised(tmp_path, models, texts):
    folder, model = models["splade"]
    args = ("--model", folder, "--texts", texts, "--prune", "mass:0.5")
    run(*args, "--out", tmp_path / "v.jsonl", "--format", "anserini")
    pruned = Pruning("mass", 0.5).apply(sparse.csr_matrix(expected(model, "terms")))
    names = TextTokenizer(model.tokenizer).vocabulary()
    lines = (tmp_path / "v.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 37
    for row, line in zip(pruned.toarray(), map(json.loads, lines), strict=True):
        wanted = np.rint(row * 100)
        for term, weight in line["vector"].items():
            assert isinstance(weight, int)
            assert abs(wanted[names[term]] - weight) <= 1  # at .5
        assert abs(len(line["vector"]) - np.count_nonzero(wanted)) <= 2


@pytest.mark.parametrize(
    ("head", "args", "message"),
    [
        ("dense", ["--prune", "top:3"], "--prune is for weights of terms"),
        ("dense", ["--format", "anserini"], "cannot hold this model's vectors (dense)"),
        ("m3", ["--out", "v.npz"], "which no single file holds"),
        ("splade", ["--prune", "top:0"], "--prune is 'top:0'"),
        ("splade", ["--part_rows", "0"], "--part_rows is 0"),
        ("splade", ["--format", "anserini", "--quantize", "0"], "whole numbers"),
        ("splade", ["--num_processes", "2"], "go together"),
        ("splade", ["--num_processes", "2", "--process_id", "2"], "--process_id is 2"),
        (
            "splade",
            ["--num_processes", "2", "--process_id", "0", "--out", "v.npz"],
            "there are 2 processes. Name a folder",
        ),
    ],
)
def test_mistakes_say_what_to_do(
    tmp_path, models, texts, monkeypatch, capsys, head, args, message
):
    monkeypatch.chdir(tmp_path)
    given = ("--model", models[head][0], "--texts", texts, "--out", "out", *args)
    with pytest.raises(SystemExit) as stop:
        run(*given)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_vectors_do_not_go_into_the_folder_of_a_model(models, texts, capsys):
    model = models["splade"][0]
    before = sorted(pathlib.Path(model).iterdir())
    with pytest.raises(SystemExit) as stop:
        run("--model", model, "--texts", texts, "--out", model)
    assert stop.value.code == 2
    assert f"--out {model} has other files (" in capsys.readouterr().err
    assert sorted(pathlib.Path(model).iterdir()) == before


def test_an_id_with_two_texts_names_both_places(tmp_path, models, texts, capsys):
    with open(texts / "b.tsv", "a") as file:
        file.write("d3\tanother text\n")
    with pytest.raises(SystemExit):
        run("--model", models["splade"][0], "--texts", texts, "--out", tmp_path / "out")
    said = capsys.readouterr().err
    assert "a.jsonl, line 4 and " in said and "b.tsv, line 20: the id 'd3'" in said


def test_texts_in_several_languages_are_refused(tmp_path, models, capsys):
    for language in ("en", "de"):
        (tmp_path / f"{language}.tsv").write_text(f"1\t{language}\n2{language}\ttwo\n")
    named = {one: str(tmp_path / f"{one}.tsv") for one in ("en", "de")}
    with pytest.raises(SystemExit):
        run("--model", models["splade"][0], "--texts", named, "--out", tmp_path / "out")
    assert "the text '1' is there in en, de" in capsys.readouterr().err
    for wrong, message in (("{'en': 3}", "give a path"), ("['a", "no Python literal")):
        with pytest.raises(SystemExit):
            run(
                "--model",
                models["splade"][0],
                "--texts",
                wrong,
                "--out",
                tmp_path / "o",
            )
        assert message in capsys.readouterr().err


def started(folder, models, texts, out, *, processes=1, devices=1, rows=8):
    command = ["-m", "lsrjax", "encode", "--model", models["splade"][0]]
    command += ["--texts", texts, "--out", out, "--part_rows", rows, "--batch_size", 4]
    return launch.start(
        [*map(str, command)], folder, processes=processes, devices=devices
    )


@pytest.mark.slow
def test_two_processes_on_two_devices_make_the_bytes_of_one(tmp_path, models, texts):
    launch.finish(started(tmp_path / "1", models, texts, tmp_path / "one"))
    two = started(
        tmp_path / "2", models, texts, tmp_path / "two", processes=2, devices=2
    )
    launch.finish(two)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert len(files_of(tmp_path / "one")) == 11


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_makes_the_same_bytes(tmp_path, models):
    texts = pathlib.Path(tmp_path / "texts.txt")
    texts.write_text("".join(f"{' '.join(WORDS[: i % 9])} {i}\n" for i in range(4000)))

    def start(name, number):
        return started(
            tmp_path / f"{name}{number}", models, texts, tmp_path / name, rows=600
        )[0]

    whole = start("whole", 0)
    assert whole.ends(120) == 0
    kills = 0
    for number in range(12):
        one = start("killed", number)
        records = tmp_path / "killed/records"
        there = len(files_of(records)) if records.exists() else 0
        deadline = time.monotonic() + 60
        while one.process.poll() is None and time.monotonic() < deadline:
            found = len([*records.glob("*")]) if records.exists() else 0
            if kills < 3 and found > there + (kills + 1):
                os.kill(one.process.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.003)
        if one.ends(60) == 0:
            break
    assert kills
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
