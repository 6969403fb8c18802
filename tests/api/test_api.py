"""`lsrjax.load`, `search` and `evaluate` against the vectors' own products."""

import numpy as np
import pytest
from programs import tiny_models
from programs.layouts import jsonl, lines
from scipy import sparse

import lsrjax
from lsrjax.errors import InputError
from lsrjax.retrieval.text_search import Plan

DOCUMENTS = {
    "apple": "red apple pie",
    "mouse": "a mouse driver for the boot disk",
    "cat": "猫 и мышь",
    "boot": "the boot loader of a computer",
}
QUERIES = ["boot loader", "мышь", "a red mouse"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "distill"
    return tiny_models.save(path, "milco", lexecho=True)


@pytest.fixture(scope="module")
def model(folder):
    return lsrjax.load(str(folder.parent), batch_size=4)


@pytest.fixture(scope="module")
def products(model):
    """The score of each document for each query."""
    queries, documents = QUERIES, [*DOCUMENTS.values()]
    return model.encode_queries(queries) @ model.encode_documents(documents).T


def test_vectors_are_sparse_rows_with_named_terms(model):
    vectors = model.encode_documents([*DOCUMENTS.values()])
    assert sparse.isspmatrix_csr(vectors) and vectors.dtype == np.float32
    assert vectors.shape == (len(DOCUMENTS), len(model.term_names))
    columns = {name: column for column, name in enumerate(model.term_names)}
    for row, terms in enumerate(model.terms(vectors)):
        assert [*terms.values()] == sorted(terms.values(), reverse=True)
        dense = np.zeros(vectors.shape[1], np.float32)
        dense[[columns[name] for name in terms]] = [*terms.values()]
        np.testing.assert_array_equal(dense, vectors[row].toarray()[0])
    tokenizer = model.searcher.encoder.tokenizer
    echoed = 0
    for text, terms in zip(DOCUMENTS.values(), model.terms(vectors), strict=True):
        own = {f"m_{tokenizer.token(i)}" for i in tokenizer.ids([text], 60)[0]}
        echo = {name for name in terms if name.startswith("m_")}
        assert echo <= own  # LexEcho has the text's own tokens alone
        echoed += len(echo)
    assert echoed


def test_a_score_is_explained_by_its_terms(model, products):
    document = DOCUMENTS["boot"]
    found = model.explain("boot loader", document)
    total = sum(match.score for match in found)
    assert total == pytest.approx(products.toarray()[0, 3], rel=1e-5)
    (query,) = model.terms(model.encode_queries(["boot loader"]))
    (own,) = model.terms(model.encode_documents([document]))
    assert {match.term for match in found} == set(query) & set(own)
    for match in found:
        assert match.query == pytest.approx(query[match.term], rel=1e-5)
        assert match.document == pytest.approx(own[match.term], rel=1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_the_best_documents_come_first(model, products, kept):
    documents = model.index(DOCUMENTS) if kept else DOCUMENTS
    found = lsrjax.search(model, documents, QUERIES, depth=3)
    for hits, scores in zip(found, products.toarray(), strict=True):
        order = np.argsort(-scores, kind="stable")[:3]
        ids = [*DOCUMENTS]
        assert [hit.id for hit in hits] == [ids[i] for i in order]
        assert [hit.text for hit in hits] == [DOCUMENTS[hit.id] for hit in hits]
        expected = pytest.approx(scores[order], rel=1e-5)
        assert [hit.score for hit in hits] == expected
        parts = [sum(match.score for match in hit.matches) for hit in hits]
        assert parts == expected


def test_texts_alone_have_numbers_and_plans_are_those_of_the_command(model):
    texts = [*DOCUMENTS.values()]
    (hits,) = lsrjax.search(model, texts, ["boot loader"], plan=Plan(["bm25"]))
    assert [hit.id for hit in hits] == ["3", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "size"), [("colbert", 5), ("dense", 5), ("m3", 5)])
def test_embeddings_are_searched_and_explained(tmp_path, head, size):
    path = tiny_models.save(tmp_path / "only", head, embedding_size=size)
    model = lsrjax.load(str(path), batch_size=4)
    index = model.index(DOCUMENTS)
    for query in QUERIES:
        hits = lsrjax.search(model, index, [query])[0]
        assert [hit.score for hit in hits] == sorted(
            (hit.score for hit in hits), reverse=True
        )
        for hit in hits:
            total = sum(match.score for match in model.explain(query, hit.text))
            assert total == pytest.approx(hit.score, rel=1e-4)
    with pytest.raises(InputError, match="have no terms"):
        model.terms(sparse.csr_matrix((1, 5)))


def test_texts_may_come_one_by_one_and_a_depth_may_be_any(model, products):
    found = model.encode_queries(text for text in QUERIES)
    wanted = model.encode_queries(QUERIES)
    np.testing.assert_array_equal(found.toarray(), wanted.toarray())
    documents, queries = iter(DOCUMENTS.values()), iter(QUERIES)
    hits = lsrjax.search(model, documents, queries, depth=10**12)
    assert [len(one) for one in hits] == [*(products > 0).toarray().sum(axis=1)]


def test_an_evaluation_has_the_values_of_the_documents_that_are_found(
    tmp_path, model, products
):
    rows = [{"_id": key, "text": text} for key, text in DOCUMENTS.items()]
    jsonl(tmp_path / "corpus.jsonl", rows)
    asked = [{"_id": str(i), "text": text} for i, text in enumerate(QUERIES)]
    jsonl(tmp_path / "queries.jsonl", asked)
    first = [[*DOCUMENTS][i] for i in products.toarray().argmax(axis=1)]
    judged = [first[0], first[1], next(key for key in DOCUMENTS if key != first[2])]
    rows = [f"{i} 0 {key} 1" for i, key in enumerate(judged)]
    lines(tmp_path / "qrels" / "test.txt", rows)
    task = {"name": "beir", "path": str(tmp_path)}
    found = lsrjax.evaluate(model, task, metrics=["P@1"], bm25=False)
    (values,) = found["beir"]["results"].values()
    assert values["all"]["P@1"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["beir"]["metrics"] == ["P@1"]


def test_mistakes_say_what_to_do(tmp_path, model, folder):
    for call, message in [
        (lambda: model.encode_queries("one text"), "give a list of texts"),
        (lambda: model.encode_documents(["a", "b\udcff"]), "text 2 .* is not text"),
        (lambda: lsrjax.search(model, DOCUMENTS, "text"), "give a list of texts"),
        (lambda: lsrjax.search(model, DOCUMENTS, [None]), "text 1 is None"),
        (lambda: lsrjax.search(model, DOCUMENTS, QUERIES, depth=0), "depth is 0"),
        (lambda: model.encode_documents(DOCUMENTS), "dict is no list of texts"),
        (lambda: model.explain(["a"], "a"), r"text 1 is \['a'\]"),
        (lambda: lsrjax.load(str(folder), query_length=2), "--query_length is 2"),
        (lambda: lsrjax.evaluate(model, "no_such"), "'no_such'"),
        (lambda: lsrjax.train(tmp_path / "none.py", tmp_path), "No config file"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    other = lsrjax.load(str(tiny_models.save(tmp_path / "b", "milco", 4, lexecho=True)))
    with pytest.raises(InputError, match="has weights of digest"):
        lsrjax.search(other, model.index(DOCUMENTS), QUERIES)


def test_a_name_that_is_no_call_is_refused():
    with pytest.raises(AttributeError, match="'lsrjax' has no attribute 'encode_all'"):
        lsrjax.encode_all  # noqa: B018
    assert {"load", "search", "evaluate", "train"} == set(lsrjax.__all__)
