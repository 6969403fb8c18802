import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data import sources
from lsrjax.data.examples import ANY, Group, Pair
from lsrjax.data.reading import formats
from lsrjax.data.reading.format_options import NORMALIZATIONS, Scored
from lsrjax.errors import InputError

FORMATS = {n: of for n, of in formats.FORMATS.items() if n != formats.AUTO}
# The same content in every format: queries with a positive, two negatives, scores.
QUERIES = {f"q{i}": f"query {i}" for i in range(3)}
DOCUMENTS = {f"d{i}{j}": f"title {i} text {j}" for i in range(3) for j in range(3)}
SCORES = [[9.0, 2.0, -1.5], [8.0, 1.0, 3.0], [5.0, 0.5, 0.25]]


def ids(i):
    return [f"d{i}{j}" for j in range(3)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"files": str(path)}


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {"files": str(path)}


def write_corpus(path, texts=DOCUMENTS):
    write_jsonl(path, [{"docid": k, "text": t} for k, t in texts.items()])
    return str(path)


def write_tsv(path, texts):
    path.write_text("".join(f"{k}\t{t}\n" for k, t in texts.items()))
    return str(path)


def rows_of(row):
    """`row(i, query, its documents, their scores)` of each query."""
    return [
        row(i, query, [DOCUMENTS[key] for key in ids(i)], SCORES[i])
        for i, query in enumerate(QUERIES.values())
    ]


def milco(folder, write):
    def row(i, query, texts, scores):
        lists = {"pos": texts[:1], "neg": texts[1:]}
        scored = {"pos_scores": scores[:1], "neg_scores": scores[1:]}
        return {"query": query} | lists | scored

    return write(folder, rows_of(row))


def alignment(folder, write):
    def row(i, query, texts, scores):
        return {"english": query, "non_english": texts[0], "language": "de"}

    return write(folder, rows_of(row))


def tevatron(folder, write):
    def passage(key, text):
        _, number, text = text.split(" ", 2)
        return {"docid": key, "title": f"title {number}", "text": text}

    def row(i, query, texts, scores):
        passages = [passage(*pair) for pair in zip(ids(i), texts, strict=True)]
        return {
            "query_id": f"q{i}",
            "query": query,
            "positive_passages": passages[:1],
            "negative_passages": passages[1:],
        }

    return write(folder, rows_of(row))


def tevatron_ids(folder, write):
    def row(i, query, texts, scores):
        keys = {
            "positive_document_ids": ids(i)[:1],
            "negative_document_ids": ids(i)[1:],
        }
        return {"query_id": f"q{i}", "query_text": query} | keys

    corpus = write_corpus(folder.parent / "corpus.x.jsonl")
    return write(folder, rows_of(row)) | {"corpus": corpus}


def colbert(folder, write):
    lines = [
        [f"q{i}", *map(list, zip(ids(i), SCORES[i], strict=True))] for i in range(3)
    ]
    return write_jsonl(folder.with_suffix(".jsonl"), lines) | {
        "queries": write_tsv(folder.parent / "queries.tsv", QUERIES),
        "corpus": write_tsv(folder.parent / "collection.tsv", DOCUMENTS),
    }


def triplet(folder, write):
    def row(i, query, texts, scores):
        named = {"positive": texts[0], "negative_1": texts[1], "negative_2": texts[2]}
        return {"anchor": query} | named | {"label": scores}

    return write(folder, rows_of(row))


def labelled(folder, write):
    rows = [
        {"sentence1": query, "sentence2": DOCUMENTS[f"d{i}{j}"], "score": score}
        for i, query in enumerate(QUERIES.values())
        for j, score in enumerate((0.9, 0.4, 0.0))
    ]
    return write(folder, rows)


def beir(folder, write):
    folder = folder.parent / "beir"
    (folder / "qrels").mkdir(parents=True)

    def texts(of):
        return [{"_id": k, "title": "", "text": t} for k, t in of.items()]

    write_jsonl(folder / "corpus.jsonl", texts(DOCUMENTS))
    write_jsonl(folder / "queries.jsonl", texts(QUERIES))
    lines = ["query-id\tcorpus-id\tscore"]
    lines += [f"q{i}\td{i}{j}\t{int(j == 0)}" for i in range(3) for j in range(3)]
    lines += ["q9\td00\t0"]  # nothing is relevant to it: left out
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines))
    return {"files": str(folder)}


MAKERS = {
    "milco": milco,
    "alignment": alignment,
    "tevatron": tevatron,
    "tevatron_ids": tevatron_ids,
    "colbert": colbert,
    "triplet": triplet,
    "labelled": labelled,
    "beir": beir,
}
WRITERS = {"x.jsonl": write_jsonl, "x.parquet": write_parquet}


def config_of(**fields):
    """A config's data: files, a corpus, and a format with its options."""
    data = get_default().data
    data.source.files = fields.pop("files")
    data.corpus = fields.pop("corpus", "")
    data.format = entry(fields.pop("format", "auto"), **fields)
    return data


def opened(kind="group", **fields):
    return sources.open_source(config_of(**fields), kind)


def refusal(kind="group", **fields):
    with pytest.raises(InputError) as error:
        source = opened(kind, **fields)
        [source[i] for i in range(len(source))]
    return str(error.value)


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("chosen", ["auto", "named"])
def test_every_format_gives_the_same_examples(tmp_path, name, file, chosen):
    made = MAKERS[name](tmp_path / file, WRITERS[file])
    made["format"] = name if chosen == "named" else "auto"
    if chosen == "auto" and name == "colbert":
        del made["queries"]
        message = refusal(**made)
        assert 'need config.data.format = entry("colbert", queries=…)' in message
        return
    source = opened(kind_of(name), **made)
    assert source.format.name == name and source.description.startswith(name)
    assert len(source) == 3
    for i in reversed(range(3)):
        example, texts = source[i], [{ANY: DOCUMENTS[key]} for key in ids(i)]
        assert "row " in example.id
        if kind_of(name) == "pair":
            expected = (f"query {i}", DOCUMENTS[f"d{i}0"], "de")
            assert isinstance(example, Pair)
            assert (example.english, example.translation, example.language) == expected
            continue
        assert isinstance(example, Group)
        assert example.query == {ANY: f"query {i}"}
        assert example.positives == texts[:1]
        assert example.negatives == ([] if name == "labelled" else texts[1:])
        if name in ("milco", "colbert", "triplet"):
            np.testing.assert_array_equal(example.scores, np.float32(SCORES[i]))
        else:
            assert example.scores is None
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.parametrize("name", FORMATS)
def test_missing_columns_show_the_row_and_the_formats(tmp_path, name):
    """Whatever format is asked for, a file of none is shown beside what is known."""
    if name == "beir":
        pytest.skip("a folder, not columns")
    kind = kind_of(name)
    made = write_jsonl(tmp_path / "x.jsonl", [{"frage": "Wer?", "antwort": "x" * 900}])
    for chosen in ("auto", name):
        queries = {"queries": write_tsv(tmp_path / "q.tsv", QUERIES)}
        options = queries if chosen == "colbert" else {}
        message = refusal(kind, format=chosen, **made, **options)
        assert f"{tmp_path}/x.jsonl" in message and "frage, antwort" in message
        assert (
            "{'frage': 'Wer?', 'antwort': 'xxx" in message and "x" * 301 not in message
        )
        known = [name] if chosen == name else [n for n in FORMATS if kind_of(n) == kind]
        for one in known:
            assert f"{one}: {FORMATS[one].shape}" in message


def kind_of(name):
    return "pair" if name == "alignment" else "group"


def test_several_formats_fit(tmp_path):
    row = {"query": "q", "pos": ["a"], "positive": "b"}
    made = write_jsonl(tmp_path / "x.jsonl", [row])
    message = refusal(**made)
    assert "could be milco or triplet" in message and "config.data.format" in message
    assert opened(**made, format="milco")[0].positives == [{ANY: "a"}]
    assert opened(**made, format="triplet")[0].positives == [{ANY: "b"}]
    # With its columns renamed.
    named = opened(**made, format="milco", pos="positive")
    assert named[0].positives == [{ANY: "b"}]


def test_rows_with_negatives_and_those_without(tmp_path):
    rows = [
        {"query": str(i), "positive": "p", "negative": n, "negative_2": None}
        for i, n in enumerate(["a", None, "b", None, None])
    ]
    for suffix, write in ((".jsonl", write_jsonl), (".parquet", write_parquet)):
        made = write(tmp_path / f"x{suffix}", rows)
        found = {}
        for which in ("any", "some", "none"):
            source = opened(**made, format="triplet", negatives=which)
            groups = [source[i] for i in range(len(source))]
            found[which] = [(one.query[ANY], len(one.negatives)) for one in groups]
        assert found["any"] == [("0", 1), ("1", 0), ("2", 1), ("3", 0), ("4", 0)]
        assert found["some"] == [("0", 1), ("2", 1)]
        assert found["none"] == [("1", 0), ("3", 0), ("4", 0)]
        assert source.description == "triplet (3 of 5 rows have no negative)"
        assert source.place(1)["row"] == 3
    made = write_jsonl(tmp_path / "y.jsonl", rows[:1])
    message = refusal(**made, format="triplet", negatives="none")
    assert "no row has no negative" in message
    made = write_jsonl(tmp_path / "z.jsonl", [{"query": "q", "positive": "p"}])
    message = refusal(**made, format="triplet", negatives="some")
    assert "the data has no column of negatives: query, positive" in message


def test_files_of_two_formats(tmp_path):
    triplet(tmp_path / "a.jsonl", write_jsonl)
    milco(tmp_path / "b.jsonl", write_jsonl)
    message = refusal(files=str(tmp_path / "*.jsonl"))
    assert "a.jsonl is of the format triplet" in message
    assert "b.jsonl of milco" in message


def test_formats_of_the_other_kind(tmp_path):
    made = milco(tmp_path / "x.jsonl", write_jsonl)
    assert "no known format of pairs of translations" in refusal("pair", **made)
    message = refusal("pair", **made, format="milco")
    assert "'milco', which holds queries with documents" in message


def test_ids_need_a_corpus_and_texts_none(tmp_path):
    made = tevatron_ids(tmp_path / "x.jsonl", write_jsonl)
    corpus = made.pop("corpus")
    assert "name the files of texts in config.data.corpus" in refusal(**made)
    made = milco(tmp_path / "y.jsonl", write_jsonl)
    message = refusal(**made, corpus=corpus)
    assert "would have no effect: the data is of the format milco" in message
    config = config_of(**made, corpus=corpus)
    assert len(sources.open_source(config, "group", where="config.dev")) == 3


def test_a_corpus_is_indexed_once_and_again_when_it_changes(tmp_path):
    made = tevatron_ids(tmp_path / "x.jsonl", write_jsonl)
    first, second = opened(**made), opened(**made)
    assert first._lookup.corpus is second._lookup.corpus
    write_corpus(tmp_path / "corpus.x.jsonl", dict.fromkeys(DOCUMENTS, "another text"))
    assert opened(**made)[0].positives == [{ANY: "another text"}]


@pytest.mark.parametrize("make", [tevatron_ids, colbert])
def test_a_missing_id_names_row_and_corpus(tmp_path, make):
    made = make(tmp_path / "x.jsonl", write_jsonl) | {"format": make.__name__}
    made["corpus"] = write_corpus(tmp_path / "c.jsonl", {"d00": "a"})
    message = refusal(**made)
    assert "x.jsonl, row 0 (the first is 0): the id 'd01' is not in" in message
    assert str(tmp_path / "c.jsonl") in message


def test_colbert_in_several_languages(tmp_path):
    made = colbert(tmp_path / "x.jsonl", write_jsonl)
    german = {key: f"{text} auf Deutsch" for key, text in DOCUMENTS.items()}
    write_tsv(tmp_path / "de.tsv", german)
    made["corpus"] = {"en": made["corpus"], "de": str(tmp_path / "de.tsv")}
    group = opened(**made, format="colbert")[1]
    assert group.positives == [{"en": DOCUMENTS["d10"], "de": german["d10"]}]
    assert list(group.negatives[1]) == ["en", "de"]


@pytest.mark.parametrize("scored", [False, True])
def test_colbert_lines_without_scores_and_with_numbers(tmp_path, scored):
    line = [0, [5, 1.0], [6, 0.5]] if scored else [0, 5, 6]
    made = write_jsonl(tmp_path / "x.jsonl", [line])
    made["queries"] = write_tsv(tmp_path / "q.tsv", {0: "q"})
    made["corpus"] = write_tsv(tmp_path / "c.tsv", {5: "a", 6: "b"})
    group = opened(**made, format="colbert")[0]
    assert group.positives == [{ANY: "a"}] and group.negatives == [{ANY: "b"}]
    assert (group.scores is None) == (not scored)


@pytest.mark.parametrize("line", [[], ["q"], [["q"], 1], ["q", [1, 2.0], 3], [1, [2]]])
def test_broken_colbert_lines(tmp_path, line):
    made = write_jsonl(tmp_path / "x.jsonl", [["q", 1], line])
    texts = {"q": "q", 1: "a", 2: "b", 3: "c"}
    made["queries"] = made["corpus"] = write_tsv(tmp_path / "c.tsv", texts)
    message = refusal(**made, format="colbert")
    assert "x.jsonl, row 1 (the first is 0)" in message
    assert " is [" in message and "[qid, pid, …] is needed" in message


@pytest.mark.parametrize(
    ("names", "label", "scores"),
    [
        (("anchor", "positive", "negative"), None, None),
        (("query", "passage1", "passage2"), 2.5, [0, -2.5]),
        (("query", "positive", "negative_1"), [2.5], [0, -2.5]),
        (("question", "answer", "negative"), [7.0, 4.5], [7, 4.5]),
    ],
)
def test_sentence_transformers_columns(tmp_path, names, label, scores):
    row = dict(zip(names, ("q", "p", "n"), strict=True))
    row |= {} if label is None else {"score": label}
    group = opened(**write_jsonl(tmp_path / "x.jsonl", [row]))[0]
    assert (group.query, group.positives) == ({ANY: "q"}, [{ANY: "p"}])
    assert group.negatives == [{ANY: "n"}]
    assert scores == (None if group.scores is None else group.scores.tolist())


def test_anchors_with_positives_alone_and_numbered_negatives(tmp_path):
    made = write_jsonl(tmp_path / "x.jsonl", [{"query": "q", "answer": "a"}])
    group = opened(**made)[0]
    assert group.positives == [{ANY: "a"}] and group.negatives == []
    names = {f"negative_{i}": f"n{i}" for i in (10, 2, 1)}
    row = {"anchor": "q", "positive": "p"} | names
    group = opened(**write_jsonl(tmp_path / "x.jsonl", [row]))[0]
    assert [text[ANY] for text in group.negatives] == ["n1", "n2", "n10"]
    made = write_jsonl(tmp_path / "x.jsonl", [row | {"label": [1.0, 2.0]}])
    assert "2 teacher scores for a positive and 3 negatives" in refusal(**made)


def test_labels(tmp_path):
    rows = [{"sentence1": "a", "sentence2": f"b{i}", "label": i} for i in range(4)]
    made = write_jsonl(tmp_path / "x.jsonl", [*rows, rows[0] | {"label": None}])
    source = opened(**made, format="labelled", min_label=2.0)
    assert [source[i].positives[0][ANY] for i in range(len(source))] == ["b2", "b3"]
    assert "2 of 5 rows have a label of 2.0 or more" in source.description
    assert "x.jsonl, row 3" in source[1].id
    assert "the highest is 3" in refusal(**made, format="labelled", min_label=9.0)
    made = write_jsonl(tmp_path / "x.jsonl", [rows[0] | {"label": "yes"}])
    assert "the labels are not numbers" in refusal(**made)


def test_labels_as_scores(tmp_path):
    labels = [0.2, "-1", None, 5, True]
    rows = [
        {"sentence1": "a", "sentence2": f"b{i}", "label": label}
        for i, label in enumerate(labels)
    ]
    made = write_jsonl(tmp_path / "x.jsonl", rows)
    source = opened(**made, format="labelled", grades=True)
    found = [(one.positives[0][ANY], one.scores.tolist()) for one in source]
    expected = zip("0134", np.float32([0.2, -1, 5, 1]), strict=True)
    assert found == [(f"b{i}", [score]) for i, score in expected]
    assert "4 of 5 rows have a label)" in source.description
    message = refusal(**made, format="labelled", grades=True, min_label=2.0)
    assert "min_label = 2.0 would have no effect: grades is on" in message
    for label, said in ((1e300, "a finite number"), ("high", "a number is needed")):
        made = write_jsonl(tmp_path / "x.jsonl", [*rows, rows[0] | {"label": label}])
        assert said in refusal(**made, format="labelled", grades=True)
    made = write_jsonl(tmp_path / "x.jsonl", [rows[2]])
    assert "no row has a label." in refusal(**made, format="labelled", grades=True)


def test_beir_grades_as_scores(tmp_path):
    made = beir(tmp_path / "x.jsonl", write_jsonl)
    lines = [f"q0\td{i}\t{grade}" for i, grade in (("00", 0), ("01", 2), ("02", 1))]
    lines += [f"q1\td{i}\t{grade}" for i, grade in (("10", 2), ("11", -1), ("12", 2))]
    path = tmp_path / "beir" / "qrels" / "train.tsv"
    path.write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    source = opened(**made, format="beir", grades=True)
    for group, positives, negatives, scores in zip(
        source, ("1", "02"), ("02", "1"), ([2, 0, 1], [2, 2, -1]), strict=True
    ):
        assert "".join(text[ANY][-1] for text in group.positives) == positives
        assert "".join(text[ANY][-1] for text in group.negatives) == negatives
        np.testing.assert_array_equal(group.scores, np.float32(scores))
    plain = opened(**made, format="beir")[0]
    assert [text[ANY][-1] for text in plain.positives] == ["1", "2"]
    assert plain.scores is None


def test_passages_that_are_no_objects(tmp_path):
    row = {"query": "q", "positive_passages": ["d1"]}
    message = refusal(**write_jsonl(tmp_path / "x.jsonl", [row]))
    assert "positive_passages holds 'd1'" in message and "document_ids" in message
    row = {"query": "q", "positive_passages": [{"title": "t", "text": ""}]}
    message = refusal(**write_jsonl(tmp_path / "x.jsonl", [row]))
    assert "'positive_passages.text' is ''" in message


def test_beir_splits(tmp_path):
    made = beir(tmp_path / "x.jsonl", write_jsonl)
    message = refusal(**made, format="beir", split="test")
    assert "qrels/test.tsv is missing" in message and "may be train." in message
    assert "corpus.jsonl is missing" in refusal(files=str(tmp_path), format="beir")


# Ensembles of teachers.

TEACHERS = {"a_pos": [4.0], "a_neg": [2.0, 0.0], "b_pos": [10.0], "b_neg": [10.0, 40.0]}
NAMED = {
    "format": "milco",
    "pos_scores": ["a_pos", "b_pos"],
    "neg_scores": ["a_neg", "b_neg"],
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [7, 6, 20]),
        ({"score_weights": [3, 1]}, [5.5, 4, 10]),
        ({"score_normalization": "minmax"}, [0.5, 0.25, 0.5]),
        ({"score_normalization": "minmax", "score_weights": [1, 0]}, [1, 0.5, 0]),
        (
            {"score_normalization": "zscore", "score_weights": [0, 2]},
            [-0.70710677, -0.70710677, 1.4142135],
        ),
    ],
)
def test_teachers_are_combined(tmp_path, fields, expected):
    row = {"query": "q", "pos": ["p"], "neg": ["n", "m"]} | TEACHERS
    made = write_jsonl(tmp_path / "x.jsonl", [row])
    group = opened(**made, **NAMED, **fields)[0]
    np.testing.assert_allclose(group.scores, np.float32(expected), rtol=1e-6)
    assert group.scores.dtype == np.float32


def test_a_teacher_that_is_missing(tmp_path):
    row = {"query": "q", "pos": ["p"], "neg": ["n", "m"]} | TEACHERS
    rows = [row, row | {"b_pos": None, "b_neg": None}]
    made = write_jsonl(tmp_path / "x.jsonl", rows)
    message = refusal(**made, **NAMED)
    assert "row 1" in message and "1 of 2 teachers have no scores" in message
    made = write_jsonl(tmp_path / "x.jsonl", [row | {"b_neg": [1.0]}])
    assert "neg_scores.1 has 1 teacher scores for 2" in refusal(**made, **NAMED)
    del row["b_neg"]
    made = write_jsonl(tmp_path / "x.jsonl", [row])
    assert "neg_scores of the format milco names b_neg" in refusal(**made, **NAMED)
    # Evaluation reads no scores.
    config = config_of(**made)
    assert sources.open_source(config, "group", where="config.dev")[0].scores is None


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_equal_scores_stay_finite(name):
    scores = Scored(name).combine(np.full((2, 3), 5.0))
    np.testing.assert_array_equal(scores, [5.0 if name == "none" else 0.0] * 3)
    one = Scored(name).combine([[1.0]])
    assert np.isfinite(one).all()
