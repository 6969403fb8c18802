"""`lsrjax index` and `lsrjax search`, from texts to answers."""

import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import pty
import shlex
import subprocess
import sys

import numpy as np
import pytest
from programs import tiny_models

from lsrjax import options
from lsrjax.api.search import open_search
from lsrjax.cli import encode_job, index, search
from lsrjax.cli.encode_job import Request
from lsrjax.errors import InputError
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.engines.table import ENGINES
from lsrjax.retrieval.feedback import Rocchio
from lsrjax.retrieval.fusion import FUSIONS, rrf
from lsrjax.retrieval.index_folder import open_index
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.runs import read_run
from lsrjax.retrieval.text_search import Plan, TextSearch

TEXTS = [
    "red apple pie",
    "a library of numbers and functions",
    "the boot loader of a computer",
    "猫 и мышь",
    "a mouse driver for the boot disk",
    *(f"package number {i} of the archive" for i in range(20)),
]
QUERIES = ["boot loader", "a mouse", "numbers"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "distill"
    return tiny_models.save(path, "milco", lexecho=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "docs.jsonl").write_text(text, encoding="utf-8")
    (folder / "queries.tsv").write_text(
        "".join(f"q{i}\t{query}\n" for i, query in enumerate(QUERIES))
    )
    return folder


@pytest.fixture(scope="module")
def indexed(tmp_path_factory, model, corpus):
    """An exact index, of texts that are encoded for it."""
    out = tmp_path_factory.mktemp("index") / "docs.index"
    index.main(
        ["--model", str(model), "--texts", str(corpus / "docs.jsonl")]
        + ["--engine", "exact", "--out", str(out)]
    )
    return out


@pytest.fixture(scope="module")
def session(indexed, model):
    return open_search(indexed, str(model))


def refused(command, *args):
    """The message that a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        command.main([*map(str, args)])
    assert stopped.value.code == 2


def test_texts_are_encoded_and_indexed(indexed, model):
    assert [path.name for path in indexed.parent.iterdir()] == ["docs.index"]
    with open_index(indexed) as found:
        assert list(found.ids) == [f"d{i}" for i in range(len(TEXTS))]
        assert found.texts[:] == TEXTS
        assert found.made_of["model"] == str(model)
        assert found.made_of["role"] == "document"
        assert any(term.startswith("e_") for term in found.terms)


def test_the_function_finds_what_the_model_scores_highest(session):
    answers = session.search(QUERIES, depth=4)
    views = session._searcher
    queries, documents = views.queries(QUERIES), views.documents(TEXTS)
    scores = sum((queries[v] @ documents[v].T).toarray() for v in queries)
    for hits, expected in zip(answers, scores, strict=True):
        best = np.argsort(-expected, kind="stable")[:4]
        assert [hit.id for hit in hits] == [f"d{i}" for i in best]
        assert [hit.text for hit in hits] == [TEXTS[i] for i in best]
        for hit, place in zip(hits, best, strict=True):
            assert hit.score == pytest.approx(expected[place], rel=1e-4)
            # The terms that matched are the whole score, the largest first.
            parts = [match.score for match in hit.matches]
            assert sum(parts) == pytest.approx(hit.score, rel=1e-4)
            assert parts == sorted(parts, reverse=True)
            assert {match.view for match in hit.matches} <= {"pivot", "source"}
            marks = {"pivot": "e_", "source": "m_"}
            for match in hit.matches:
                assert match.term.startswith((marks[match.view], "#"))


def test_a_file_of_queries_becomes_a_run(
    tmp_path, indexed, model, corpus, session, capsys
):
    out = tmp_path / "run.trec"
    search.main(
        ["--index", str(indexed), "--model", str(model), "--depth", "3"]
        + ["--queries", str(corpus / "queries.tsv"), "--out", str(out)]
    )
    assert "3 queries in" in capsys.readouterr().out
    run = read_run(out)
    for key, hits in zip(run, session.search(QUERIES, 3), strict=True):
        assert [*run[key]] == [hit.id for hit in hits]
    assert [*run] == ["q0", "q1", "q2"]
    refused(
        search,
        *("--index", indexed, "--model", model),
        *("--queries", corpus / "queries.tsv", "--out", out),
    )
    assert "exists" in capsys.readouterr().err


def test_one_query_shows_why(indexed, model, session, capsys):
    search.main(
        ["--index", str(indexed), "--model", str(model), "--depth", "2"]
        + ["--query", "boot loader"]
    )
    shown = capsys.readouterr().out
    assert shown.startswith("'boot loader': 2 documents, encoded in ")
    assert " x " in shown and "pivot" in shown
    (best, _) = session.search(["boot loader"], 2)[0]
    assert best.id in shown and best.text in shown and best.matches[0].term in shown


def test_lines_of_the_standard_input_are_queries(indexed, model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("boot loader\n\n a mouse \n"))
    search.main(["--index", str(indexed), "--model", str(model), "--depth", "1"])
    shown = capsys.readouterr().out
    assert "'boot loader': 1 document, " in shown and "'a mouse': 1 document, " in shown
    assert "query>" not in shown


@pytest.mark.slow
def test_a_session_at_a_terminal(indexed, model):
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "lsrjax", "search", "--index", str(indexed)]
        + ["--model", str(model), "--depth", "1"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    os.write(ours, b"boot loader\na mouse\n\n")
    shown, _ = program.communicate(timeout=110)
    os.close(ours)
    assert program.returncode == 0
    assert f"{len(TEXTS)} documents in {indexed}" in shown
    assert "'boot loader': 1 document, " in shown and "'a mouse': 1 document, " in shown


def planned(session, plan):
    """A session that searches the same index otherwise."""
    return TextSearch(session.index, session._searcher, plan)


def test_rankings_are_fused(tmp_path, indexed, model, corpus, session):
    depth = len(TEXTS)
    alone = session.ranked(QUERIES, depth)
    by_bm25 = BM25(TEXTS).search(QUERIES, depth)
    expected = rrf([(alone.hits, alone.scores), by_bm25], 5)
    plan = Plan(["model", "bm25"])
    found = planned(session, plan).ranked(QUERIES, 5)
    np.testing.assert_array_equal(found.hits, expected[0])
    np.testing.assert_allclose(found.scores, expected[1], rtol=1e-6)
    # The same from a file of one ranking, through the command.
    run, fused = tmp_path / "a" / "new" / "own.trec", tmp_path / "fused.trec"
    base = ["--index", str(indexed), "--model", str(model)]
    base += ["--queries", str(corpus / "queries.tsv")]
    search.main([*base, "--out", str(run), "--depth", str(depth)])
    search.main(
        [*base, "--out", str(fused), "--rank", str(run), "--rank", "bm25"]
        + ["--depth", "5", "--fusion", "rrf", "--fusion.k=60"]
    )
    ids = [f"d{i}" for i in range(depth)]
    for row, documents in enumerate(read_run(fused).values()):
        assert [*documents] == [ids[i] for i in expected[0][row] if i >= 0]


def test_a_run_of_other_queries_is_refused(session):
    plan = Plan([{"other": {"d1": 1.0}}, "model"])
    with pytest.raises(InputError, match="a run has none of the 1 queries, .*'q1'"):
        planned(session, plan).ranked(QUERIES[:1], 5, ["q1"])


def test_views_search_alone(session):
    whole = session.ranked(QUERIES, len(TEXTS))
    parts = [
        planned(session, Plan([view])).ranked(QUERIES, 25)
        for view in ("pivot", "source")
    ]
    summed = np.zeros((len(QUERIES), len(TEXTS)), np.float32)
    for part in parts:
        for row in range(len(QUERIES)):
            kept = part.hits[row] >= 0
            summed[row, part.hits[row, kept]] += part.scores[row, kept]
    for row in range(len(QUERIES)):
        kept = whole.hits[row] >= 0
        expected = whole.scores[row, kept]
        np.testing.assert_allclose(summed[row, whole.hits[row, kept]], expected, 1e-4)


def test_feedback_and_pruning_change_queries(indexed, model, session):
    base = ["--index", indexed, "--model", model]
    args = search._parser().parse_args([*map(str, base), "--feedback"])
    values = {"fusion": {}, "feedback": {"documents": 2, "terms": 40}}
    plan = search.plan_of(args, values)
    assert plan.feedback.documents == 2
    expanded = planned(session, plan).ranked(QUERIES, 3)
    assert np.diff(expanded.queries.indptr).max() <= 40
    args = search._parser().parse_args([*map(str, base), "--prune_queries", "top:3"])
    plan = search.plan_of(args, {"fusion": {}, "feedback": {}})
    pruned = planned(session, plan).ranked(QUERIES, 3)
    assert (np.diff(pruned.queries.indptr) == 3).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--depth", "0"], "--depth is 0"),
        (["--query", " "], "--query is empty"),
        (["--index", "docs.nope"], "There is no index docs.nope (from "),
        (["--rank", "model", "--rank", "title"], "--rank 'title' is none"),
        (["--rank", "bm25", "--rank", "bm25"], "names one twice"),
        (["--rank", "old.trec", "--rank", "bm25"], "give --queries FILE"),
        (["--fusion", "rrf"], "--fusion needs several rankings"),
        (["--feedback.terms=3"], "add it"),
        (["--feedback", "--feedback.term=3"], "--feedback.term is no option"),
        (["--fusion.k"], "--fusion.k needs a value"),
        (["--fusion.k=1", "--fusion.k=2"], "given twice"),
        (
            ["--rank=model", "--rank=bm25", "--fusion=rrf", "--fusion.name=weighted"],
            "name the entry itself, as in --fusion weighted",
        ),
        (["--engine.name=seismic"], "as in --engine seismic"),
        (["--prune_queries", "most:3"], "--prune_queries is 'most:3'"),
        (["--engine.postings=3"], "cannot be changed"),
        (["--queries", "x.tsv"], "belong together"),
        (["--max_length", "2"], "--max_length is 2"),
        (
            ["--rank=model", "--rank=bm25", "--fusion.weights=[1]"],
            "1 weights for 2 rankings",
        ),
    ],
)
def test_mistakes_say_what_to_do(indexed, model, capsys, flags, message):
    refused(search, "--index", indexed, "--model", model, "--query", "x", *flags)
    assert message in capsys.readouterr().err


def test_another_model_is_refused(tmp_path, indexed):
    other = tiny_models.save(tmp_path / "run" / "other", "milco", 4, lexecho=True)
    with pytest.raises(InputError, match=r"has weights of digest \w+, but .*distill"):
        open_search(indexed, str(other))


def test_mistakes_of_index_say_what_to_do(
    tmp_path, model, corpus, indexed, capsys, monkeypatch
):
    docs, out = corpus / "docs.jsonl", tmp_path / "new"
    for args, message in [
        ((), "either --vectors, or --model"),
        (("--model", model), "--model needs --texts"),
        (("--vectors", tmp_path / "x.npz"), "there is no"),
        (("--model", model, "--texts", docs, "--engine=bing"), "'bing'; known"),
        (("--model", model, "--texts", docs, "--engine.postings=-1"), "must be >= 0"),
        (("--model", model, "--texts", docs, "--engine=maxsim"), "takes tokens"),
        (("--vectors", docs, "--dtype=bfloat16"), "--dtype is for --model"),
    ]:
        refused(index, "--out", out, *args)
        assert message in capsys.readouterr().err
    refused(index, "--model", model, "--texts", docs, "--out", indexed)
    assert "exists" in capsys.readouterr().err
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda n: None if n == "seismic" else find(n)
        )
        refused(index, "--model", model, "--texts", docs, "--out", out)
        assert "pip install 'lsrjax[search]'" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []  # before a text was encoded


def test_an_index_says_how_it_is_searched(tmp_path, model, corpus, capsys):
    docs, vectors = str(corpus / "docs.jsonl"), str(tmp_path / "docs.npz")
    encode_job.encode(Request(str(model), docs, vectors))
    capsys.readouterr()
    for given in (["--model", str(model)], ["--vectors", vectors]):
        out = str(tmp_path / given[0])
        index.main([*given, "--texts", docs, "--engine", "exact", "--out", out])
        said = capsys.readouterr().out
        assert said.count("What to do next:") == 1
        (line,) = (one for one in said.splitlines() if "lsrjax search" in one)
        search.main([*shlex.split(line)[2:-1], "boot loader"])
        assert "'boot loader': " in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_build_keeps_what_was_encoded(
    tmp_path, model, corpus, capsys, monkeypatch
):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    args = ["--model", str(model), "--texts", str(corpus / "docs.jsonl")]
    args += ["--engine", "exact", "--out", str(tmp_path / "docs.index")]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(index, "build_index", stop)
        index.main(args)
    assert [path.name for path in tmp_path.iterdir()] == ["docs-index-vectors"]
    index.main(args)
    assert "1 of 1 parts are there already" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["docs.index"]


@pytest.mark.slow
def test_vectors_that_are_pruned_and_indexed_without_texts(
    tmp_path, model, corpus, capsys
):
    vectors = tmp_path / "docs.npz"
    encode_job.encode(Request(str(model), str(corpus / "docs.jsonl"), str(vectors)))
    out = tmp_path / "docs.index"
    index.main(
        ["--vectors", str(vectors), "--out", str(out), "--engine", "exact"]
        + ["--prune_documents", "top:5"]
    )
    with open_index(out) as found:
        rows = found.engine.vectors(np.arange(len(found)))
        assert np.diff(rows.indptr).max() == 5 and found.texts is None
        assert found.made_of["pruned_for_index"] == "top:5"
    refused(search, "--index", out, "--model", model, "--query", "x", "--rank", "bm25")
    assert "needs texts" in capsys.readouterr().err
    hits = open_search(out, str(model)).search(["boot loader"], 3)[0]
    assert [hit.text for hit in hits] == [None] * 3


KINDS = [("colbert", "tokens"), ("dense", "dense"), ("m3", "several")]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "kind"), KINDS)
def test_embeddings_are_searched(tmp_path, corpus, capsys, head, kind):
    model = tiny_models.save(tmp_path / "run" / "only", head, embedding_size=5)
    out = tmp_path / "docs.index"
    index.main(
        ["--model", str(model), "--texts", str(corpus / "docs.jsonl")]
        + ["--out", str(out)]
    )
    session = open_search(out, str(model))
    assert session.index.kind == kind
    (hits,) = session.search(["boot loader"], 3)
    views = session._searcher
    queries, documents = views.queries(["boot loader"]), views.documents(TEXTS)
    best = np.zeros(len(TEXTS))
    for view, query in queries.items():
        if isinstance(query, TokenMatrix):
            products = query.tokens_TD @ documents[view].tokens_TD.T
            starts = documents[view].starts[:-1]
            best += np.maximum.reduceat(products, starts, axis=1).sum(axis=0)
        else:
            best += (query @ documents[view].T).toarray()[0]
    # Texts encoded in batches of other sizes differ in their last bits, and embeddings
    # of random weights are nearly the same.
    scores = [hit.score for hit in hits]
    np.testing.assert_allclose(scores, -np.sort(-best)[:3], rtol=1e-4)
    found = [int(hit.id.removeprefix("d")) for hit in hits]
    assert len(set(found)) == 3
    np.testing.assert_allclose(best[found], scores, rtol=1e-4)
    for hit in hits:
        parts = [match.score for match in hit.matches]
        assert sum(parts) == pytest.approx(hit.score, rel=1e-4)
        assert {match.view for match in hit.matches} <= set(queries)
    refused(search, "--index", out, "--model", model, "--query", "x", "--feedback")
    assert "--feedback is for sparse vectors" in capsys.readouterr().err
    search.main(["--index", str(out), "--model", str(model), "--query", "boot loader"])
    assert hits[0].id in capsys.readouterr().out


def test_the_docs_list_all_options():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "search.md").read_text()
    kinds = [("engine", entry.Options) for entry in ENGINES.values()]
    kinds += [("fusion", entry.Options) for entry in FUSIONS.values()]
    for flag, kind in [*kinds, ("feedback", Rocchio)]:
        for field in dataclasses.fields(kind):
            default = options.default_of(field)
            shown = "" if default == "" else f"`{default!r}` "
            row = f"| `--{flag}.{field.name}` | {shown}| {field.metadata['doc']}"
            assert row in text, row
