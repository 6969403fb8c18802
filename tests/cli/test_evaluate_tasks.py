"""`lsrjax evaluate` on tasks in tiny layouts, against trec_eval's own program."""

import contextlib
import dataclasses
import gzip
import json

import numpy as np
import pytest
import pytrec_eval
from programs import tiny
from programs.layouts import jsonl, lines, parquet

from lsrjax.checkpoint import saved_model
from lsrjax.cli import evaluate
from lsrjax.convert.open_model import open_portable, tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import rank
from lsrjax.retrieval.encode_texts import TextEncoder, joined
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.runs import read_run

WORDS = ["apple", "library", "network", "editor", "game", "music", "python", "kernel"]
METRICS = "nDCG@10,R@5,AP,RR"
THEIRS = {"nDCG@10": "ndcg_cut_10", "R@5": "recall_5", "AP": "map", "RR": "recip_rank"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SPLADE of random weights as the only stage of a run."""
    path = tmp_path_factory.mktemp("run") / "train"
    path.mkdir()
    tokenizer = tokenizer_folder("embedded:english")
    size = TextTokenizer(tokenizer).vocab_size
    encoder = tiny.encoder(vocab_size=size, hidden_size=8, max_positions=40)
    spec = RetrieverSpec.of("splade", encoder)
    params = retriever.init_params(spec, 5)
    model = saved_model.SavedModel(spec, params, tokenizer, None, "random")
    saved_model.save_model(path, model)
    config = {"data": {"query_length": 16, "document_length": 32}}
    (path.parent / "config.json").write_text(json.dumps(config))
    return path.parent


def collection(path, seed, documents=61, queries=23):
    """Texts with many equal ones, and graded judgements, some of them of nothing."""
    rng = np.random.default_rng(seed)

    def text(words):
        return " ".join(rng.choice(WORDS, words))

    docs = [{"_id": f"d{i}", "title": "", "text": text(3)} for i in range(documents)]
    docs[7]["text"] = docs[8]["text"] = docs[9]["text"]  # equal scores
    jsonl(path / "corpus.jsonl", docs)
    asked = [{"_id": f"q{i}", "text": text(2)} for i in range(queries)]
    jsonl(path / "queries.jsonl", [*asked, {"_id": "unjudged", "text": "apple"}])
    qrels = {}
    for i in range(queries):
        chosen = rng.choice(documents, rng.integers(1, 8), replace=False)
        qrels[f"q{i}"] = {f"d{j}": int(rng.integers(0, 4)) for j in chosen}
    qrels["q3"] = dict.fromkeys(qrels["q3"], 0)
    rows = [f"{q} 0 {d} {g}" for q, of in qrels.items() for d, g in of.items()]
    lines(path / "qrels" / "test.txt", rows)
    return docs, asked, qrels


def run(*args):
    evaluate.main([str(arg) for arg in args])


def rows_of(out):
    with gzip.open(out / "per_query.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def measured(qrels, run):
    """The values of each query by trec_eval; 0 for a query without a ranking."""
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(THEIRS.values()))
    found = evaluator.evaluate(run)
    none = dict.fromkeys(THEIRS.values(), 0.0)
    return {query: found.get(query, none) for query in qrels}


def test_values_are_those_of_trec_eval_for_all_scores_of_all_documents(
    tmp_path, folder, capsys
):
    docs, asked, qrels = collection(tmp_path / "data", 1)
    out = tmp_path / "out"
    task = ("--task", "beir", f"--task.path={tmp_path / 'data'}", "--task.languages=fi")
    run("--model", folder, *task, "--out", out, "--metrics", METRICS)
    results = json.loads((out / "results.json").read_text())["tasks"]["beir"]
    # Vectors and scores apart from the command; equal scores by place, not by name.
    model = open_portable(str(folder))
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer))
    d = joined(encoder.encode(model.params, [doc["text"] for doc in docs], 32))
    q = joined(
        encoder.encode(model.params, [query["text"] for query in asked], 16, "query")
    )
    scores = (q @ d.T).toarray()
    theirs = measured(
        qrels,
        {
            query["_id"]: {
                f"d{j}": float(len(docs) - rank)
                for rank, j in enumerate(np.argsort(-row, kind="stable"))
            }
            for query, row in zip(asked, scores, strict=True)
        },
    )
    rows = {row["query"]: row for row in rows_of(out) if row["system"] == "model"}
    assert set(rows) == set(qrels)
    for query, values in theirs.items():
        for metric, name in THEIRS.items():
            assert rows[query][metric] == pytest.approx(values[name], abs=1e-9)
    for metric, name in THEIRS.items():
        mean = np.mean([values[name] for values in theirs.values()])
        assert results["results"]["model"]["fi"][metric] == pytest.approx(
            mean, abs=1e-6
        )
    # The written runs give the same again, those of BM25 with queries of no hit too.
    for system in ("model", "bm25"):
        written = read_run(out / "runs" / f"beir-fi.{system}.trec.gz")
        again = measured(qrels, written)
        for row in rows_of(out):
            if row["system"] == system:
                for metric, name in THEIRS.items():
                    wanted = again[row["query"]][name]
                    assert row[metric] == pytest.approx(wanted, abs=1e-9)
    assert results["data"]["beir/fi"]["judgements"] == sum(map(len, qrels.values()))
    shown = capsys.readouterr().out
    assert "beir: nDCG@10" in shown and "bm25" in shown and "sha256" in shown


def languages(path):
    for language, seed in (("da", 1), ("sv", 2)):
        collection(path / language, seed)
    path = f"--task.path={path}/{{language}}"
    return ("--task", "beir", path, "--task.languages=da,sv")


@pytest.fixture(scope="module")
def first(tmp_path_factory, folder):
    """The flags of a task of two languages, and the folder of its evaluation."""
    path = tmp_path_factory.mktemp("first")
    task, out = languages(path), path / "out"
    args = (*task, "--metrics", METRICS)
    run("--model", folder, *args, "--out", out, "--views", "--lowercase")
    return args, out


def test_results_by_language_with_mean_and_worst(first):
    _, out = first
    results = json.loads((out / "results.json").read_text())
    assert results["lowercase"] is True and results["query_length"] == 16
    table = results["tasks"]["beir"]["results"]["model"]
    assert list(table) == ["da", "sv", "mean", "worst"]
    of = [table[language]["nDCG@10"] for language in ("da", "sv")]
    assert table["mean"]["nDCG@10"] == pytest.approx(np.mean(of), abs=1e-6)
    assert table["worst"]["nDCG@10"] == min(of) < max(of)


def test_a_language_that_fails_makes_the_command_fail(tmp_path, folder, capsys):
    task = languages(tmp_path)
    (tmp_path / "sv" / "qrels" / "test.txt").write_text("q1 0 nobody 1\n")
    with pytest.raises(SystemExit) as stopped:
        run("--model", folder, *task, "--out", tmp_path / "out")
    assert stopped.value.code == 2
    said = capsys.readouterr()
    problem = "query 'q1': the relevant document 'nobody' is not in the corpus"
    assert problem in said.err
    assert not (tmp_path / "out" / "results.json").exists()
    assert "is evaluated" not in said.out  # read before anything is encoded


def test_comparisons_with_an_evaluation_and_with_a_run(tmp_path, folder, first, capsys):
    (task, first), second = first, tmp_path / "second"
    data = first.parent
    pruned = ("--prune_documents", "top:1", "--compare", first, "--metrics", "nDCG@10")
    run("--model", folder, *task, "--out", second, *pruned)
    made = json.loads((second / "results.json").read_text())["tasks"]["beir"]
    found = made["compared"]["nDCG@10"]
    assert list(found) == ["da", "sv", "all"] and found["all"]["queries"] == 46
    before = json.loads((first / "results.json").read_text())["tasks"]["beir"]
    for language in ("da", "sv"):
        gain = [one["results"]["model"][language]["nDCG@10"] for one in (made, before)]
        wanted = pytest.approx(gain[0] - gain[1], abs=2e-6)
        assert found[language]["difference"] == wanted
    assert made["results"]["model"]["da"]["document_terms"] == 1
    # With the run of the same system, nothing differs.
    danish = ("--task", "beir", f"--task.path={data / 'da'}", "--task.languages=da")
    run_file = first / "runs" / "beir-da.model.trec.gz"
    run("--model", folder, *danish, "--compare", run_file)
    assert "better 0, worse 0 of 23; p = 1.0000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        other = ("--task", "beir", f"--task.path={data / 'sv'}")
        run("--model", folder, *other, "--compare", first)
    assert "beir/all" in capsys.readouterr().err
    lines(tmp_path / "run", ["q1 Q0 D1 1 0.5 tag"])
    with pytest.raises(SystemExit):
        run("--model", folder, *danish, "--compare", tmp_path / "run")
    assert "none of the documents of beir/da, but 'D1' for" in capsys.readouterr().err


def test_ids_with_spaces_are_measured_without_runs(tmp_path, folder, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    jsonl(data / "corpus.jsonl", [{"_id": f"d {i}", "text": WORDS[i]} for i in (0, 1)])
    jsonl(data / "queries.jsonl", [{"_id": "q 1", "text": WORDS[1]}])
    lines(data / "qrels/test.tsv", ["q 1\td 1\t1"])
    task = ("--task", "beir", f"--task.path={data}")
    names = "RR@10, P(rel=1,judged_only=True)@1"
    run("--model", folder, *task, "--out", out, "--metrics", names, "--no_bm25")
    assert "cannot hold its id 'q 1'" in capsys.readouterr().out
    assert not (out / "runs").exists()
    (row,) = rows_of(out)
    assert row["query"] == "q 1" and [*row][5:7] == names.split(", ")


def test_an_evaluation_that_was_stopped_goes_on(
    tmp_path, folder, first, capsys, monkeypatch
):
    """Stopped in each corpus; then what it kept is damaged, or of something else."""
    task, before = first
    out = tmp_path / "out"
    monkeypatch.setattr(rank, "_BLOCK", 16)  # four blocks a corpus
    monkeypatch.setattr(rank, "_KEEP_SECONDS", 0.0)
    documents, encoded = Searcher.documents, []

    def evaluated(*flags, stop=None, model=folder):
        """What is said by an evaluation that stops in the block after so many."""

        def counted(self, texts, languages):
            encoded.append(len(texts))
            if len(encoded) - 1 == stop:
                raise KeyboardInterrupt
            return documents(self, texts, languages)

        encoded.clear()
        monkeypatch.setattr(Searcher, "documents", counted)
        with (
            contextlib.nullcontext()
            if stop is None
            else pytest.raises(KeyboardInterrupt)
        ):
            run("--model", model, *task, "--out", out, "--views", *flags)
        return " ".join(capsys.readouterr().out.split())

    evaluated("--lowercase", stop=2)
    said = evaluated("--lowercase", stop=3)  # of the other language, the second block
    assert "32 documents are searched already" in said
    said = evaluated("--lowercase", stop=0)
    assert "da was evaluated before the stop" in said
    assert "16 documents are searched already" in said
    (out / "runs" / "beir-da.bm25.trec.gz").write_bytes(b"")
    path = out / "unfinished" / "beir.1.search"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    said = evaluated("--lowercase", stop=2)
    assert "its TREC runs have changed" in said and "search is damaged" in said
    assert "61 documents are searched already" in said
    said = evaluated("--lowercase")
    assert "da was evaluated before the stop" in said and encoded == [16, 13]
    assert rows_of(out) == rows_of(before)
    for name in ("beir-da.bm25", "beir-sv.model"):
        made, wanted = (read_run(of / f"runs/{name}.trec.gz") for of in (out, before))
        assert made == wanted
    made, wanted = ((of / "results.json").read_text() for of in (out, before))
    assert made == wanted
    assert not (out / "unfinished").exists()
    evaluated("--lowercase", stop=5)
    said = evaluated()
    assert "lowercase: there True, asked False" in said and len(encoded) == 8
    evaluated(stop=5)
    own = saved_model.load_model(folder)
    other = dataclasses.replace(own, spec=own.spec.replaced(pooling="sum"))
    assert other.digest() == own.digest()
    (tmp_path / "other").mkdir()
    saved_model.save_model(tmp_path / "other", other)
    lengths = ("--query_length", "16", "--document_length", "32")
    said = evaluated(*lengths, model=tmp_path / "other")
    assert "pooling: there 'max', asked 'sum'" in said and len(encoded) == 8


@pytest.mark.slow
def test_the_curve_of_budgets(tmp_path, folder, first, capsys):
    task, _ = first
    out = tmp_path / "out"
    budgets = ("--prune_curve", "top:2,ratio:0.9,top:1")
    run("--model", folder, *task, "--out", out, "--no_bm25", *budgets)
    made = json.loads((out / "results.json").read_text())["tasks"]["beir"]
    curve = made["prune_curve"]
    assert curve["budgets"][-1]["budget"] == "all"
    terms = [point["terms"] for point in curve["budgets"]]
    assert terms[0] == 1 and terms == sorted(terms)
    whole = {k: v["nDCG@10"] for k, v in made["results"]["model"].items()}
    assert curve["budgets"][-1]["values"] == whole
    assert curve["knee"] in [point["budget"] for point in curve["budgets"]]
    assert list(made["results"]) == ["model"]
    assert "* the knee" in capsys.readouterr().out


@pytest.mark.slow
def test_fusion_and_feedback_are_rows(tmp_path, folder, first):
    task, before = first
    out = tmp_path / "out"
    flags = ("--fusion.weights=[1,3]", "--feedback", "--feedback.documents=2")
    run("--model", folder, *task, "--lowercase", "--out", out, *flags)
    made = json.loads((out / "results.json").read_text())
    assert made["fusion"]["name"] == "rrf" and made["fusion"]["of"] == ["model", "bm25"]
    assert made["feedback"]["documents"] == 2
    systems = list(made["tasks"]["beir"]["results"])
    assert systems == ["model", "model feedback", "bm25", "rrf"]
    runs = {
        name: read_run(out / "runs" / f"beir-da.{name}.trec.gz")
        for name in ("model", "bm25", "rrf", "model-feedback")
    }
    again = read_run(before / "runs" / "beir-da.model.trec.gz")
    assert list(runs["model"]["q0"]) == list(again["q0"])
    for query in ("q0", "q5"):
        sums = {}
        for name, weight in (("model", 1), ("bm25", 3)):
            for place, document in enumerate(runs[name].get(query, {}), start=1):
                sums[document] = sums.get(document, 0) + weight / (60 + place)
        order = sorted(sums, key=lambda one: (-np.float32(sums[one]), int(one[1:])))
        assert list(runs["rrf"][query]) == order
    assert runs["model-feedback"]["q0"] != runs["model"]["q0"]


def test_columns_are_data_sets_if_there_is_one_language(tmp_path, folder):
    for name in ("NanoNQ", "NanoFEVER"):
        docs = [{"_id": f"{i}", "text": word} for i, word in enumerate(WORDS)]
        asked = [{"_id": "q", "text": "apple"}]
        qrels = [{"query-id": "q", "corpus-id": "0"}]
        for config, rows in (("corpus", docs), ("queries", asked), ("qrels", qrels)):
            parquet(tmp_path / config / f"{name}-00000-of-00001.parquet", rows)
    out = tmp_path / "out"
    where = f"--task.dataset_id={{'en': '{tmp_path}'}}"
    names = "--task.names=NanoNQ,NanoFEVER"
    run("--model", folder, "--task", "nanobeir", where, names, "--out", out)
    made = json.loads((out / "results.json").read_text())["tasks"]["nanobeir"]
    assert list(made["results"]["bm25"]) == ["NanoNQ", "NanoFEVER", "mean", "worst"]
    assert made["results"]["bm25"]["worst"]["nDCG@10"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "No --task is named"),
        (("--task.path=x", "--task", "beir"), "comes before any --task"),
        (("--task", "bier"), "'bier'; known: 'beir'"),
        (("--task", "beir", *("--task.path=x",) * 2), "--task.path is given twice"),
        (("--task", "beir", "--task.path", "--task", "x"), "path needs a value"),
        (("--task", "beir", "--task.pth=x"), "the nearest is --task.path"),
        (("--task", "beir"), "path is empty"),
        (("--task",), "--task needs a value"),
        (("--task", "miracl", "--task.languages=xx"), "there are ar, bn"),
        (("--task", "debian", "--metrics", "nDCG@x"), "cannot compute 'nDCG@x'"),
        (("--task", "debian", "--prune_documents", "top:x"), "--prune_documents is"),
        (("--task", "debian", "--compare", "/none"), "/none cannot be read"),
        (("--task", "debian", "--rank", "model"), "needs several rankings"),
        (("--task", "debian", "--rank", "pivot"), "--rank is 'pivot'; this model has"),
        (("--task", "debian", "--fusion.weights=[1]"), "1 weights for 2 rankings"),
        (("--task", "debian", "--fusion", "sum"), "--fusion is 'sum'; known: 'rrf'"),
        (("--task", "debian", "--feedback.terms=2"), "sets an option of --feedback"),
        (("--task", "debian", "--query_length", "99"), "the model takes 3 to 40"),
    ],
)
def test_what_cannot_be_used_is_named(folder, args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--model", folder, *args)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
