"""Texts by number: what names no texts is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.errors import InputError


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", "names no file of texts"),
        ("[]", "names no file of texts"),
        ("{'en': []}", "names no file of texts"),
        ("{'en': 3}", "give a path"),
        ("{1: 'a.jsonl'}", "give a path"),
        ("{'dataset': 3}", "give a path"),
        ("{[]: 'a.jsonl'}", "no Python literal"),
        ("['a", "no Python literal"),
        ("[" * 300, "no Python literal"),
    ],
)
def test_places_that_are_none_are_refused(named, message):
    with pytest.raises(InputError, match=f"--texts.*{message}"):
        NumberedTexts(named, "--texts")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_row_of_a_query_and_a_text_is_read_as_what_is_asked(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    row = {"id": "1", "text": "a castle", "query": "a bakery"}
    if ending == "parquet":
        pq.write_table(pa.table({key: [value] for key, value in row.items()}), path)
    elif ending == "jsonl":
        path.write_text(json.dumps(row))
    else:
        comma = {"csv": ",", "tsv": "\t"}[ending]
        path.write_text(f"{comma.join(row)}\n{comma.join(row.values())}\n")
    for role, text in (("query", "a bakery"), ("document", "a castle")):
        texts = NumberedTexts(str(path), "--texts", role)
        assert texts.read(0, len(texts)) == (["1"], [text])


def test_an_empty_cell_of_csv_is_an_empty_text(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,\n2,b\n")
    texts = NumberedTexts(str(tmp_path / "a.csv"), "--texts")
    assert texts.read(0, 2) == (["1", "2"], ["", "b"])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv", "a.txt"])
def test_a_file_without_a_text_is_refused(tmp_path, name):
    (tmp_path / name).write_text("id,text\n" if name == "a.csv" else "")
    with pytest.raises(InputError, match=f"--texts .*{name}.* no text"):
        NumberedTexts(str(tmp_path / name), "--texts")
