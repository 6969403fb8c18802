"""The dev metric of judged data: that of trec_eval over the whole corpus."""

import gzip
import json

import numpy as np
import pytest
import pytrec_eval
from scipy import sparse

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data.sources import open_source
from lsrjax.errors import InputError
from lsrjax.retrieval import evaluate

DOCUMENTS, QUERIES, TERMS = 211, 37, 53


def everything(language):
    return True


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def judged(tmp_path):
    """Grades of up to 9 documents a query, 0 and below among them, in a BEIR folder."""
    rng = np.random.default_rng(0)
    docs = [{"_id": f"d{i}", "title": "", "text": f"{i}"} for i in range(DOCUMENTS)]
    docs[5]["text"] = ""  # as FiQA has them
    docs[7]["text"] = docs[8]["text"]  # two documents of one text
    jsonl(tmp_path / "corpus.jsonl", docs)
    asked = [{"_id": f"q{i}", "text": f"{i}"} for i in range(QUERIES)]
    jsonl(tmp_path / "queries.jsonl", asked)
    qrels = {}
    for i in range(QUERIES):
        chosen = rng.choice(DOCUMENTS, rng.integers(1, 10), replace=False)
        grades = rng.integers(-1, 4, len(chosen)).tolist()
        of = {f"d{doc}": grade for doc, grade in zip(chosen, grades, strict=True)}
        qrels[f"q{i}"] = of
    qrels["q3"] = dict.fromkeys(qrels["q3"], 0)  # nothing relevant: counts as 0
    (tmp_path / "qrels").mkdir()
    lines = [f"{q}\t{d}\t{g}\n" for q, of in qrels.items() for d, g in of.items()]
    (tmp_path / "qrels" / "dev.tsv").write_text("".join(lines))
    return qrels


class Stub:
    """Random vectors for texts, which are their own numbers."""

    def __init__(self):
        rng = np.random.default_rng(1)
        shape = (DOCUMENTS + QUERIES, TERMS)
        self.vectors = rng.random(shape).astype(np.float32)

    def documents(self, texts, languages=None):
        rows = self.vectors[[int(text or -1) for text in texts]]
        return {"terms": sparse.csr_matrix(rows)}

    def queries(self, texts, languages=None):
        return {"terms": sparse.csr_matrix(self.vectors[[-int(t) for t in texts]])}


def opened(folder, **fields):
    data = get_default().data
    data.source.files = str(folder)
    for field, value in fields.items():
        data[field] = value
    return open_source(data, "group", where="config.dev")


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [("nDCG@10", "ndcg_cut_10"), ("R@100", "recall_100"), ("AP", "map")]
    + [("RR", "recip_rank"), ("nDCG", "ndcg"), ("P@5", "P_5")],
)
def test_is_that_of_trec_eval_over_all_documents(tmp_path, judged, metric, theirs):
    task = evaluate.dev_task(opened(tmp_path), 1000, everything)
    assert len(task.corpus) == DOCUMENTS and len(task.queries) == QUERIES
    stub = Stub()
    found = evaluate.dev_metric([task], stub, metric)[metric]
    # All scores of all documents by their ids, ranked and measured by trec_eval.
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    d = stub.documents(texts)["terms"]
    q = stub.queries([str(i) for i in range(QUERIES)])["terms"]
    scores = (q @ d.T).toarray()
    # It orders equal scores by the name, downwards; we by the place, upwards.
    run = {
        f"q{i}": {f"d{j}": float(row[j]) - 1e-6 * j for j in range(DOCUMENTS)}
        for i, row in enumerate(scores)
    }
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {theirs})
    values = [value[theirs] for value in evaluator.evaluate(run).values()]
    assert len(values) == QUERIES
    assert found == pytest.approx(np.mean(values), abs=1e-6)
    assert 0.01 < found < 0.99


def test_queries_are_limited_and_the_corpus_is_not(tmp_path, judged):
    task = evaluate.dev_task(opened(tmp_path), 5, everything)
    assert len(task.queries) == 5 and len(task.corpus) == DOCUMENTS


def test_ids_of_other_formats_search_their_whole_corpus(tmp_path, judged):
    rows = [
        {
            "query": query,
            "positive_document_ids": [doc for doc, grade in of.items() if grade > 0],
            "negative_document_ids": ["d0"],
        }
        for query, of in judged.items()
    ]
    without = [row for row in rows if not row["positive_document_ids"]]
    rows = [row for row in rows if row["positive_document_ids"]]
    jsonl(tmp_path / "rows.jsonl", rows)
    corpus = str(tmp_path / "corpus.jsonl")
    source = opened(tmp_path / "rows.jsonl", corpus=corpus)
    task = evaluate.dev_task(source, 1000, everything)
    assert len(task.corpus) == DOCUMENTS
    for row, relevant in zip(rows, task.relevant, strict=True):
        assert relevant == {int(doc[1:]): 1 for doc in row["positive_document_ids"]}
    jsonl(tmp_path / "rows.jsonl", [*rows, *without])
    source = opened(tmp_path / "rows.jsonl", corpus=corpus)
    with pytest.raises(InputError, match="no positive document"):
        evaluate.dev_task(source, 1000, everything)
    pairs = [{**row, "positive_document_ids": ["d9"]} for row in rows]
    jsonl(tmp_path / "rows.jsonl", [*rows, *pairs])
    source = opened(tmp_path / "rows.jsonl", corpus=corpus)
    both = evaluate.dev_task(source, 1000, everything)
    assert list(both.relevant) == [of | {9: 1} for of in task.relevant]
    lines = [json.dumps([f"q{i}", "d3", "d4"]) + "\n" for i in range(9)]
    (tmp_path / "lists.jsonl").write_text("".join(lines))
    queries = str(tmp_path / "queries.jsonl")
    lists = entry("colbert", queries=queries)
    source = opened(tmp_path / "lists.jsonl", corpus=corpus, format=lists)
    task = evaluate.dev_task(source, 1000, everything)
    assert list(task.relevant) == [{3: 1}] * 9 and len(task.corpus) == DOCUMENTS


def test_a_corpus_in_several_languages_has_each_document_once(tmp_path):
    (tmp_path / "en.tsv").write_text("1\tone\n2\ttwo\n")
    (tmp_path / "de.tsv").write_text("2\tzwei\n3\tdrei\n")
    row = {"query": "q", "positive_document_ids": ["2", "3"]}
    jsonl(tmp_path / "rows.jsonl", [row])
    corpus = {"de": f"{tmp_path}/de.tsv", "en": f"{tmp_path}/en.tsv"}
    source = opened(tmp_path / "rows.jsonl", corpus=corpus)
    task = evaluate.dev_task(source, 10, everything)
    assert task.corpus == ["two", "drei", "one"]
    assert task.spoken_at([1, 2]) == ["de", "en"]
    assert list(task.relevant) == [{0: 1, 1: 1}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q0\tnobody\t1\n", "'nobody' is not in the corpus .211 documents"),
        ("q0\td210\t0.5\n", "'d210' has the grade 0.5. Metrics take whole numbers"),
        ("nobody\td1\t1\n", "'nobody' is not in .*queries.jsonl"),
        ("q0\td210\n", r"dev\.tsv, line"),
    ],
)
def test_judgements_that_cannot_be_measured_are_named(tmp_path, judged, line, message):
    path = tmp_path / "qrels" / "dev.tsv"
    path.write_text(path.read_text() + line)
    with pytest.raises(InputError, match=message):
        evaluate.dev_task(opened(tmp_path), 1000, everything)


def test_a_missing_document_that_is_not_relevant_changes_nothing(tmp_path, judged):
    before = evaluate.dev_task(opened(tmp_path), 1000, everything)
    path = tmp_path / "qrels" / "dev.tsv"
    path.write_text(path.read_text() + "q0\tnobody\t0\n")
    assert evaluate.dev_task(opened(tmp_path), 1000, everything) == before


def test_a_packed_folder_is_the_same(tmp_path, judged):
    wanted = evaluate.dev_task(opened(tmp_path), 1000, everything)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"):
        path = tmp_path / name
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert evaluate.dev_task(opened(tmp_path), 1000, everything) == wanted


def test_files_of_dev_data_are_named_as_such(tmp_path):
    with pytest.raises(
        InputError, match=r"config\.dev\.source\.files: no file matches"
    ):
        opened(tmp_path / "nothing.jsonl")
    (tmp_path / "qrels").mkdir()
    with pytest.raises(InputError, match=r"SPLIT is an option, config\.dev\.format ="):
        opened(tmp_path, format="beir")
