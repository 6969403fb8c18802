"""`lsrjax mine`: the negatives are those of other programs, whatever stops it."""

import dataclasses
import json
import pathlib

import datasets
import numpy as np
import pytest
import torch
import transformers
from programs import layouts
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import mine_hard_negatives

from lsrjax.cli import mine
from lsrjax.config.fields import get_default
from lsrjax.data import sources
from lsrjax.data.debian_texts import embedded
from lsrjax.errors import InputError
from lsrjax.retrieval import mine_corpus
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.mine_corpus import Asked
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.tasks.task import Task

WORDS = (
    "the old library reads files fast and prints fonts on every small screen".split()
)


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        found[" ".join(rng.choice(WORDS, rng.integers(3, 8)))] = None
    return list(found)


DOCUMENTS = sentences(41, 1)
# The last two ask the same, so that neither's positive is a negative of the other.
QUERIES = [*sentences(11, 2), "fast fonts", "fast fonts"]
POSITIVES = [[i] for i in range(11)] + [[11], [12, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, training rows, and a dense model of sentence-transformers."""
    path = tmp_path_factory.mktemp("mine")
    documents = [{"_id": f"d{i}", "text": text} for i, text in enumerate(DOCUMENTS)]
    rows = [
        {"query": query, "pos": [DOCUMENTS[p] for p in own]}
        for query, own in zip(QUERIES, POSITIVES, strict=True)
    ]
    for name, lines in (("docs", documents), ("train", rows)):
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded.ENGLISH_TOKENIZER)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=14,
        max_position_embeddings=20,
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(path / "backbone")
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(path / "backbone")
    parts = [Transformer(str(path / "backbone")), Pooling(12), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(path / "dense"))
    return path


def run(folder, out, *flags, rows="train.jsonl"):
    given = [
        f"--data.source.files={folder / rows}",
        f"--data.corpus={folder / 'docs.jsonl'}",
    ]
    mine.main([*given, "--out", str(out), *map(str, flags)])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_bm25_negatives_are_the_best_hits_that_are_no_positives(folder, tmp_path):
    found = run(folder, tmp_path / "m.jsonl", "--with", "bm25", "--count", 5)
    hits, scores = BM25(DOCUMENTS).search(QUERIES, len(DOCUMENTS))
    for i, row in enumerate(found):
        barred = {11, 12, 13} if i > 10 else {i}
        ranked = [
            (place, score)
            for place, score in zip(hits[i].tolist(), scores[i].tolist(), strict=True)
            if place >= 0 and place not in barred
        ][:5]
        assert row["neg"] == [DOCUMENTS[place] for place, _ in ranked]
        assert row["neg_ids"] == [f"d{place}" for place, _ in ranked]
        assert row["pos_ids"] == [f"d{place}" for place in POSITIVES[i]]
        assert row["neg_ranks"] == [1, 2, 3, 4, 5][: len(ranked)]
        whole = dict(zip(hits[i].tolist(), scores[i].tolist(), strict=True))
        np.testing.assert_allclose(
            row["mined_pos_scores"],
            [whole.get(place, 0.0) for place in POSITIVES[i]],
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            row["mined_neg_scores"], [score for _, score in ranked], rtol=1e-6
        )
    facts = json.loads((tmp_path / "_m.jsonl.json").read_text())
    assert facts["made_of"]["with"] == {"name": "bm25"}
    assert facts["counts"]["rows"] == len(QUERIES)
    assert set(facts["made_of"]["files"]) == {
        str(folder / name) for name in ("train.jsonl", "docs.jsonl")
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["_m.jsonl.json", "m.jsonl"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"range_min": 3, "range_max": 9},
        {"relative_margin": 0.05},
        {"absolute_margin": 0.1, "max_score": 0.8},
    ],
)
def test_a_models_negatives_are_those_of_sentence_transformers(
    folder, tmp_path, options
):
    # One positive each, and no query twice: there the two treat rows alike.
    rows = [{"query": QUERIES[i], "pos": [DOCUMENTS[i]]} for i in range(11)]
    (folder / "once.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {
        "anchor": QUERIES[:11],
        "positive": [row["pos"][0] for row in rows],
    }
    wanted = mine_hard_negatives(
        datasets.Dataset.from_dict(data),
        SentenceTransformer(str(folder / "dense"), device="cpu"),
        corpus=DOCUMENTS,
        num_negatives=4,
        sampling_strategy="top",
        verbose=False,
        **({"range_max": 20} | options),
    )
    names = {"range_min": "from_rank", "range_max": "to_rank"}
    given = {"range_max": 20} | options
    flags = [
        f"--{names.get(name, name)}={value + (name == 'range_min')}"
        for name, value in given.items()
    ]
    out = tmp_path / "m.jsonl"
    model = ("--with", folder / "dense", "--count", 4)
    found = run(folder, out, *model, *flags, rows="once.jsonl")
    triples = [(row["query"], negative) for row in found for negative in row["neg"]]
    assert triples == list(zip(wanted["anchor"], wanted["negative"], strict=True))
    assert options.get("relative_margin") is None or len(triples) < 44


def test_a_margin_counts_from_a_positive_that_is_no_hit(folder, tmp_path):
    flags = ("--with", "bm25", "--count", 2, "--to_rank", 2, "--depth", 2)
    found = run(folder, tmp_path / "m.jsonl", *flags, "--absolute_margin", 0)
    every = run(folder, tmp_path / "all.jsonl", *flags)
    for row, before in zip(found, every, strict=True):
        least = max(row["mined_pos_scores"])
        scored = zip(before["neg"], before["mined_neg_scores"], strict=True)
        assert row["neg"] == [text for text, score in scored if score <= least]
    assert sum(len(row["neg"]) for row in found) < 20


def test_rows_depend_on_the_seed_and_their_number_only(folder, tmp_path):
    def drawn(name, seed, *flags):
        flags = ("--with", "bm25", "--count", 2, "--sampling", "random", *flags)
        return run(folder, tmp_path / name, *flags, "--seed", seed)

    first = drawn("a.jsonl", 3)
    assert first == drawn("b.jsonl", 3)
    assert first != drawn("c.jsonl", 4)
    assert all(row["neg_ranks"] == sorted(row["neg_ranks"]) for row in first)
    ranked = drawn("d.jsonl", 3, "--from_rank", 2, "--to_rank", 5)
    assert {rank for row in ranked for rank in row["neg_ranks"]} == {2, 3, 4, 5}


def test_a_filter_keeps_what_scores_less_than_the_positive(folder, tmp_path):
    flags = ("--with", "bm25", "--count", 40, "--filter", folder / "dense")
    found = run(folder, tmp_path / "m.jsonl", *flags)
    encode = SentenceTransformer(str(folder / "dense"), device="cpu").encode
    whole = run(folder, tmp_path / "all.jsonl", *flags[:4])
    left = 0
    for row, before in zip(found, whole, strict=True):
        query, *texts = encode([row["query"], *row["pos"], *before["neg"]])
        scores = np.array(texts) @ query
        limit = scores[: len(row["pos"])].max()
        of = dict(zip(before["neg"], scores[len(row["pos"]) :].tolist(), strict=True))
        assert row["neg"] == [text for text in before["neg"] if of[text] <= limit]
        np.testing.assert_allclose(
            row["filter_neg_scores"], [of[text] for text in row["neg"]], rtol=1e-4
        )
        left += len(before["neg"]) - len(row["neg"])
    assert left > 20


@pytest.mark.parametrize("stopped", ["searching", "writing"])
def test_what_was_done_before_a_stop_is_kept(folder, tmp_path, monkeypatch, stopped):
    flags = ("--with", folder / "dense", "--sampling", "random", "--count", 3)
    monkeypatch.setattr(mine_corpus, "BLOCK", 10)
    monkeypatch.setattr(mine, "_BLOCK", 4)
    where, name = (
        (Searcher, "documents") if stopped == "searching" else (mine_corpus, "choose")
    )
    calls, original = [], getattr(where, name)
    every = []
    monkeypatch.setattr(
        where, name, lambda *args, **o: every.append(1) or original(*args, **o)
    )
    whole = tmp_path / "whole.jsonl"
    run(folder, whole, *flags)
    unstopped = len(every)

    def counted(*args, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return original(*args, **options)

    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(where, name, counted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out, *flags)
    assert not out.exists()
    run(folder, out, *flags)
    assert out.read_bytes() == whole.read_bytes()
    # Blocks that were done before the stop are not done again.
    assert len(every) == 2 * unstopped - 2


def test_damaged_hits_are_searched_for_again(folder, tmp_path, monkeypatch, capsys):
    flags = ("--with", folder / "dense", "--count", 3)
    whole = run(folder, tmp_path / "whole.jsonl", *flags)

    def stop(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(mine_corpus, "choose", stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out, *flags)
    path = tmp_path / "out.jsonl.partial" / "hits.0"
    path.write_bytes(path.read_bytes()[:-9])
    assert run(folder, out, *flags) == whole
    assert "hits.0 is damaged; what it held is made anew" in capsys.readouterr().out


def benchmark(path, flip):
    """The documents, queries and positives above; some are judged irrelevant."""
    docs = [{"_id": f"d{i}", "text": text} for i, text in enumerate(DOCUMENTS)]
    layouts.jsonl(path / "corpus.jsonl", docs[::flip])
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
    layouts.jsonl(path / "queries.jsonl", [*asked, {"_id": "none", "text": "print"}])
    judged = [(f"q{i}", f"d{p}", 1) for i, own in enumerate(POSITIVES) for p in own]
    judged += [("q0", "d20", 0), ("q5", "d21", 0), ("none", "d3", 0)]
    rows = [f"{query}\t{document}\t{grade}" for query, document, grade in judged]
    layouts.lines(path / "qrels" / "train.tsv", rows)


def test_tasks_are_mined_as_rows_are_each_corpus_by_itself(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(mine_corpus, "BLOCK", 10)
    how = ("--with", str(folder / "dense"), "--count", "40", "--out")
    wanted = []
    for name, flip in (("da", 1), ("sv", -1)):
        benchmark(tmp_path / name, flip)
        out = tmp_path / f"{name}.jsonl"
        given = f"--data.source.files={folder / 'train.jsonl'}"
        corpus = f"--data.corpus={tmp_path / name / 'corpus.jsonl'}"
        mine.main([given, corpus, *how, str(out)])
        wanted += [json.loads(line) for line in out.read_text().splitlines()]
    out = tmp_path / "m.jsonl"
    task = ("--task", "beir", f"--task.path={tmp_path / '{language}'}")
    flags = [*task, "--task.languages=da,sv", "--task.split=train", *how, str(out)]
    encoded, documents = [], Searcher.documents

    def stopped(self, texts):
        encoded.append(len(texts))
        if len(encoded) == 8:  # in the second corpus, the third block
            raise KeyboardInterrupt
        return documents(self, texts)

    monkeypatch.setattr(Searcher, "documents", stopped)
    with pytest.raises(KeyboardInterrupt):
        mine.main(flags)
    mine.main(flags)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == wanted and len(found) == 2 * len(QUERIES)
    assert "d20" in found[0]["neg_ids"]
    made_of = json.loads((tmp_path / "_m.jsonl.json").read_text())["made_of"]
    assert list(made_of["tasks"][0]["texts"]) == ["beir/da", "beir/sv"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "debian", "--data.source.files=x"], "Give either --task or"),
        (["--task", "bier"], "'bier'; known: 'beir'"),
    ],
)
def test_tasks_that_cannot_be_mined_are_named(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        mine.main([*flags, "--with", "bm25", "--out", str(tmp_path / "m.jsonl")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_documents_that_are_judged_when_found_give_no_positives():
    task = Task(["a"], ["en"], ["b"], [], name="mkqa", judge=lambda *_: 1)
    with pytest.raises(InputError, match="mkqa has no judgements before a search"):
        Asked.of_task(task)


def test_a_document_with_the_querys_id_is_no_negative():
    task = Task(["a", "a"], ["en"] * 2, ["b", "", "c", "b"], [{3: 2, 1: 1, 2: 0}, 1])
    task = dataclasses.replace(
        task, query_ids=["2", "q"], document_ids=["0", "1", "2", "3"], own_ids=True
    )
    asked = Asked.of_task(task)
    assert asked.texts == ["b", "c"] and asked.queries == ["a"]
    assert asked.positives == [[0]] and asked.barred == [{0, 1}]
    assert [asked.ids(place) for place in (0, 1)] == ["0", "2"]


def test_other_options_do_not_resume(folder, tmp_path, monkeypatch, capsys):
    def stop(*args, **options):
        raise KeyboardInterrupt

    out = tmp_path / "m.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(mine_corpus, "choose", stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out, "--with", "bm25")
    with pytest.raises(SystemExit):
        run(folder, out, "--with", "bm25", "--seed", 1)
    assert "seed: there 0, asked 1" in capsys.readouterr().err


@pytest.mark.parametrize("write", ["texts", "ids"])
def test_training_reads_what_was_mined(folder, tmp_path, write):
    out = tmp_path / "m.jsonl"
    run(folder, out, "--with", "bm25", "--count", 3, "--write", write)
    data = get_default().data
    data.source.files = str(tmp_path)  # its notes beside it are no rows
    if write == "ids":
        data.corpus = str(folder / "docs.jsonl")
    source = sources.open_source(data, "group")
    assert source.format.name == {"texts": "milco", "ids": "tevatron_ids"}[write]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for i, row in enumerate(rows):
        group = source[i]
        assert [text["*"] for text in group.positives] == [
            DOCUMENTS[p] for p in POSITIVES[i]
        ]
        assert len(group.negatives) == len(row["neg_ranks"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--with", "bm25", "--data.fils=x"), "fils"),
        (("--with", "bm25", "--nothing"), "--nothing is no flag of lsrjax mine"),
        (("--with", "bm25", "--to_rank", 3), "leave fewer hits than --count 7"),
        (("--with", "bm25", "--count", 0), "--count is 0"),
        (("--with", "bm25", "--max_score", "nan"), "--max_score"),
        (("--with", "stage:x"), "name the run in --workdir"),
        (("--with", "./nowhere"), "nowhere"),
        (
            ("--with", "bm25", "--prompt", "{query} {document}"),
            "--prompt is of the model of --filter",
        ),
        (
            ("--with", "bm25", "--data.corpus={'de': 'docs.jsonl'}"),
            "add the language en",
        ),
        (("--with", "bm25", "--data.corpus=./none.jsonl"), "--data.corpus: no file"),
    ],
)
def test_mistakes_say_what_to_do(folder, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "m.jsonl", *flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".jsonl"]


def test_a_document_without_an_id_cannot_be_written_as_one(folder, tmp_path, capsys):
    rows = pathlib.Path(tmp_path / "rows.jsonl")
    rows.write_text(json.dumps({"query": "old files", "pos": ["nowhere else"]}))
    given = [f"--data.source.files={rows}", f"--data.corpus={folder / 'docs.jsonl'}"]
    with pytest.raises(SystemExit):
        mine.main(
            [*given, "--with=bm25", "--write=ids", f"--out={tmp_path / 'm.jsonl'}"]
        )
    assert "row 0 (the first is 0) has the document 'nowhere else'" in (
        capsys.readouterr().err
    )
