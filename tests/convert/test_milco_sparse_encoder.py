"""MILCO in SparseEncoder of sentence-transformers 6.2, and back."""

import json
import shutil

import numpy as np
import pytest
import torch
from milco_models import (
    LENGTHS,
    TEXTS,
    all_texts,
    assert_identical,
    assert_same,
    assert_same_model,
    assert_same_ranking,
    leaves,
    made,
    ours,
    own_modules,
    thousand_documents,
)
from scipy import sparse
from sentence_transformers import SparseEncoder

from lsrjax.checkpoint import saved_model
from lsrjax.convert import open_model, targets
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError

TARGET = "milco-sparse-encoder"
E, M = 8192, 16_000


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    with own_modules(tmp_path_factory.mktemp("modules")):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """case -> (the model, its folder)."""
    root = tmp_path_factory.mktemp("milco")
    found = {}
    for case in ("pivot", "options", "distilbert", "norbert3"):
        model = made(case)
        folder = root / case
        folder.mkdir()
        targets.TARGETS[TARGET].write(model, folder)
        found[case] = model, folder
    return found


def opened(folder, **options):
    return SparseEncoder(str(folder), trust_remote_code=True, device="cpu", **options)


def theirs(program, texts, role):
    encode = program.encode_query if role == "query" else program.encode_document
    found = encode(texts, batch_size=16).coalesce()
    assert found.is_sparse and found.dtype == torch.float32
    places, values = found.indices().numpy(), found.values().numpy()
    return sparse.csr_matrix((values, places), shape=tuple(found.shape))


@pytest.mark.parametrize(
    "case",
    [
        *("pivot", "options", "distilbert"),
        pytest.param("norbert3", marks=pytest.mark.slow),
    ],
)
def test_vectors_of_both_roles(models, case):
    model, folder = models[case]
    program, texts = opened(folder), all_texts()
    wanted = {role: ours(model, texts, role) for role in LENGTHS}
    for role, matrix in wanted.items():
        assert_same(theirs(program, texts, role), matrix)
        assert np.diff(matrix.indptr).min() > 0
    assert abs(wanted["query"] - wanted["document"]).max() > 0.1
    assert program.get_embedding_dimension() == wanted["query"].shape[1]
    assert program.similarity_fn_name == "dot"
    assert (program.max_seq_length, program.model_type) == (24, "SparseEncoder")


def test_texts_as_they_are_and_cut(models):
    """`encode` knows no role; a lower limit holds for all."""
    model, folder = models["options"]
    program = opened(folder)
    texts = all_texts()
    plain = program[0].model.encode_text(texts)
    found = program.encode(texts)
    np.testing.assert_allclose(found.to_dense(), plain.to_dense(), atol=1e-5)
    program.max_seq_length = 9
    for role in LENGTHS:
        assert_same(theirs(program, texts, role), ours(model, texts, role, 9))


@pytest.mark.slow
def test_thousand_documents_are_ranked_the_same(models):
    model, folder = models["options"]
    documents = thousand_documents()
    queries = all_texts()[:11]
    program = opened(folder)
    found, wanted = [], []
    for role, texts in (("query", queries), ("document", documents)):
        encode = getattr(program, f"encode_{role}")
        found.append(encode(texts, batch_size=64))
        wanted.append(ours(model, texts, role))
    scores = program.similarity(*found).numpy()
    assert_same_ranking(scores, (wanted[0] @ wanted[1].T).toarray())


def test_terms_of_both_vocabularies(models):
    model, folder = models["distilbert"]
    program = opened(folder)
    text = "Free Software, free, ελεύθερο λογισμικό"
    vector = ours(model, [text], "document").toarray()[0]
    terms = program.decode(program.encode_document(text))
    columns = {}
    for kind, tokenizer, first in (
        ("e", model.pivot_tokenizer, 0),
        ("m", model.tokenizer, E),
    ):
        vocabulary = TextTokenizer(tokenizer).vocabulary()
        columns |= {f"{kind}_{term}": first + i for term, i in vocabulary.items()}
    places = [columns[name] for name, _ in terms]
    assert sorted(places) == list(np.flatnonzero(vector))
    weights = np.array([weight for _, weight in terms])
    np.testing.assert_allclose(weights, vector[places], atol=1e-5 * weights.max())
    assert (np.diff(weights) <= 0).all()
    assert {name[0] for name, _ in terms} == {"e", "m"}


@pytest.mark.parametrize(
    "case",
    [
        *("pivot", "options", "distilbert"),
        pytest.param("norbert3", marks=pytest.mark.slow),
    ],
)
def test_it_comes_back_bit_for_bit(models, tmp_path, case):
    model, folder = models[case]
    assert_same_model(open_model.open_portable(str(folder)), model)
    targets.export(str(folder), "lsrjax", tmp_path / "ours")
    back = saved_model.load_model(tmp_path / "ours")
    assert back.spec == model.spec
    assert_identical(leaves(back.params), leaves(model.params))
    targets.export(str(folder), TARGET, tmp_path / "again")
    for path in folder.rglob("*"):
        # The card is titled by the folder that the model came from.
        if path.is_file() and path.name != "README.md":
            other = tmp_path / "again" / path.relative_to(folder)
            assert other.read_bytes() == path.read_bytes(), path


def test_saved_there_it_loads_there_and_here(models, tmp_path):
    """With another prompt, which is the one that counts."""
    model, folder = models["options"]
    program = opened(folder, prompts={"query": "find: ", "document": "a document: "})
    program.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    found = open_model.open_portable(str(tmp_path / "saved"))
    assert found.spec.query_prompt == "find: "
    assert_identical(leaves(found.params), leaves(model.params))
    texts = all_texts()
    again = theirs(opened(tmp_path / "saved"), texts, "query")
    assert_same(again, ours(found, texts, "query"))
    assert abs(again - ours(model, texts, "query")).max() > 0.1


def test_bfloat16_on_request(models):
    model, folder = models["options"]
    program = opened(folder, model_kwargs={"dtype": torch.bfloat16})
    assert next(program.parameters()).dtype == torch.bfloat16
    texts = all_texts()
    assert_same(theirs(program, texts, "document"), ours(model, texts, "document"), 0.1)


def test_its_code_runs_only_if_that_is_asked_for(models):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SparseEncoder(str(models["options"][1]))


def test_the_card_says_how_to_load_it(models):
    card = (models["options"][1] / "README.md").read_text()
    assert "library_name: sentence-transformers\n" in card
    assert "SparseEncoder('path/to/this/folder', trust_remote_code=True)" in card
    assert f"the {E:,} English terms, then the {M:,} tokens" in card


def test_vectors_that_are_cut_there_are_cut_here(models, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(models["options"][1], folder)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_active_dims": 9}))
    model = open_model.open_portable(str(folder))
    cut, whole = ours(model, TEXTS, "query"), ours(models["options"][0], TEXTS, "query")
    counts = np.diff(whole.indptr)
    np.testing.assert_array_equal(np.diff(cut.indptr), np.minimum(counts, 9))
    for row, count in enumerate(counts):
        if count:
            # Of both views together.
            kept = np.sort(whole[row].data)[-9:]
            np.testing.assert_allclose(np.sort(cut[row].data), kept, rtol=1e-6)
    with pytest.raises(InputError, match="weights are kept. Possible are milco-sparse"):
        targets.export(str(folder), "milco-hf", tmp_path / "out")
    targets.export(str(folder), TARGET, tmp_path / "out")
    written = (tmp_path / "out" / path.name).read_text()
    assert json.loads(written)["max_active_dims"] == 9


def test_only_milco_with_one_tower_goes_there(models, tmp_path):
    folder = models["options"][1]
    with pytest.raises(InputError, match=f"Possible are milco-hf, .*{TARGET}, onnx"):
        targets.export(str(folder), "splade", tmp_path / "out")
    assert not list(tmp_path.iterdir())
