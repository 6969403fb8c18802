"""Each benchmark loads from a small folder with the layout of its repository."""

import dataclasses
import json

import numpy as np
import pytest
from programs.layouts import jsonl, lines, parquet, texts

from lsrjax import options
from lsrjax.data.debian_texts import embedded
from lsrjax.errors import InputError
from lsrjax.retrieval.tasks.table import TASKS, loaded


def tasks(name, **values):
    """The tasks of an entry with these options."""
    chosen = options.resolve(TASKS, {"name": name, **values}, "task")
    return list(loaded(chosen))


def one(name, **values):
    (task,) = tasks(name, **values)
    return task


def judged(task):
    """Query id to document id to grade."""
    return {
        key: {task.document_ids[place]: grade for place, grade in of.items()}
        for key, of in zip(task.query_ids, task.relevant, strict=True)
    }


def beir_folder(folder, qrels, name="qrels/test.tsv"):
    jsonl(folder / "corpus.jsonl", texts(7))
    jsonl(
        folder / "queries.jsonl",
        [{"_id": f"q{i}", "text": f"ask {i}"} for i in range(5)],
    )
    lines(folder / name, qrels)


HEADER = ["query-id\tcorpus-id\tscore", "q1\td2\t2", "q1\td3\t0", "q4\td6\t1"]
TREC = ["q1 0 d2 2", "q1 0 d3 0", "q4 Q0 d6 1"]


@pytest.mark.parametrize(
    ("qrels", "name"),
    [(HEADER, "qrels/test.tsv"), (HEADER[1:], "qrels/test.tsv.gz")]
    + [(TREC, "qrels/test.txt"), (TREC, "qrels.test.trec")],
)
def test_a_beir_folder_of_ones_own(tmp_path, qrels, name):
    beir_folder(tmp_path, qrels, name)
    task = one("beir", path=str(tmp_path), languages=["da"])
    assert judged(task) == {"q1": {"d2": 2, "d3": 0}, "q4": {"d6": 1}}
    assert task.queries == ["ask 1", "ask 4"] and task.languages == ["da", "da"]
    assert len(task.corpus) == 7 and task.corpus[2] == "t2 word2 and more"
    assert task.corpus[1:3] == [task.corpus[1], task.corpus[2]]
    assert task.data["judgements"] == 3 and task.data["source"] == str(tmp_path)
    before = task.data["sha256"]
    (tmp_path / "queries.jsonl").open("a").write('{"_id": "new", "text": "x"}\n')
    assert one("beir", path=str(tmp_path)).data["sha256"] != before


def test_folders_by_language(tmp_path):
    for language in ("de", "ja"):
        beir_folder(tmp_path / language, HEADER)
    path = str(tmp_path / "{language}")
    found = tasks("beir", path=path, languages=["de", "ja"])
    assert [task.name for task in found] == ["beir/de", "beir/ja"]
    assert [task.spoken_at([0]) for task in found] == [["de"], ["ja"]]
    own = {"path": str(tmp_path / "de"), "languages": ["de"]}
    assert one("beir", **own).spoken_at([0]) == [""]  # not stated
    assert one("beir", document_language="en", **own).spoken_at([0]) == ["en"]
    with pytest.raises(InputError, match="path has no"):
        tasks("beir", path=str(tmp_path / "de"), languages=["de", "ja"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\tnobody\t1", "query 'q1': the relevant document 'nobody' is not in the"),
        ("q1\td4\t0.5", "query 'q1': the document 'd4' has the grade 0.5"),
        ("q1\td4\t5000000000", "the document 'd4' has the grade 5e\\+09"),
        ("nobody\td4\t1", "1 of 3 judged queries are not among the queries, 'nobody'"),
        ("q1\td2\t1", "judged 1, but 2 before"),
    ],
)
def test_judgements_that_cannot_be_measured_are_named(tmp_path, line, message):
    beir_folder(tmp_path, [*HEADER, line])
    with pytest.raises(InputError, match=message):
        one("beir", path=str(tmp_path))


@pytest.mark.parametrize("swapped", ["columns", "files"])
def test_queries_in_the_place_of_documents_are_named(tmp_path, swapped):
    beir_folder(tmp_path, HEADER)
    qrels = tmp_path / "qrels/test.tsv"
    if swapped == "columns":
        rows = [line.split("\t") for line in HEADER[1:]]
        qrels.write_text("".join(f"{d}\t{q}\t{grade}\n" for q, d, grade in rows))
    else:
        files = [tmp_path / f"{name}.jsonl" for name in ("corpus", "queries")]
        corpus, queries = (file.read_text() for file in files)
        files[0].write_text(queries)
        files[1].write_text(corpus)
    with pytest.raises(InputError, match="'.+' for one, are those of documents"):
        one("beir", path=str(tmp_path))


def test_floats_in_the_judgements_are_ids(tmp_path):
    def written(*qrels):
        lines(tmp_path / "qrels/test.tsv", qrels)
        return one("beir", path=str(tmp_path))

    jsonl(tmp_path / "corpus.jsonl", [{"_id": i, "text": f"t{i}"} for i in range(9)])
    queries = [{"_id": key, "text": f"ask {key}"} for key in (3, 4, "4.0")]
    jsonl(tmp_path / "queries.jsonl", queries)
    assert judged(written("3.0\t7.0\t1", "4\t8\t2")) == {"3": {"7": 1}, "4": {"8": 2}}
    assert written("4.0\t8\t1").queries == ["ask 4.0"]
    with pytest.raises(InputError, match="'8.0' is judged 1, but 2 as '8'"):
        written("4\t8\t2", "4\t8.0\t1")
    with pytest.raises(InputError, match="1 of 2 judged queries .*'3.0' for one"):
        written("3\t8\t2", "3.0\t7\t1")


def test_an_empty_corpus_is_named(tmp_path):
    beir_folder(tmp_path, HEADER)
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(InputError, match=r"corpus\.jsonl has no documents"):
        one("beir", path=str(tmp_path))


def test_a_missing_document_that_is_not_relevant_is_no_error(tmp_path):
    beir_folder(tmp_path, [*HEADER, "q1\tnobody\t0"])
    assert judged(one("beir", path=str(tmp_path)))["q1"] == {"d2": 2, "d3": 0}


@pytest.mark.parametrize("packed", [True, False])
def test_beirs_data_sets_of_the_hub(tmp_path, packed):
    """Texts as JSONL, or as the tables that the hub made of it; judgements apart."""
    folder = tmp_path / "arguana"
    queries = [{"_id": f"d{i}", "title": "", "text": f"ask {i}"} for i in range(5)]
    if packed:
        jsonl(folder / "corpus.jsonl.gz", texts(7))
        jsonl(folder / "queries.jsonl.gz", queries)
    else:
        parquet(folder / "corpus" / "corpus-00000-of-00001.parquet", texts(7))
        parquet(folder / "queries" / "queries-00000-of-00001.parquet", queries)
    qrels = ["query-id\tcorpus-id\tscore", "d1\td2\t1"]
    lines(tmp_path / "arguana-qrels" / "test.tsv", qrels)
    task = one("beir_hub", path=str(tmp_path), names=["arguana"])
    assert judged(task) == {"d1": {"d2": 1}} and task.languages == ["en"]
    # The document with the query's id is no hit.
    hits, scores = np.array([[1, 4, 2]]), np.array([[3.0, 2.0, 1.0]])
    assert task.own_ids
    assert [a.tolist() for a in task.without_own(hits, scores)] == [[[4, 2]], [[2, 1]]]
    hits = np.array([[5, 4, 2]])
    assert task.without_own(hits, scores)[0].tolist() == [[5, 4]]


CARD = """---
configs:
- config_name: corpus
  data_files:
  - split: train
    path: corpus/train-*
- config_name: queries
  data_files:
  - split: train
    path: queries/train-*
- config_name: qrels
  data_files:
  - split: train
    path: qrels/train-*
---
# NanoX
"""


@pytest.mark.parametrize("card", [CARD, None])
def test_nanobeir_with_a_repository_for_each_data_set(tmp_path, card):
    """zeta-alpha-ai/NanoX: configurations with one split; judgements without grades."""
    for name in ("NanoMSMARCO", "NanoNQ"):
        folder = tmp_path / name
        for config, rows in (
            ("corpus", [{"_id": f"{i}", "text": f"{name} {i}"} for i in range(4)]),
            ("queries", [{"_id": "9", "text": "ask"}]),
            ("qrels", [{"query-id": "9", "corpus-id": "3"}]),
        ):
            parquet(folder / config / "train-00000-of-00001.parquet", rows)
        if card:
            (folder / "README.md").write_text(card)
    names = ["NanoMSMARCO", "NanoNQ"]
    where = {"en": str(tmp_path / "{name}")}
    first, second = tasks("nanobeir", dataset_id=where, names=names)
    assert judged(first) == judged(second) == {"9": {"3": 1}}
    assert first.corpus[0] == "NanoMSMARCO 0" and second.corpus[0] == "NanoNQ 0"
    assert first.name == "nanobeir/en/NanoMSMARCO" and first.metrics[0] == "nDCG@10"


def test_nanobeir_with_a_split_for_each_data_set(tmp_path):
    """sentence-transformers/NanoBEIR-en and its translations."""
    for name in ("NanoMSMARCO", "NanoNQ"):
        for config, rows in (
            ("corpus", [{"_id": f"{i}", "text": f"{name} {i}"} for i in range(4)]),
            ("queries", [{"_id": "9", "text": "ask"}]),
            ("qrels", [{"query-id": "9", "corpus-id": "3"}]),
        ):
            parquet(tmp_path / config / f"{name}-00000-of-00001.parquet", rows)
    where = {"da": str(tmp_path), "sv": str(tmp_path)}
    found = tasks("nanobeir", dataset_id=where, names=["NanoNQ", "NanoMSMARCO"])
    assert [task.name for task in found] == [
        *("nanobeir/da/NanoNQ", "nanobeir/da/NanoMSMARCO"),
        *("nanobeir/sv/NanoNQ", "nanobeir/sv/NanoMSMARCO"),
    ]
    assert found[0].corpus[1] == "NanoNQ 1" and found[2].languages == ["sv"]


def test_miracl_and_its_repeated_ids_of_korean(tmp_path):
    for language in ("ko", "sw"):
        docs = [
            {"docid": f"{i}#0", "title": f"t{i}", "text": f"{language} {i}"}
            for i in range(6)
        ]
        again = [{"docid": "2#0", "title": "t2", "text": "anew"}, docs[4]]
        files = tmp_path / "corpus" / f"miracl-corpus-v1.0-{language}"
        jsonl(files / "docs-0.jsonl.gz", docs[:4])
        extra = again if language == "ko" else []
        jsonl(files / "docs-1.jsonl.gz", docs[4:] + extra)
        folder, tail = tmp_path / f"miracl-v1.0-{language}", f"v1.0-{language}-dev.tsv"
        lines(
            folder / "topics" / f"topics.miracl-{tail}", ["1#q\thow\tmany", "2\twho?"]
        )
        qrels = ["1#q\tQ0\t2#0\t1", "1#q\tQ0\t5#0\t0", "2\tQ0\t5#0\t1"]
        repeated = ["1#q\tQ0\t2#0\t1", "2\tQ0\t4#0\t0", "2\tQ0\t4#0\t1"]
        qrels += repeated if language == "ko" else []
        lines(folder / "qrels" / f"qrels.miracl-{tail}", qrels)
    where = {"path": str(tmp_path), "corpus": str(tmp_path / "corpus")}
    korean, swahili = tasks("miracl", languages=["ko", "sw"], **where)
    assert judged(swahili) == {"1#q": {"2#0": 1, "5#0": 0}, "2": {"5#0": 1}}
    assert judged(korean)["2"] == {"5#0": 1, "4#0": 1}
    assert list(korean.document_ids) == list(swahili.document_ids)
    # The last text of an id counts, where the id is first.
    assert korean.corpus[2] == "t2 anew" and korean.corpus[4] == "t4 ko 4"
    assert korean.data["repeated_ids"] == 2 and "repeated_ids" not in swahili.data
    assert korean.queries == ["how\tmany", "who?"] and korean.name == "miracl/ko"
    with pytest.raises(InputError, match=r"'xx'; there are ar, bn"):
        tasks("miracl", languages=["xx"], **where)
    with pytest.raises(InputError, match="topics.miracl-v1.0-de-dev.tsv"):
        tasks("miracl", languages=["de"], **where)


def test_the_layout_of_mteb(tmp_path):
    """miracl_hard has a configuration for each language, and ids as numbers."""
    for language in ("fi", "yo"):
        for config, rows in (
            (
                "corpus",
                [{"_id": f"{i}", "title": "t", "text": f"x{i}"} for i in range(4)],
            ),
            (
                "queries",
                [{"_id": "9", "text": f"ask {language}"}, {"_id": "8", "text": ""}],
            ),
            ("qrels", [{"query-id": "9", "corpus-id": "3", "score": 2}]),
        ):
            name = f"{language}-{config}/dev-00000-of-00001.parquet"
            parquet(tmp_path / name, rows)
    where = {"path": str(tmp_path), "languages": ["fi", "yo"]}
    first, second = tasks("miracl_hard", **where)
    assert judged(first) == {"9": {"3": 2}} and second.queries == ["ask yo"]
    alone = tmp_path / "alone"
    for config, split in (
        ("corpus", "corpus"),
        ("queries", "queries"),
        ("default", "test"),
    ):
        rows = {"corpus": texts(3), "queries": [{"_id": 9, "text": "ask"}]}.get(
            config, [{"query-id": "9", "corpus-id": "d1", "score": 1.0}]
        )
        jsonl(alone / config / f"{split}.jsonl", rows)
    task = one("hub", path=str(alone))
    assert judged(task) == {"9": {"d1": 1}} and task.name == "alone/all"


def test_mr_tydi(tmp_path):
    inside = "mrtydi-v1.1-thai"
    docs = [{"docid": f"{i}#0", "title": "t", "text": f"x{i}"} for i in range(3)]
    jsonl(tmp_path / "corpus" / inside / "corpus.jsonl.gz", docs)
    lines(tmp_path / inside / "ir-format-data" / "topics.test.txt", ["7\tถาม", "8\tno"])
    lines(tmp_path / inside / "ir-format-data" / "qrels.test.txt", ["7 Q0 2#0 1"])
    task = one(
        "mr_tydi", path=str(tmp_path), corpus=str(tmp_path / "corpus"), languages=["th"]
    )
    assert judged(task) == {"7": {"2#0": 1}} and task.queries == ["ถาม"]
    assert task.metrics[:2] == ("RR@100", "R@100") and task.languages == ["th"]


def test_mldr(tmp_path):
    docs = [{"docid": f"doc-de-{i}", "text": f"x{i} " * 9} for i in range(3)]
    jsonl(tmp_path / "mldr-v1.0-de" / "corpus.jsonl.gz", docs)
    row = {
        "query_id": "q-de-1",
        "query": "wer?",
        "positive_passages": [docs[1]],
        "negative_passages": [docs[0]],
    }
    jsonl(tmp_path / "mldr-v1.0-de" / "test.jsonl.gz", [row])
    task = one("mldr", path=str(tmp_path), languages=["de"])
    assert judged(task) == {"q-de-1": {"doc-de-1": 1}}
    jsonl(tmp_path / "mldr-v1.0-de" / "test.jsonl.gz", [{"query_id": 1}])
    with pytest.raises(InputError, match="line 1 is no query of MLDR"):
        one("mldr", path=str(tmp_path), languages=["de"])


def test_mkqa_judges_what_is_found_by_its_answers(tmp_path):
    passages = ["It was Harald Bluetooth.", "bluetooth harald", "Harald, bluetooths"]
    rows = [
        {"_id": f"{i}", "title": "", "text": text} for i, text in enumerate(passages)
    ]
    jsonl(tmp_path / "nq" / "corpus.jsonl.gz", rows)
    for language in ("da", "zh_cn"):
        row = {"id": 5, "question": f"{language}?", "answers": ["harald bluetooth", ""]}
        jsonl(tmp_path / f"{language}.jsonl", [row])
    where = {"path": str(tmp_path), "corpus": str(tmp_path / "nq")}
    task = one("mkqa", languages=["da", "zh_cn"], **where)
    assert task.query_ids == ["da/5", "zh_cn/5"] and task.languages == ["da", "zh_cn"]
    found = task.judged(np.array([[2, 1, 0], [-1, -1, -1]]))
    assert found == [{2: 0, 1: 0, 0: 1}, {0: 0}]


def topic(number, **wordings):
    """A topic as NeuCLIR and HC4 have it: English, and translations of two kinds."""
    return {
        "topic_id": number,
        "languages_with_qrels": ["fas", "rus", "zho"],
        "topics": [
            {
                "lang": lang,
                "source": source,
                "topic_title": f"{title} {lang}",
                "topic_description": f"about {source}",
            }
            for (lang, source), title in {
                ("eng", "original"): "T",
                ("fas", "human translation"): "H",
                ("fas", "google translation"): "M",
                ("rus", "google translation"): "M",
            }.items()
        ],
    }


def neuclir_folders(tmp_path, year):
    for lang in ("fas", "rus", "zho"):
        docs = [
            {"id": f"{lang}-{i}", "title": "t", "text": f"{lang} {i}", "url": "u"}
            for i in range(4)
        ]
        jsonl(tmp_path / "neuclir1" / "data" / f"{lang}-00000-of-00001.jsonl.gz", docs)
        jsonl(tmp_path / "hc4" / lang / "hc4_docs.jsonl", docs)
        qrels = [f"1 0 {lang}-1 3", f"1 0 {lang}-2 1", f"1 0 {lang}-3 0"]
        qrels += ["2 0 fas-3 0"] if lang == "fas" else []
        names = {2022: f"2022-qrels.{lang}", 2023: f"final/qrels.final.gains.{lang}"}
        lines(tmp_path / names[year], qrels)
        lines(tmp_path / "resources" / lang / "test.qrels.v1-0.txt", qrels)
    topics = [topic("1"), topic("2"), topic("3")]
    names = {2022: "topics.0720.utf8.jsonl", 2023: "neuclir-2023-topics.0605.jsonl"}
    jsonl(tmp_path / names[year], topics)
    jsonl(tmp_path / "resources" / "test.topics.v1-0.jsonl", topics)


@pytest.mark.parametrize("year", [2022, 2023])
def test_neuclir_by_language_and_all_at_once(tmp_path, year):
    neuclir_folders(tmp_path, year)
    where = {"path": str(tmp_path), "corpus": str(tmp_path / "neuclir1"), "year": year}
    found = tasks("neuclir", **where)
    names = [f"neuclir{year}/{part}" for part in ("fa", "ru", "zh", "mlir")]
    assert [task.name for task in found] == names
    persian, russian, _, together = found
    # A query without a relevant document counts, as 0.
    grades = {"fas-1": 3, "fas-2": 1, "fas-3": 0}
    assert judged(persian) == {"1": grades, "2": {"fas-3": 0}}
    assert judged(russian) == {"1": {"rus-1": 3, "rus-2": 1, "rus-3": 0}}
    assert len(together.corpus) == 12 and len(judged(together)["1"]) == 9
    assert set(together.languages) == {"mlir"} and persian.languages == ["fa", "fa"]
    assert persian.queries[0] == "T eng about original"
    assert persian.spoken == ["en", "en"] and set(persian.spoken_at(range(4))) == {"fa"}
    three = dict.fromkeys(text[:3] for text in together.corpus)
    of_three = dict(zip(three, ("fa", "ru", "zh"), strict=True))
    wanted = [of_three[text[:3]] for text in together.corpus]
    assert together.spoken_at(range(12)) == wanted
    assert persian.metrics[0] == "nDCG@20"
    where |= {"languages": ["fa"], "fields": ["topic_title"]}
    human = one("neuclir", query="human", **where)
    assert human.queries[0] == "H fas" and human.spoken[0] == "fa"
    assert one("neuclir", query="machine", **where).queries[0] == "M fas"
    where["languages"] = ["ru"]
    with pytest.raises(InputError, match="the query '1' has no text"):
        one("neuclir", query="human", **where)
    where["languages"] = ["mlir"]
    with pytest.raises(InputError, match="mlir has no one language"):
        one("neuclir", query="human", **where)


def test_hc4(tmp_path):
    neuclir_folders(tmp_path, 2022)
    where = {"path": str(tmp_path / "resources"), "corpus": str(tmp_path / "hc4")}
    found = tasks("hc4", languages=["zh", "mlir"], **where)
    assert judged(found[0]) == {"1": {"zho-1": 3, "zho-2": 1, "zho-3": 0}}
    assert len(found[1].corpus) == 12


def test_clef(tmp_path):
    files = tmp_path / "documents" / "fi" / "aamu"
    lines(
        files / "a.sgml",
        [
            "<DOC>\n<DOCNO>AA-1</DOCNO>\n<DATE>94</DATE>\n<TITLE>Otsikko</TITLE>",
            "<TEXT>\nkissa &amp; <P>koira\n</TEXT>\n</DOC>",
            "<DOC><DOCNO> AA-2 </DOCNO><TEXT>muu</TEXT></DOC>",
        ],
    )
    lines(
        tmp_path / "topics" / "en.txt",
        [
            "<top>\n<num> C041 </num>\n<EN-title> Cats </EN-title>",
            "<EN-desc> About cats. </EN-desc><EN-narr> Any. </EN-narr>\n</top>",
            '<topic lang="en"><identifier>10.2452/42-AH</identifier>'
            "<title>Dogs</title><description>Of dogs.</description></topic>",
        ],
    )
    qrels = ["C041 0 AA-1 1", "C041 0 AA-2 0", "10.2452/42-AH 0 AA-2 1"]
    lines(tmp_path / "qrels" / "fi.qrels", qrels)
    task = one("clef", path=str(tmp_path), languages=["fi"])
    assert list(task.corpus) == ["Otsikko kissa & koira", "muu"]
    assert task.queries == ["Cats About cats.", "Dogs Of dogs."]
    assert judged(task)["C041"] == {"AA-1": 1, "AA-2": 0} and task.name == "clef/en-fi"
    assert task.spoken == ["en", "en"] and task.spoken_at([0]) == ["fi"]


def test_the_embedded_texts():
    (english,) = tasks("debian")
    (mixed,) = tasks("debian", documents="mixed", seed=3)
    assert len(set(english.languages)) == 13 and english.data["sha256"]
    assert len(english.query_ids) == len(set(english.query_ids))
    assert len(english.document_ids) == len(english.corpus)
    assert mixed.queries == english.queries and mixed.corpus != english.corpus
    (some,) = tasks("debian", languages=["ja", "ko"])
    assert set(some.languages) == {"ja", "ko"}
    assert list(some.corpus) == list(english.corpus)
    assert set(english.document_language) == {"en"}
    groups = {group.id: group for group in embedded.examples("group", "test")}
    for key, text, language in zip(
        mixed.document_ids, mixed.corpus, mixed.document_language, strict=True
    ):
        assert groups[key].positives[0][language] == text


def test_ir_datasets(tmp_path, monkeypatch):
    import ir_datasets

    lines(tmp_path / "docs.tsv", [f"d{i}\ttext {i}" for i in range(5)])
    lines(tmp_path / "queries.tsv", ["q1\task", "q2\tnone"])
    lines(tmp_path / "qrels", ["q1 0 d3 2", "q1 0 d1 0"])
    names = ("docs.tsv", "queries.tsv", "qrels")
    made = ir_datasets.create_dataset(*(str(tmp_path / name) for name in names))
    monkeypatch.setattr(ir_datasets, "load", {"mine": made}.__getitem__)
    task = one("ir_datasets", ids=["mine"])
    assert judged(task) == {"q1": {"d3": 2, "d1": 0}}
    assert list(task.corpus) == [f"text {i}" for i in range(5)]
    assert task.corpus[1:4] == ["text 1", "text 2", "text 3"] and task.corpus[4]
    with pytest.raises(InputError, match="has no 'other'"):
        one("ir_datasets", ids=["other"])
    with pytest.raises(InputError, match="a query has query_id, text"):
        one("ir_datasets", ids=["mine"], field="title")


@pytest.mark.parametrize("name", TASKS)
def test_every_entry_has_documented_options_and_names_what_it_lacks(name):
    entry = TASKS[name]
    assert entry.__doc__ and entry.parts and entry.load
    for field in dataclasses.fields(entry.Options):
        assert field.metadata["doc"]
    path = "/no/such/folder"
    values = {
        "nanobeir": {"dataset_id": {"en": path}},
        "ir_datasets": {"ids": ["no/such"]},
        "clef": {"path": path, "languages": ["fi"]},
        "beir_hub": {"path": path},
        "debian": {"languages": ["xx"]},
        "mteb": {},
    }.get(name, {"path": path})
    with pytest.raises(InputError, match="no such|no/such|'xx'|names is empty"):
        tasks(name, **values)


def test_lines_that_are_no_json_are_named(tmp_path):
    lines(tmp_path / "da.jsonl", [json.dumps({"id": 1}), "{"])
    jsonl(tmp_path / "nq" / "corpus.jsonl", texts(1))
    where = {"path": str(tmp_path), "corpus": str(tmp_path / "nq"), "languages": ["da"]}
    with pytest.raises(InputError, match="line 1 is no question of MKQA"):
        one("mkqa", **where)
