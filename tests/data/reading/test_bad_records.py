"""Records that cannot be trained on: which, what stands for them, and when to stop."""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.config.fields import get_default
from lsrjax.data import sources
from lsrjax.data.batching import loader
from lsrjax.data.examples import Group, InMemory
from lsrjax.data.reading import bad_records, id_index
from lsrjax.data.reading.bad_records import FILE, BadRecord, BadRecords
from lsrjax.data.sources import open_source
from lsrjax.errors import InputError

COUNT = 700
NAN = float("nan")


def milco(i):
    return {
        "id": f"r{i}",
        "query": f"query {i}",
        "pos": [f"positive {i}"],
        "neg": [f"negative {i}", f"another {i}"],
        "pos_scores": [2.0],
        "neg_scores": [1.0, 0.5],
    }


def tevatron(i):
    texts = {"title": "a", "text": f"text {i}"}
    return {
        "query_id": i,
        "query": f"query {i}",
        "positive_passages": [texts],
        "negative_passages": [texts, {"text": "another"}],
    }


def tevatron_ids(i):
    return {
        "query_text": f"query {i}",
        "positive_document_ids": [f"d{i}"],
        "negative_document_ids": [f"d{(i + 1) % 50}"],
    }


def alignment(i):
    return {"english": f"text {i}", "non_english": f"Text {i}", "language": "de"}


def triplet(i):
    return {"anchor": f"a {i}", "positive": f"p {i}", "negative": f"n {i}", "label": 2}


def labelled(i):
    return {"sentence1": f"a {i}", "sentence2": f"b {i}", "label": 1.0}


def changed(**fields):
    return lambda row: json.dumps(row | fields).encode()


def without(field):
    return lambda row: json.dumps({k: row[k] for k in row if k != field}).encode()


BROKEN = [
    (lambda row: b'{"query": "cut', "broken JSON"),
    (lambda row: b"[" * 100_000, "broken JSON"),
    (lambda row: json.dumps(row).encode().replace(b" ", b"\xff", 1), "broken UTF-8"),
    (lambda row: b'"a text"', "wrong type"),
]
# format -> a good row, and what makes it a bad one of which kind.
CASES = {
    "milco": (
        milco,
        [
            (changed(query=" \t"), "empty text"),
            (without("query"), "empty text"),
            (changed(query=7), "wrong type"),
            (changed(query="half \ud83d"), "broken UTF-8"),
            (changed(pos={"text": "a"}), "wrong type"),
            (changed(neg=["a", ""]), "empty text"),
            (changed(pos=[]), "no positive"),
            (changed(neg_scores=[1.0, NAN]), "bad score"),
            (changed(neg_scores=[1.0, math.inf]), "bad score"),
            (changed(neg_scores=[1.0, "high"]), "bad score"),
            (changed(neg_scores=[1.0]), "bad score"),
            (changed(pos_scores=None, neg_scores=None), "no scores"),
        ],
    ),
    "alignment": (
        alignment,
        [
            (changed(english=""), "empty text"),
            (changed(non_english=None), "empty text"),
            (changed(non_english=["a"]), "wrong type"),
            (changed(language=["de"]), "wrong type"),
        ],
    ),
    "tevatron": (
        tevatron,
        [
            (changed(query=""), "empty text"),
            (changed(positive_passages=[{"title": "a"}]), "empty text"),
            (changed(positive_passages=["a"]), "wrong type"),
            (changed(positive_passages="a"), "wrong type"),
            (changed(positive_passages={"text": 1}), "wrong type"),
            (changed(positive_passages={"text": ["a"], "title": []}), "wrong type"),
            (changed(negative_passages=[{"text": "a", "title": [1]}]), "wrong type"),
            (changed(positive_passages=[]), "no positive"),
        ],
    ),
    "tevatron_ids": (
        tevatron_ids,
        [
            (changed(query_text=None), "empty text"),
            (changed(positive_document_ids=["nobody"]), "unknown id"),
            (changed(negative_document_ids=["d1", "nobody"]), "unknown id"),
            (changed(positive_document_ids=["empty"]), "empty text"),
            (changed(positive_document_ids=[["d1"]]), "wrong type"),
            (changed(positive_document_ids=None), "no positive"),
            # Of the broken lines of the corpus.
            (changed(positive_document_ids=["broken"]), "unknown id"),
        ],
    ),
    "triplet": (
        triplet,
        [
            (changed(anchor=""), "empty text"),
            (changed(negative=3), "wrong type"),
            (changed(label=NAN), "bad score"),
            (changed(label=[1.0, 2.0, 3.0]), "bad score"),
            (changed(label=None), "no scores"),
        ],
    ),
    "labelled": (
        labelled,
        [
            (changed(sentence1=""), "empty text"),
            (changed(label=NAN), "bad score"),
            (changed(label="high"), "bad score"),
        ],
    ),
}
SCORED = ("milco", "triplet")


@dataclasses.dataclass
class Made:
    """A data set with bad records: its config, and which are of which kind."""

    config: object
    kinds: dict[int, str]
    lines: dict[int, int]
    scored: bool

    def open(self):
        kind = "pair" if self.config.format.name == "alignment" else "group"
        return open_source(self.config, kind)

    def guarded(self, folder, process=0, share=0.1, seed=3, name=""):
        found = BadRecords(folder, process)
        return found, found.guard(
            self.open(), name=name, seed=seed, share=share, scored=self.scored
        )


def make(folder, format, seed=0):
    """One of each kind among 700: 1 % to 2 % of them."""
    row, kinds = CASES[format]
    kinds = [*kinds, *BROKEN]
    rng = random.Random(seed)
    places = dict(zip(rng.sample(range(COUNT), len(kinds)), kinds, strict=True))
    written, lines = b"\n", {}
    for i in range(COUNT):
        lines[i] = written.count(b"\n") + 1
        make_bad = (
            places[i][0] if i in places else lambda good: json.dumps(good).encode()
        )
        written += make_bad(row(i)) + rng.choice([b"\n", b"\n\n", b"\r\n"])
    (folder / "x.jsonl").write_bytes(written)
    config = get_default().data
    config.source.files, config.format = str(folder / "x.jsonl"), format
    if format == "tevatron_ids":
        texts = [{"id": f"d{i}", "text": f"text {i}"} for i in range(COUNT)]
        texts += [{"id": "empty", "text": " "}, {"id": "broken", "text": 7}]
        lines_of = [json.dumps(text) for text in texts]
        (folder / "c.jsonl").write_text("\n".join(lines_of) + "\n")
        config.corpus = str(folder / "c.jsonl")
    kinds = {i: places[i][1] for i in sorted(places)}
    return Made(config, kinds, lines, format in SCORED)


def entries(folder):
    return [json.loads(line) for line in open(folder / FILE, encoding="utf-8")]


@pytest.mark.parametrize("format", CASES)
def test_each_kind_is_counted_named_and_replaced(tmp_path, format):
    made = make(tmp_path, format)
    found, source = made.guarded(tmp_path)
    plain = made.open()
    assert len(source) == COUNT
    # Which a row is, its example says.
    examples = [source[i].id for i in range(COUNT)]
    bad_records.merge(tmp_path)
    named = [entry for entry in entries(tmp_path) if entry["index"] is not None]
    assert {entry["index"]: entry["kind"] for entry in named} == made.kinds
    assert [entry["index"] for entry in named] == list(made.kinds)
    for entry in named:
        i = entry["index"]
        assert entry["file"].endswith("x.jsonl") and entry["row"] == i
        assert entry["line"] == made.lines[i] and entry["reason"]
        assert entry["replaced_by"] not in made.kinds
        assert examples[i] == plain[entry["replaced_by"]].id
    good = [i for i in range(COUNT) if i not in made.kinds]
    assert [examples[i] for i in good] == [plain[i].id for i in good]
    assert len({examples[i] for i in good}) == len(good)
    said = found.summary()
    assert f"{len(made.kinds)} bad records were replaced" in said
    assert "2 broken JSON" in said and str(tmp_path / FILE) in said
    texts = [entry for entry in entries(tmp_path) if entry["index"] is None]
    if format == "tevatron_ids":
        (text,) = texts
        assert text["line"] == COUNT + 2 and text["kind"] == "wrong type"
        assert "and 1 bad text left out (1 wrong type)" in said
    else:
        assert not texts


def test_ids_are_named(tmp_path):
    made = make(tmp_path, "milco")
    _, source = made.guarded(tmp_path)
    list(source)
    ids = {e["index"]: e.get("id") for e in entries(tmp_path)}
    readable = [i for i, key in ids.items() if key is not None]
    assert len(readable) == len(made.kinds) - len(BROKEN)
    assert all(ids[i] == f"r{i}" for i in readable)


def test_more_than_the_share_stops_with_examples(tmp_path):
    made = make(tmp_path, "milco")
    bad = len(made.kinds)
    _, source = made.guarded(tmp_path, share=bad / COUNT)
    list(source)
    (tmp_path / FILE).unlink()
    _, source = made.guarded(tmp_path, share=(bad - 1) / COUNT)
    with pytest.raises(InputError) as error:
        list(source)
    said = str(error.value)
    assert not isinstance(error.value, BadRecord)
    assert said.startswith(f"{bad} bad records (") and f"allows {bad - 1}:" in said
    assert "among 700 records of config.data" in said and "1 no positive" in said
    examples = [line for line in said.splitlines() if line.startswith("  ")]
    assert len(examples) == 5 and "config.data.bad_records = 0.0" in said
    for example, i in zip(examples, made.kinds, strict=False):
        assert example.startswith(f"  line {made.lines[i]}: ") and "x.jsonl" in example
    with pytest.raises(InputError, match=f"^{bad} bad records"):
        list(source)


@pytest.mark.parametrize("share", [0.0, 0.001])
def test_the_default_and_none_stop_early(tmp_path, share):
    made = make(tmp_path, "alignment")
    _, source = made.guarded(tmp_path, share=share)
    first = next(iter(made.kinds))
    assert [source[i].english for i in range(first)]
    with pytest.raises(InputError, match=r"^1 bad record .* allows 0:"):
        source[first]


def test_where_all_are_bad_no_share_is_advised(tmp_path):
    def refused(example):
        raise BadRecord("no positive", "a second one is needed")

    rows = InMemory([milco(i) for i in range(3)])
    rows.place = lambda index: {"row": index}
    guarded = BadRecords(tmp_path).guard(
        rows, name="", seed=0, share=0.001, scored=False, check=refused
    )
    with pytest.raises(InputError, match=r"(?s)^3 bad records .*Put the data right\.$"):
        guarded.look_through()


def test_a_stopped_run_stops_again_and_goes_on_when_allowed(tmp_path):
    made = make(tmp_path, "triplet")
    bad = len(made.kinds)
    _, source = made.guarded(tmp_path, share=2 / COUNT)
    with pytest.raises(InputError, match="^3 bad records"):
        list(source)
    bad_records.merge(tmp_path)
    _, source = made.guarded(tmp_path, share=2 / COUNT)
    with pytest.raises(InputError, match="^3 bad records"):
        list(source)
    bad_records.merge(tmp_path)
    _, source = made.guarded(tmp_path, share=bad / COUNT)
    list(source)
    assert {e["index"] for e in entries(tmp_path)} == set(made.kinds)
    with pytest.raises(InputError, match=f"^{bad} bad records"):
        made.guarded(tmp_path, share=2 / COUNT)


def test_where_all_is_bad_the_search_ends(tmp_path):
    config = get_default().data
    config.source.files = str(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text('{"query": "", "pos": ["a"]}\n' * 9)
    _, source = Made(config, {}, {}, False).guarded(tmp_path, share=0.9)
    with pytest.raises(InputError, match=r"^9 bad records \(9 empty text\)"):
        source[4]


def test_replacements_are_a_function_of_seed_and_index(tmp_path):
    made = make(tmp_path, "milco")
    replaced = {}
    for run, (seed, order) in enumerate(
        itertools.product((3, 4), (range(COUNT), range(COUNT)[::-1]))
    ):
        folder = tmp_path / str(run)
        folder.mkdir()
        _, source = made.guarded(folder, seed=seed)
        for i in order:
            source[i]
        bad_records.merge(folder)
        replaced[run] = [e["replaced_by"] for e in entries(folder)]
    assert replaced[0] == replaced[1] != replaced[2] == replaced[3]
    assert len(set(replaced[0])) > len(replaced[0]) // 2


@pytest.mark.parametrize("threads", [1, 8])
def test_processes_threads_and_restarts_name_the_same(tmp_path, threads):
    """However often a record is read, and wherever a run is killed."""
    made = make(tmp_path, "milco")
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    _, source = made.guarded(alone)
    wanted = [source[i].id for i in range(COUNT)]
    bad_records.merge(alone)

    rng = np.random.default_rng(0)
    order = rng.permutation(np.repeat(np.arange(COUNT), 2)).tolist()
    half = len(order) // 2
    for start in (order[:half], order):
        bad_records.merge(together)
        readers = [made.guarded(together, process)[1] for process in (0, 1, 2)]
        for process, source in enumerate(readers):
            # The parts of processes overlap.
            own = [i for place, i in enumerate(start) if place % 4 != process]
            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                found = [example.id for example in pool.map(source.__getitem__, own)]
            assert found == [wanted[i] for i in own]
        # One process has named what another one has, and is killed in a line's middle.
        with open(together / "bad_records.1.jsonl", "a") as file:
            file.write((together / FILE).read_text() + '{"set": "", "ind')
    bad_records.merge(together)
    assert [path.name for path in together.iterdir()] == [FILE]
    assert (together / FILE).read_bytes() == (alone / FILE).read_bytes()
    assert len(entries(together)) == len(made.kinds)


def test_the_share_is_of_all_processes(tmp_path):
    made = make(tmp_path, "alignment")
    bad = list(made.kinds)
    halves = [made.guarded(tmp_path, process, share=5 / COUNT) for process in (0, 1)]
    for (_, source), own in zip(halves, (bad[:3], bad[3:5]), strict=True):
        for i in own:
            source[i]
    with pytest.raises(InputError, match="^6 bad records"):
        halves[1][1][bad[5]]
    with pytest.raises(InputError, match="^6 bad records"):
        halves[0][0].summary()


def test_the_refusal_comes_out_of_the_loader(tmp_path):
    """Whose threads read ahead."""
    made = make(tmp_path, "alignment")
    _, source = made.guarded(tmp_path, share=5 / COUNT)
    read = []
    with pytest.raises(InputError, match="^6 bad records"):
        for example in loader.stream(source, 0, COUNT, threads=4, prefetch=8):
            read.append(example.id)
    assert 0 < len(read) <= list(made.kinds)[5]


def test_data_sets_are_counted_apart(tmp_path):
    made = make(tmp_path, "alignment")
    found = BadRecords(tmp_path)
    share = len(made.kinds) / COUNT
    for name in ("web", "papers"):
        list(found.guard(made.open(), name=name, seed=0, share=share, scored=False))
    assert f"{2 * len(made.kinds)} bad records were replaced" in found.summary()
    assert {e["set"] for e in entries(tmp_path)} == {"web", "papers"}


def test_scores_that_nobody_reads_may_be_missing(tmp_path):
    made = make(tmp_path, "milco")
    made.scored = False
    _, source = made.guarded(tmp_path)
    list(source)
    missing = set(made.kinds) - {e["index"] for e in entries(tmp_path)}
    assert len(missing) == 1


def test_parquet(tmp_path):
    """Of each kind that the types of its columns let in."""
    rows = [milco(i) for i in range(300)]
    rows[7]["query"] = " "
    rows[70]["pos"] = None
    rows[71]["neg_scores"] = [NAN, 1.0]
    rows[72]["pos_scores"] = rows[72]["neg_scores"] = None
    table = pa.Table.from_pylist(rows)
    place = table.column_names.index("query")
    texts = [row["query"].encode() for row in rows]
    texts[299] = b"broken \xff"
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(place, "query", column), tmp_path / "x.parquet")
    config = get_default().data
    config.source.files = str(tmp_path / "x.parquet")
    made = Made(config, {}, {}, True)
    found, source = made.guarded(tmp_path)
    assert all(isinstance(source[i], Group) for i in range(300))
    assert {e["index"]: e["kind"] for e in entries(tmp_path)} == {
        7: "empty text",
        70: "no positive",
        71: "bad score",
        72: "no scores",
        299: "broken UTF-8",
    }
    assert entries(tmp_path)[0]["row"] == 7


def beir(folder, bad):
    """A folder with 100 queries, whose texts and judgements have bad lines."""
    corpus = [json.dumps({"_id": f"d{i}", "text": f"text {i}"}) for i in range(100)]
    queries = [json.dumps({"_id": f"q{i}", "text": f"query {i}"}) for i in range(100)]
    qrels = ["query-id\tcorpus-id\tscore"]
    qrels += [f"q{i}\td{i}\t1" for i in range(100)]
    if bad:
        corpus[3] = '{"_id": "d3", '
        queries[5] = '{"_id": "q5", "text": [1]}'
        qrels[8] = "q7\td7\tnan"
    (folder / "qrels").mkdir(parents=True)
    for name, lines in (
        ("corpus.jsonl", corpus),
        ("queries.jsonl", queries),
        ("qrels/train.tsv", qrels),
    ):
        (folder / name).write_text("\n".join(lines) + "\n")
    config = get_default().data
    config.source.files, config.format = str(folder), "beir"
    return Made(config, {}, {}, False)


@pytest.mark.parametrize("kept", [0, 2**40])
def test_a_beir_folder(tmp_path, monkeypatch, kept):
    """Lines of every file of it; a kept index knows those of the corpus."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(id_index, "_KEPT", kept)
    made = beir(tmp_path / "bad", bad=True)
    for start in range(2):
        work = tmp_path / str(start)
        work.mkdir()
        found, source = made.guarded(work)
        assert len(source) == 99
        ids = [source[i].query["*"] for i in range(99)]
        assert ids.count("query 7") == 0 and "query 99" in ids
        bad_records.merge(work)
        named = {
            (e.get("id"), e.get("line"), e["file"][-13:], e["kind"])
            for e in entries(work)
        }
        assert named == {
            ("q3", None, "rels/train.tsv"[-13:], "unknown id"),
            ("q5", None, "rels/train.tsv"[-13:], "unknown id"),
            (None, 4, "/corpus.jsonl", "broken JSON"),
            (None, 6, "queries.jsonl", "wrong type"),
            (None, 9, "rels/train.tsv"[-13:], "bad score"),
        }
        sources._index_of.cache_clear()
    with pytest.raises(InputError, match="^3 bad records .*files of texts by id"):
        made.guarded(tmp_path / "0", share=0.01)
    with pytest.raises(InputError, match=r"train\.tsv, line 9"):
        made.config.format.split = "train"
        open_source(made.config, "group", where="config.dev")


def anything(rng, depth=0):
    """A value of JSON."""
    kinds = [
        None,
        True,
        7,
        -1.5,
        10**400,
        NAN,
        math.inf,
        "",
        " ",
        "text",
        "\ud83d",
        "d1",
    ]
    if depth < 3 and rng.random() < 0.5:
        values = [anything(rng, depth + 1) for _ in range(rng.randrange(3))]
        names = ("text", "title", "*", "id")
        return values if rng.random() < 0.6 else dict(zip(names, values, strict=False))
    return rng.choice(kinds)


def texts_of(example):
    if isinstance(example, Group):
        for text in (example.query, *example.positives, *example.negatives):
            yield from text.values()
    else:
        yield from (example.english, example.translation)


@pytest.mark.parametrize("format", CASES)
def test_any_value_gives_an_example_or_a_bad_record(tmp_path, format):
    """And an example holds texts that can be tokenized, and finite scores."""
    rng = random.Random(format)
    row, _ = CASES[format]
    rows = [row(0)]
    for i in range(1500):
        changed = row(i % COUNT)
        for field in rng.sample(list(changed), rng.randint(1, 2)):
            changed[field] = anything(rng)
        rows.append(changed)
    made = make(tmp_path, format)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "x.jsonl").write_text(lines)
    source = made.open()
    bad = 0
    for i in range(len(source)):
        try:
            example = source[i]
        except BadRecord:
            bad += 1
            continue
        for text in texts_of(example):
            assert text.encode().strip()
        if isinstance(example, Group) and example.scores is not None:
            count = len(example.positives) + len(example.negatives)
            assert np.isfinite(example.scores).all() and len(example.scores) == count
    assert 0.3 * len(source) < bad < len(source)
