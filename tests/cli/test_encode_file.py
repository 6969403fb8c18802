"""`python -m lsrjax.encode` from a stage's folder, to files that others read."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from programs import tiny
from programs.layouts import jsonl
from scipy import sparse

from lsrjax.api.model import load
from lsrjax.api.search import open_search
from lsrjax.checkpoint import saved_model
from lsrjax.cli import encode, encode_job, index
from lsrjax.convert.open_model import open_portable, tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import encode_corpus
from lsrjax.retrieval.encode_texts import TextEncoder, joined

TEXTS = ["red apple", "", "a library of numbers", "猫 и мышь", *map(str, range(36))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A MILCO of random weights as the only stage of a run."""
    path = tmp_path_factory.mktemp("run") / "distill"
    path.mkdir()
    tokenizer = tokenizer_folder("embedded:multilingual")
    english = tokenizer_folder("embedded:english")
    encoder = tiny.encoder(
        "xlm-roberta",
        vocab_size=TextTokenizer(tokenizer).vocab_size,
        hidden_size=8,
        max_positions=70,
    )
    spec = RetrieverSpec.of(
        "milco",
        encoder,
        lexecho=True,
        pivot_vocab_size=TextTokenizer(english).vocab_size,
        pivot_hidden_size=8,
    )
    params = retriever.init_params(spec, 3)
    model = saved_model.SavedModel(spec, params, tokenizer, english, "random")
    saved_model.save_model(path, model)
    config = {"stages": {"distill": {"data": {"query_length": 8}}}}
    (path.parent / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def expected(folder):
    model = saved_model.load_model(folder)
    made = TextEncoder(model.spec, TextTokenizer(model.tokenizer))
    return {
        role: joined(made.encode(model.params, TEXTS, length, role))
        for role, length in (("document", 68), ("query", 8))
    }


def written(tmp_path, name="texts.txt"):
    path = tmp_path / name
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return path


def run(*args):
    encode.main([str(arg) for arg in args])


def assert_close(found, wanted):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.toarray(), wanted.toarray(), rtol=1e-5, atol=1e-7)


def test_a_runs_last_stage_encodes_to_a_matrix(tmp_path, folder, expected, capsys):
    out = tmp_path / "out.npz"
    for role, model in (("document", folder), ("query", folder.parent)):
        target = out.with_stem(role)
        args = ("--texts", written(tmp_path), "--out", target, "--role", role)
        run("--model", model, *args)
        assert_close(sparse.load_npz(target), expected[role])
    said = capsys.readouterr().out
    assert said.count("40 texts encoded in") == 2
    # Of documents only.
    (step,) = (line for line in said.splitlines() if "lsrjax index" in line)
    assert f"--vectors {out.with_stem('document')} --texts" in step


def test_lines_name_the_terms_of_both_views(tmp_path, folder, expected):
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run("--model", folder, "--texts", texts, "--out", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["id"] for row in found] == [f"d{i}" for i in range(40)]
    pivot, source = (
        TextTokenizer(folder / name).vocabulary()
        for name in ("pivot_tokenizer", "tokenizer")
    )
    shifted = {token: len(pivot) + i for token, i in source.items()}
    matrix = np.zeros(expected["document"].shape, np.float32)
    for row, line in zip(matrix, found, strict=True):
        for term, weight in line["vector"].items():
            mark, token = term[:2], term[2:]
            row[{"e_": pivot, "m_": shifted}[mark][token]] = weight
    assert_close(sparse.csr_matrix(matrix), expected["document"])


def test_texts_pass_through_the_adapters_of_their_language(tmp_path, folder, capsys):
    before = saved_model.load_model(folder)
    size = before.spec.encoder.vocab_size
    encoder = tiny.encoder("xmod", vocab_size=size, max_positions=70)
    spec = RetrieverSpec("dense", encoder)
    params = jax.tree.map(lambda x: x + 0.1, retriever.init_params(spec, 3))
    adapters = params["encoder"]["layers"]["adapters"]
    adapters["sw_KE"]["down"]["kernel"] *= 3
    model = dataclasses.replace(before, spec=spec, params=params, pivot_tokenizer=None)
    (tmp_path / "model").mkdir()
    saved_model.save_model(tmp_path / "model", model)
    found = {}
    for language, wanted in (("", "de_DE"), ("sw", "sw_KE")):
        out = tmp_path / f"{wanted}.npz"
        args = ("--model", tmp_path / "model", "--texts", written(tmp_path))
        run(*args, "--out", out, "--language", language)
        known = RetrieverSpec("dense", encoder.with_language(wanted))
        made = TextEncoder(known, TextTokenizer(before.tokenizer))
        wanted_vectors = joined(made.encode(params, TEXTS, 68)).toarray()
        found[wanted] = np.load(out)["embeddings"]
        np.testing.assert_allclose(found[wanted], wanted_vectors, atol=1e-6)
    assert np.abs(found["de_DE"] - found["sw_KE"]).max() > 1e-3
    # Each in its own: files by language, whose texts are encoded together.
    half = len(TEXTS) // 2
    files = {}
    for language, texts in {"sw": TEXTS[:half], "de": TEXTS[half:]}.items():
        files[language] = str(tmp_path / f"{language}.jsonl")
        rows = [{"id": language + str(i), "text": t} for i, t in enumerate(texts) if t]
        jsonl(tmp_path / f"{language}.jsonl", rows)
    both = ("--model", tmp_path / "model", "--texts", str(files))
    run(*both, "--out", tmp_path / "both.npz", "--language", "stated")
    own = [found["sw_KE" if i < half else "de_DE"][i] for i, t in enumerate(TEXTS) if t]
    both_vectors = np.load(tmp_path / "both.npz")["embeddings"]
    np.testing.assert_allclose(both_vectors, own, atol=1e-6)
    # Documents in one, the query in another.
    flags = [*map(str, args), "--language", "sw", "--engine", "exact"]
    index.main([*flags, "--out", str(tmp_path / "docs.index")])
    german = TextEncoder(
        RetrieverSpec("dense", encoder.with_language("de")),
        TextTokenizer(before.tokenizer),
    )
    query = joined(german.encode(params, TEXTS[2:3], 64, "query")).toarray()[0]
    name = str(tmp_path / "model")
    session = open_search(tmp_path / "docs.index", name, language="de")
    with session.index:
        (hits,) = session.search(TEXTS[2:3], len(TEXTS))
    scores = sorted(found["sw_KE"] @ query, reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-5)
    with pytest.raises(InputError, match="Nothing states a text's language"):
        load(name, language="stated")
    for more, language, message in (
        (args, "xx", "'xx' has no adapters"),
        (args, "stated", "The language of a document is not stated"),
    ):
        with pytest.raises(SystemExit):
            run(*more, "--out", tmp_path / "no.npz", "--language", language)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no.npz").exists()


@pytest.mark.parametrize("head", ["dense", "colbert"])
def test_embeddings_are_encoded(tmp_path, folder, head):
    before = saved_model.load_model(folder)
    spec = RetrieverSpec.of(
        head,
        before.spec.encoder,
        embedding_size=5,
        **({"pooling": "mean"} if head == "dense" else {}),
    )
    params = retriever.init_params(spec, 4)
    model = dataclasses.replace(before, spec=spec, params=params, pivot_tokenizer=None)
    stage = tmp_path / "stage"
    stage.mkdir()
    saved_model.save_model(stage, model)
    args = ("--model", stage, "--texts", written(tmp_path), "--max_length", 68)
    for suffix in ("npz", "jsonl"):
        run(*args, "--out", tmp_path / f"out.{suffix}")
    encoder = TextEncoder(spec, TextTokenizer(model.tokenizer))
    (wanted,) = encoder.encode(params, TEXTS, 68).values()
    found = np.load(tmp_path / "out.npz")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = [json.loads(line)["vector"] for line in lines]
    if head == "dense":
        wanted = wanted.toarray()
        assert found.files == ["embeddings", "ids", "about.json"] and wanted.shape == (
            40,
            5,
        )
        np.testing.assert_allclose(rows, found["embeddings"], rtol=1e-6)
    else:
        np.testing.assert_array_equal(found["starts"], wanted.starts)
        wanted = wanted.tokens_TD
        flat = [token for tokens in rows for token in tokens]
        np.testing.assert_allclose(flat, found["embeddings"], rtol=1e-6)
    np.testing.assert_allclose(found["embeddings"], wanted, rtol=1e-5, atol=1e-6)


def test_what_was_encoded_before_a_stop_is_kept(
    tmp_path, folder, expected, monkeypatch, capsys
):
    monkeypatch.setattr(encode_corpus, "WINDOW_BATCHES", 1)
    args = ("--model", folder, "--texts", written(tmp_path), "--batch_size", 16)
    args = (*args, "--out", tmp_path / "out.npz")
    encoded, original = [], TextEncoder.encode_prepared

    def counted(self, params, prepared):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(prepared.texts))
        return original(self, params, prepared)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode_prepared", counted)
        with pytest.raises(KeyboardInterrupt):
            run(*args)
    assert encoded == [16, 16] and not (tmp_path / "out.npz").exists()

    def trained_on(reference):
        model = open_portable(reference)
        params = jax.tree.map(lambda leaf: leaf + 1, model.params)
        return dataclasses.replace(model, params=params)

    with monkeypatch.context() as patch:
        patch.setattr(encode_job, "open_portable", trained_on)
        with pytest.raises(SystemExit):
            run(*args)
    assert "  weights: there " in capsys.readouterr().err
    run(*args)
    assert "32 texts are encoded already" in capsys.readouterr().out
    assert_close(sparse.load_npz(tmp_path / "out.npz"), expected["document"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--out": "vectors.csv"}, "unknown type; name a .npz or a .jsonl"),
        ({"--texts": "none.txt"}, "none.txt is not a file"),
        ({"--texts": "bad.txt"}, "bad.txt, line 2 is not UTF-8"),
        ({"--max_length": "69"}, "--max_length is 69; the model takes 3 to 68"),
        ({"--batch_size": "0"}, "--batch_size is 0"),
        ({"--model": "./nowhere"}, "nowhere"),
    ],
)
def test_mistakes_say_what_to_do(
    tmp_path, folder, monkeypatch, capsys, change, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\n")
    given = {"--model": folder, "--texts": written(tmp_path), "--out": "out.npz"}
    with pytest.raises(SystemExit) as stop:
        run(*(part for pair in (given | change).items() for part in pair))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
