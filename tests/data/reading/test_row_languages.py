"""Rows that name the language of their texts."""

import json

import pytest

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data import sources
from lsrjax.errors import InputError
from lsrjax.retrieval.evaluate import dev_task

ROWS = {
    "milco": {"query": "q", "pos": ["p"], "neg": ["n"]},
    "tevatron": {
        "query": "q",
        "positive_passages": [{"text": "p"}],
        "negative_passages": [{"text": "n"}],
    },
    "triplet": {"anchor": "q", "positive": "p", "negative": "n"},
    "labelled": {"sentence1": "q", "sentence2": "p", "label": 1},
}


def opened(folder, *rows, format="auto", **fields):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = get_default().data
    data.source, data.format = entry("files", files=str(path)), format
    for name, value in fields.items():
        data[name] = value
    return sources.open_source(data, "group")


@pytest.mark.parametrize("column", ["language", "lang"])
@pytest.mark.parametrize("name", ROWS)
def test_query_and_documents_are_in_the_language_of_the_row(tmp_path, name, column):
    row = ROWS[name]
    source = opened(tmp_path, row | {column: "da"}, row | {column: None}, row)
    assert source.format.name == name and source.names_languages
    assert source.languages == ("da",)
    for read in (source.__getitem__, source.peek):
        first, *others = [read(i) for i in range(3)]
        assert first.query == {"da": "q"} and first.positives == [{"da": "p"}]
        assert first.negatives == ([] if name == "labelled" else [{"da": "n"}])
        assert all(one.query == {"*": "q"} for one in others)


def test_a_column_of_another_name(tmp_path):
    row = ROWS["milco"] | {"sprog": " da ", "language": "x"}
    named = entry("milco", language="sprog")
    assert opened(tmp_path, row, format=named)[0].query == {"da": "q"}
    with pytest.raises(InputError, match=r"no column sprog, .* columns are query, pos"):
        opened(tmp_path, ROWS["milco"], format=named)


def test_a_language_that_is_no_text_is_a_bad_record(tmp_path):
    source = opened(tmp_path, ROWS["milco"] | {"language": 7})
    with pytest.raises(InputError, match="field 'language' is 7; a text is needed"):
        source[0]


def test_documents_by_id_keep_the_languages_of_the_corpus(tmp_path):
    docs = tmp_path / "docs.tsv"
    docs.write_text("d0\tein Text\n")
    row = {"query": "q", "positive_document_ids": ["d0"], "language": "da"}
    for corpus, language in (({"de": str(docs)}, "de"), (str(docs), "*")):
        source = opened(tmp_path, row, corpus=corpus)
        assert source[0].query == {"da": "q"}
        assert source[0].positives == [{language: "ein Text"}]
        _, query, _ = source.judged(0)
        assert query == {"da": "q"}


def test_dev_queries_are_told_apart_by_the_rows_language(tmp_path):
    rows = [ROWS["milco"] | {"language": name} for name in ("da", "sv", "da", "")]
    source = opened(tmp_path, *rows)
    task = dev_task(source, 9, lambda language: language != "sv")
    assert list(task.languages) == ["da", "*"]
    assert list(task.corpus) == ["p", "n"]
