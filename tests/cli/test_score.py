"""`lsrjax score`: a teacher's scores, or those of others by id, whatever stops it."""

import gzip
import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import transformers

from lsrjax.cli import score
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data import sources
from lsrjax.retrieval import teacher_scores

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bert"
ROWS = [
    {"query": f"file {i}", "pos": [f"the file {i}"], "neg": ["a book", f"old {i % 3}"]}
    for i in range(11)
]
ROWS[4]["pos"].append("one more file")
ROWS[5]["neg"] = []


def lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    """A random cross-encoder."""
    folder = tmp_path_factory.mktemp("reranker") / "bert"
    shutil.copytree(GOLDEN, folder, ignore=lambda *_: ["model.safetensors"])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"],
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=14,
        max_position_embeddings=40,
        num_labels=1,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def run(*flags):
    score.main([str(flag) for flag in flags])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_cross_encoders_scores_are_those_of_transformers(tmp_path, reranker):
    rows, out = lines(tmp_path / "rows.jsonl", ROWS), tmp_path / "scored.jsonl"
    run(f"--data.source.files={rows}", "--teacher", reranker, "--out", out)
    tokenizer = tokenizers.Tokenizer.from_file(str(reranker / "tokenizer.json"))
    model = transformers.BertForSequenceClassification.from_pretrained(reranker).eval()
    for row, before in zip(read(out), ROWS, strict=True):
        assert {name: row[name] for name in before} == before
        wanted = []
        for document in row["pos"] + row["neg"]:
            pair = tokenizer.encode(row["query"], document)
            with torch.no_grad():
                found = model(
                    torch.tensor([pair.ids]),
                    token_type_ids=torch.tensor([pair.type_ids]),
                )
            wanted.append(float(found.logits[0, 0]))
        found = row["pos_scores"] + row["neg_scores"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    data = get_default().data
    data.source.files = str(out)
    group = sources.open_source(data, "group")[4]
    assert len(group.positives) == 2 and len(group.scores) == 4


def test_shards_and_stops_change_no_byte(tmp_path, reranker, monkeypatch):
    monkeypatch.setattr(score, "_BLOCK", 2)
    rows = lines(tmp_path / "rows.jsonl", ROWS)
    flags = (f"--data.source.files={rows}", "--teacher", reranker)
    run(*flags, "--out", tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    shards = [tmp_path / f"{i}.jsonl" for i in range(1, 5)]
    for i, out in enumerate(shards, start=1):
        run(*flags, "--shard", f"{i}/4", "--out", out)
    assert b"".join(out.read_bytes() for out in shards) == whole

    calls, original = [], teacher_scores.ragged

    def stopped(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*args)

    out = tmp_path / "again.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(teacher_scores, "ragged", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, "--out", out)
    assert not out.exists()
    done = []
    monkeypatch.setattr(
        teacher_scores, "ragged", lambda *args: done.append(1) or original(*args)
    )
    run(*flags, "--out", out)
    assert out.read_bytes() == whole and len(done) == 4


@pytest.fixture
def beir(tmp_path):
    """A BEIR folder of three queries, and the scores of all of its pairs."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": f"text {i}"} for i in range(5)]
    lines(folder / "corpus.jsonl", documents)
    queries = [{"_id": str(i), "text": f"query {i}"} for i in range(3)]
    lines(folder / "queries.jsonl", queries)
    judged = [("0", "d0", 1), ("0", "d1", 0), ("1", "d1", 2), ("1", "d4", 1)]
    judged += [("2", "d2", 1), ("2", "d3", 0)]
    text = "query-id\tcorpus-id\tscore\n"
    text += "".join("\t".join(map(str, row)) + "\n" for row in judged)
    (folder / "qrels" / "train.tsv").write_text(text)
    return folder, {(q, d): int(q) + int(d[1:]) / 8 for q, d, _ in judged}


def colbert(path, scores):
    rows = {}
    for (query, document), value in scores.items():
        rows.setdefault(query, [int(query)]).append([document, value])
    with gzip.open(path.with_suffix(".jsonl.gz"), "wt") as file:
        file.write("".join(f"{json.dumps(row)}\n" for row in rows.values()))
    return path.with_suffix(".jsonl.gz")


def by_lists(path, scores):
    rows = {}
    for (query, document), value in scores.items():
        row = rows.setdefault(query, {"query_id": query, "document_ids": []})
        row["document_ids"].append(document)
        row.setdefault("scores", []).append(value)
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(list(rows.values())), path)
    return path


def by_pairs(path, scores):
    rows = [{"qid": q, "docid": d, "score": v} for (q, d), v in scores.items()]
    return lines(path.with_suffix(".jsonl"), rows)


@pytest.mark.parametrize("written", [colbert, by_lists, by_pairs])
def test_scores_of_others_are_joined_by_id(tmp_path, beir, written):
    folder, scores = beir
    files = written(tmp_path / "scores", scores)
    flags = (f"--data.source.files={folder}", "--data.format=beir", "--scores", files)
    run(*flags, "--out", tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert rows[1] == {
        "query": "query 1",
        "pos": ["text 1", "text 4"],
        "neg": [],
        "qid": "1",
        "pos_ids": ["d1", "d4"],
        "neg_ids": [],
        "pos_scores": [1.125, 1.5],
        "neg_scores": [],
    }
    run(*flags, "--write", "ids", "--out", tmp_path / "ids.jsonl")
    assert read(tmp_path / "ids.jsonl") == [
        ["0", ["d0", 0.0], ["d1", 0.125]],
        ["1", ["d1", 1.125]],
        ["1", ["d4", 1.5]],
        ["2", ["d2", 2.25], ["d3", 2.375]],
    ]
    data = get_default().data
    data.source.files = str(tmp_path / "ids.jsonl")
    data.format = entry("colbert", queries=str(folder / "queries.jsonl"))
    data.corpus = str(folder / "corpus.jsonl")
    group = sources.open_source(data, "group")[3]
    assert group.negatives == [{"*": "text 3"}]
    np.testing.assert_allclose(group.scores, [2.25, 2.375])


def test_documents_without_a_score_are_an_error_or_left_out(tmp_path, beir, capsys):
    folder, scores = beir
    del scores["0", "d1"], scores["1", "d1"], scores["2", "d2"]
    files = by_pairs(tmp_path / "scores", scores)
    flags = (f"--data.source.files={folder}", "--data.format=beir", "--scores", files)
    flags = (*flags, "--out", tmp_path / "out.jsonl")
    with pytest.raises(SystemExit):
        run(*flags)
    assert "no score of the document 'd1' of the query '0'" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out.jsonl.partial")
    run(*flags, "--missing", "drop")
    assert "1 rows and 1 negatives had no score" in capsys.readouterr().out
    rows = read(tmp_path / "out.jsonl")
    assert [(row["pos_ids"], row["neg_ids"]) for row in rows] == [
        (["d0"], []),
        (["d4"], []),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"qid": 1, "docid": "d0"', "row 1 (the first is 0), byte 42 is not JSON"),
        ('{"qid": 1, "docid": "d0", "score": null}', "line 2: a score is None"),
        ('{"qid": 1, "docid": "d0", "score": NaN}', "line 2: a score is nan"),
        ('{"qid": 1, "docid": ["a", "b"], "score": [1]}', "line 2: 1 scores for 2"),
        ('{"qid": null, "docid": "d0", "score": 1}', "line 2: an id is None"),
        ('{"qid": "0", "docid": "d0", "score": 7}', "has the scores 0 and 7"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, beir, capsys, line, message):
    folder, scores = beir
    files = by_pairs(tmp_path / "scores", scores)
    known = files.read_text().splitlines()
    files.write_text("\n".join([known[0], line, *known[1:]]) + "\n")
    with pytest.raises(SystemExit) as stop:
        run(
            *(f"--data.source.files={folder}", "--data.format=beir", "--scores", files),
            *("--out", tmp_path / "out.jsonl"),
        )
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Name one of --teacher MODEL and --scores FILES"),
        (("--scores", "x.jsonl"), "have no ids of queries"),
        (("--teacher", "./x", "--shard", "0/2"), "--shard is '0/2'"),
        (("--teacher", "./x"), "x"),
    ],
)
def test_mistakes_say_what_to_do(tmp_path, capsys, flags, message):
    rows = lines(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(SystemExit) as stop:
        run(f"--data.source.files={rows}", "--out", tmp_path / "out.jsonl", *flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
