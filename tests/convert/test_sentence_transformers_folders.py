"""Our retrievers in sentence-transformers 6.2, and its models as ours."""

import dataclasses
import functools
import pathlib
import shutil

import jax
import numpy as np
import pytest
import torch
from retrievers import (
    CASES,
    DOCUMENT,
    QUERY,
    TEXTS,
    TOKENIZERS,
    assert_same,
    model_of,
    ours,
    spec_of,
)
from sentence_transformers import (
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)

from lsrjax.checkpoint import saved_model
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.cli import convert
from lsrjax.convert import open_model, targets
from lsrjax.convert.read.huggingface import SHAPES
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones.table import backbone
from lsrjax.retrieval import maxsim, prefixes
from lsrjax.retrieval.maxsim import TokenMatrix


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Writes each case once."""
    root = tmp_path_factory.mktemp("folders")

    @functools.cache
    def of(case):
        folder = root / case.replace(" ", "-")
        folder.mkdir()
        targets.TARGETS[CASES[case][0]].write(model_of(case), folder)
        return folder

    return of


def opened(case, folder):
    target = CASES[case][0]
    kinds = {"dense": SentenceTransformer}
    kinds |= dict.fromkeys(("multi-vector", "pylate", "colbert"), MultiVectorEncoder)
    own_code = bool(backbone(CASES[case][1]).code)
    kind = kinds.get(target, SparseEncoder)
    return kind(str(folder), device="cpu", trust_remote_code=own_code)


def theirs(model, texts, role):
    encode = model.encode_query if role == "query" else model.encode_document
    found = encode(texts, batch_size=16)
    if isinstance(found, torch.Tensor):
        return found.to_dense().numpy()
    if isinstance(found, np.ndarray):
        return found
    rows = [np.asarray(row, np.float32) for row in found]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return TokenMatrix(np.concatenate(rows), starts)


def some(*quick, but=()):
    """All cases; those that are not named first take part in the slow tests only."""
    slow = pytest.mark.slow
    cases = [case for case in CASES if case not in but]
    return pytest.mark.parametrize(
        "case", [c if c in quick else pytest.param(c, marks=slow) for c in cases]
    )


# A marker in front of a text of no letters is not the same text there as here, where
# SentencePiece takes the space between for a word; see test_stanford.py.
@some(
    "splade untied sum",
    "splade towers",
    "opensearch",
    "opensearch sum",
    "splade distilbert",
    "splade modernbert",
    "splade norbert4 shifted",
    "splade qwen3",
    "dense qwen3",
    "dense qwen3 alone",
    "splade deberta",
    "static",
    "csr",
    "multi-vector",
    but=("colbert xlm-roberta", "pylate xlm-roberta", "colbert xmod", "pylate xmod"),
)
def test_vectors_are_the_same_in_their_program(case, folders):
    program = opened(case, folders(case))
    for role in ("query", "document"):
        wanted = ours(model_of(case), TEXTS, role)
        found = theirs(program, TEXTS, role)
        assert_same(found, wanted)
    if not isinstance(wanted, TokenMatrix):
        # Not all alike, so that a text taken for another one would be seen.
        assert len(np.unique(wanted, axis=0)) >= 10


RANKED = ("splade", "static", "csr", "dense projected", "multi-vector", "colbert")


@some(but=set(CASES) - set(RANKED))
def test_thousand_documents_are_ranked_the_same(case, folders):
    data = embedded.load("test")
    texts = [text for lang in data.languages for text in data.texts[lang].values()]
    documents = texts[:: len(texts) // 1000][:1000]
    queries = (
        list(data.titles["en"].values())[:5] + list(data.titles["de"].values())[:5]
    )
    assert len(documents) == 1000
    program = opened(case, folders(case))
    scores = []
    for encode, model in ((ours, model_of(case)), (theirs, program)):
        q, d = encode(model, queries, "query"), encode(model, documents, "document")
        both = maxsim.scores(q, d) if isinstance(q, TokenMatrix) else q @ d.T
        scores.append(both)
    a, b = scores
    tolerance = 2e-5 * np.abs(a).max()
    for of_ours, of_theirs in zip(a, b, strict=True):
        # In our order their scores fall, but for ties within the tolerance.
        in_order = of_theirs[np.argsort(-of_ours, kind="stable")]
        assert (np.diff(in_order) <= tolerance).all()
        assert in_order[0] - in_order[-1] > 100 * tolerance


def flat(tree):
    return {
        "/".join(str(key.key) for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_bits(found, wanted):
    found, wanted = flat(found), flat(wanted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@some(
    *("splade", "splade towers", "splade modernbert", "static xlm-roberta"),
    *("splade qwen3", "dense qwen3"),
    *("opensearch", "csr towers", "dense towers", "multi-vector", "colbert"),
    "pylate xlm-roberta",
)
def test_ours_come_back_bit_for_bit(case, folders):
    model = model_of(case)
    found = open_model.open_portable(str(folders(case)))
    assert_same_bits(found.params, model.params)
    assert dataclasses.asdict(found.spec) == dataclasses.asdict(model.spec)
    assert (found.query_length, found.document_length) == (QUERY, DOCUMENT)
    opened_model = open_model.open_model(str(folders(case)), pathlib.Path())
    assert opened_model.spec == found.spec


# The first case of each target: what models differ in, the tests above have.
FIRST = {target: case for case, (target, *_) in reversed(CASES.items())}


@some("static", but=CASES.keys() - FIRST.values() - {"static"})
def test_a_stage_is_exported_by_its_folder(case, tmp_path):
    """The command; the lengths are those of the run's config or the default ones."""
    model = model_of(case)
    (tmp_path / "stage").mkdir()
    saved_model.save_model(tmp_path / "stage", model)
    args = ["--from", tmp_path / "stage", "--to", CASES[case][0]]
    convert.main([str(a) for a in [*args, "--out", tmp_path / "out"]])
    found = open_model.open_portable(str(tmp_path / "out"))
    assert_same_bits(found.params, model.params)


def test_an_export_to_lsrjax_keeps_the_lengths_of_texts(folders, tmp_path):
    """Without them, a ColBERT's queries would be filled up to another length."""
    targets.export(str(folders("multi-vector")), "lsrjax", tmp_path / "out")
    found = open_model.open_portable(str(tmp_path / "out"))
    assert (found.query_length, found.document_length) == (QUERY, DOCUMENT)
    done = tmp_path / "out" / "done.json"
    done.write_text(done.read_text().replace(str(QUERY), '"many"'))
    with pytest.raises(InputError, match=r"done\.json is damaged .*'many'"):
        open_model.open_portable(str(tmp_path / "out"))


@pytest.mark.parametrize(
    "case",
    [
        "dense projected",
        pytest.param("dense qwen3", marks=pytest.mark.slow),
        pytest.param("dense towers", marks=pytest.mark.slow),
    ],
)
def test_a_prefix_of_embeddings_is_theirs(case, folders, tmp_path):
    """`truncate_dim` of the whole model, and the model of a smaller size."""
    model, size = model_of(case), 4
    short = prefixes.shortened(model, size, "")
    targets.TARGETS["dense"].write(short, tmp_path)
    whole = opened(case, folders(case))
    whole.truncate_dim = size
    for role in ("query", "document"):
        wanted = ours(short, TEXTS, role)
        assert wanted.shape == (len(TEXTS), size)
        assert_same(theirs(opened(case, tmp_path), TEXTS, role), wanted)
        cut = theirs(whole, TEXTS, role)
        cut /= np.linalg.norm(cut, axis=1, keepdims=True)
        assert_same(cut, wanted)


def test_a_model_of_shorter_embeddings_is_exported(tmp_path):
    (tmp_path / "stage").mkdir()
    saved_model.save_model(tmp_path / "stage", model_of("dense projected"))
    args = ["--from", tmp_path / "stage", "--to", "lsrjax", "--embedding_size", 4]
    convert.main([str(a) for a in [*args, "--out", tmp_path / "out"]])
    assert saved_model.load_model(tmp_path / "out").spec.views == {"dense": 4}


REFUSED = {
    "queries that are not encoded": ("splade", "words", "Possible are inference-free"),
    "queries that are encoded": ("inference-free", "splade", "Possible are splade"),
    "another head": ("csr", "dense", "Possible are .*dense"),
    "the first token's logits": (
        "splade",
        "splade",
        "pooling is 'cls'. Possible are onnx",
    ),
    "two towers": ("onnx", "splade towers", "tower.*Possible are splade, lsrjax"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_format_cannot_hold_is_refused(what, tmp_path):
    target, case, message = REFUSED[what]
    (tmp_path / "stage").mkdir()
    model = model_of(case)
    if "first token" in what:
        model = dataclasses.replace(model, spec=model.spec.replaced(pooling="cls"))
    saved_model.save_model(tmp_path / "stage", model)
    with pytest.raises(InputError, match=message):
        targets.export(str(tmp_path / "stage"), target, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"stage"}


@some("splade untied", "static", "csr", "dense towers", "colbert")
def test_a_folder_is_planned_as_it_is_trained(case, folders, tmp_path):
    folder = shutil.copytree(folders(case), tmp_path / "model")
    wanted, whole = (
        open_model.open_model(str(folder), tmp_path, **options)
        for options in ({}, {"allowed": SHAPES})
    )
    # As of a model on the hub, of which a plan fetches no weights.
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    for found in (whole, open_model.open_model(str(folder), tmp_path, allowed=SHAPES)):
        assert found.query_length == wanted.query_length
        assert found.document_length == wanted.document_length
        assert found.spec == wanted.spec
        shapes = [jax.tree.map(np.shape, model.params) for model in (found, wanted)]
        assert shapes[0] == shapes[1]


def test_towers_are_different_models():
    """A query is not encoded by the documents' tower, nor the other way."""
    for case in ("splade towers", "dense towers"):
        model = model_of(case)
        document, query = retriever.towers_of(model.params)
        swapped = retriever.with_query_tower(query, document)
        other = dataclasses.replace(model, params=swapped)
        for role in ("query", "document"):
            found, wanted = ours(other, TEXTS, role), ours(model, TEXTS, role)
            assert np.abs(found - wanted).max() > 0.1 * np.abs(wanted).max()


def test_weights_of_tokens_have_no_folder_there(tmp_path):
    spec = spec_of("bert", {"head": "token_weights"})
    model = SavedModel(
        spec,
        retriever.init_params(spec, 0),
        TOKENIZERS["bert"],
        None,
        "token weights",
        QUERY,
        DOCUMENT,
    )
    (tmp_path / "stage").mkdir()
    saved_model.save_model(tmp_path / "stage", model)
    with pytest.raises(InputError, match="head is 'token_weights'. Possible are"):
        targets.export(str(tmp_path / "stage"), "splade", tmp_path / "out")


def test_a_word_as_a_marker_is_written_as_a_word_or_refused(tmp_path):
    """A tokenizer that took it for one piece would do so in the middle of texts."""
    vocabulary = TextTokenizer(TOKENIZERS["bert"]).vocabulary()
    model = model_of("multi-vector")
    marked = {"query_marker": vocabulary["file"], "document_marker": -1}
    whole = dataclasses.replace(model.spec, **marked)
    model = dataclasses.replace(model, spec=whole)
    (tmp_path / "out").mkdir()
    targets.TARGETS["multi-vector"].write(model, tmp_path / "out")
    found = open_model.open_portable(str(tmp_path / "out"))
    assert found.spec.query_prompt == "file "
    assert_same(ours(found, TEXTS, "query"), ours(model, TEXTS, "query"))
    vocabulary = TextTokenizer(TOKENIZERS["xlm-roberta"]).vocabulary()
    word = next(w for w in vocabulary if w.isalpha() and w.isascii() and len(w) > 3)
    model = model_of("multi-vector xlm-roberta")
    spec = dataclasses.replace(model.spec, query_marker=vocabulary[word])
    with pytest.raises(InputError, match=f"marker .*{word}"):
        targets.TARGETS["multi-vector"].write(
            dataclasses.replace(model, spec=spec), tmp_path
        )
