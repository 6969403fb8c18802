import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data import sources
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY, Group, InMemory, Pair
from lsrjax.data.reading import formats
from lsrjax.data.reading.files import read_datasets, subsets
from lsrjax.data.reading.rows import Rows
from lsrjax.data.sources import WithNegatives
from lsrjax.errors import InputError

PAIRS = [
    {"english": "a house", "non_english": "ein Haus", "language": "de", "id": 1},
    {"english": "a dog", "non_english": "un chien", "language": "fr", "id": 2},
]
GROUPS = [
    {
        "query": f"query {i}",
        "pos": [f"good {i}", f"fine {i}"],
        "neg": [f"bad {i}.{j}" for j in range(3)],
        "pos_scores": [9.0, 8.5],
        "neg_scores": [1.0, 2.0, 3.0],
    }
    for i in range(3)
]


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_jsonl(path, rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_dataset(path, rows):
    pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(path)


WRITERS = {"x.parquet": write_parquet, "x.jsonl": write_jsonl, "x": write_dataset}


def opened(path, kind, **columns):
    config = get_default().data
    if path.is_dir():
        config.source = entry("datasets", dataset=str(path))
    else:
        config.source.files = str(path)
    if columns:
        config.format = entry("alignment" if kind == "pair" else "milco", **columns)
    return sources.open_source(config, kind)


def group_of(tmp_path, **fields):
    """The only group of a file whose row has some fields changed."""
    write_jsonl(tmp_path / "x.jsonl", [GROUPS[0] | fields])
    return opened(tmp_path / "x.jsonl", "group")[0]


@pytest.mark.parametrize("name", WRITERS)
def test_pairs(tmp_path, name):
    WRITERS[name](tmp_path / name, PAIRS)
    source = opened(tmp_path / name, "pair")
    found = [
        (pair.english, pair.translation, pair.language)
        for pair in (source[i] for i in range(len(source)))
    ]
    assert found == [("a house", "ein Haus", "de"), ("a dog", "un chien", "fr")]
    assert str(tmp_path / name) in source[1].id and "row 1" in source[1].id
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize("name", WRITERS)
def test_groups(tmp_path, name):
    WRITERS[name](tmp_path / name, GROUPS)
    source = opened(tmp_path / name, "group")
    assert len(source) == 3
    group = source[2]
    assert isinstance(group, Group)
    assert group.query == {ANY: "query 2"}
    assert group.positives == [{ANY: "good 2"}, {ANY: "fine 2"}]
    assert group.negatives == [{ANY: f"bad 2.{j}"} for j in range(3)]
    np.testing.assert_array_equal(group.scores, np.float32([9, 8.5, 1, 2, 3]))


def test_columns_are_renamed(tmp_path):
    write_parquet(tmp_path / "x.parquet", [{"en": "a", "query": "b"}])
    source = opened(tmp_path / "x.parquet", "pair", english="en", translation="query")
    assert (source[0].english, source[0].translation) == ("a", "b")
    assert source[0].language == ANY


def test_one_text_stands_for_a_list_of_one(tmp_path):
    group = group_of(tmp_path, pos="good", neg="bad", pos_scores=2.0, neg_scores=1)
    assert group.positives == [{ANY: "good"}] and group.negatives == [{ANY: "bad"}]
    np.testing.assert_array_equal(group.scores, [2, 1])


def test_groups_without_negatives_and_scores(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"query": "q", "pos": ["p"]}])
    group = opened(tmp_path / "x.jsonl", "group")[0]
    assert group.negatives == [] and group.scores is None


def test_jsonl_rows_may_lack_fields_of_others(tmp_path):
    bare = {"query": "q", "pos": ["p"]}
    write_jsonl(tmp_path / "x.jsonl", [bare, GROUPS[1]])
    source = opened(tmp_path / "x.jsonl", "group")
    assert source[0].scores is None and len(source[1].negatives) == 3


def test_files_follow_each_other_by_name(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", GROUPS[2:])
    write_parquet(tmp_path / "a.parquet", GROUPS[:2])
    (tmp_path / "c.jsonl").write_text("")
    source = opened(tmp_path / "*", "group")
    assert [source[i].query[ANY] for i in range(3)] == ["query 0", "query 1", "query 2"]
    assert "b.jsonl, row 0" in source[2].id


def test_folder_names_are_no_columns(tmp_path):
    folder = tmp_path / "language=xx"
    folder.mkdir()
    write_parquet(folder / "x.parquet", [{"english": "a", "non_english": "b"}])
    assert opened(folder / "x.parquet", "pair")[0].language == ANY


def test_rows_are_found_in_tables_of_many_chunks():
    rows = [{"english": f"e{i}", "non_english": f"t{i}"} for i in range(101)]
    parts = [pa.Table.from_pylist(rows[i : i + 3]) for i in range(0, 101, 3)]
    first, second = pa.concat_tables(parts[:20]), pa.concat_tables(parts[20:])
    source = Rows(
        [("one", first), ("two", second)], "pair", format=formats.chosen("auto")
    )
    assert [source[i].english for i in range(101)] == [f"e{i}" for i in range(101)]
    assert "one, row 59" in source[59].id and "two, row 1 " in source[61].id


def truncated_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, GROUPS)
    path.write_bytes(path.read_bytes()[:-100])
    return path, r"x\.parquet \([\d,]+ bytes\) is not a whole Parquet file"


def truncated_jsonl(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, GROUPS)
    path.write_bytes(path.read_bytes()[:-20])
    return path, r"x\.jsonl, line 3 is not JSON.*truncated: write it again"


def broken_utf8(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"query": "\xff\xfe", "pos": ["p"]}\n')
    return path, r"x\.jsonl, line 1 is not JSON in UTF-8"


def json_array(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('["query", "pos"]\n')
    return path, r"line 1 is list, not an object"


def missing_file(tmp_path):
    return tmp_path / "nothing*.parquet", "no file matches.*Give a path, a folder or"


def unknown_suffix(tmp_path):
    path = tmp_path / "x.xls"
    path.write_text("query,pos\n")
    return path, r"x\.xls: unknown file type '\.xls'; known are \.jsonl .*\.parquet"


def missing_columns(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, [{"question": "q", "pos": ["p"]}])
    return path, r"x\.parquet has no column query; its columns are question, pos\."


def other_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", GROUPS)
    rows = [{k: v for k, v in GROUPS[0].items() if k != "neg_scores"}]
    write_parquet(tmp_path / "b.parquet", rows)
    message = r"a\.parquet has a column neg_scores, .*b\.parquet has none\. Give all"
    return tmp_path / "*.parquet", message


def no_rows(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n")
    return path, r"x\.jsonl: no rows\. Write the data again"


@pytest.mark.parametrize(
    "case",
    [
        truncated_parquet,
        truncated_jsonl,
        broken_utf8,
        json_array,
        missing_file,
        unknown_suffix,
        missing_columns,
        other_columns,
        no_rows,
    ],
)
def test_bad_files_are_named(tmp_path, case):
    path, message = case(tmp_path)
    with pytest.raises(InputError, match=message):
        opened(path, "group")


NUMBER = "(positives first) is"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query": ""}, "field 'query' is ''; a non-empty text"),
        ({"query": None}, "field 'query' is None; a non-empty text"),
        ({"query": 5}, "field 'query' is 5; a non-empty text"),
        ({"pos": [["p"]]}, "field 'pos' is ['p']; a non-empty text"),
        ({"pos": {"text": "p"}}, "field 'pos' is {'text': 'p'}; a list of texts"),
        ({"pos": []}, "no positive document"),
        ({"pos": None}, "no positive document"),
        ({"pos": 3}, "field 'pos' is 3; a list of texts"),
        ({"pos": ["good", " "]}, "field 'pos' is ' '; a non-empty text"),
        ({"neg": ["a", None, "b"]}, "field 'neg' is None; a non-empty text"),
        ({"neg": [1, 2, 3]}, "field 'neg' is 1; a non-empty text"),
        ({"pos_scores": [1.0]}, "pos_scores has 1 teacher scores for 2 documents"),
        ({"pos_scores": None}, "pos_scores has 0 teacher scores for 2 documents"),
        ({"neg_scores": None}, "neg_scores has 0 teacher scores for 3 documents"),
        ({"pos_scores": [float("nan"), 1.0]}, f"score 0 {NUMBER} nan"),
        ({"neg_scores": [1.0, None, 2.0]}, f"score 3 {NUMBER} None"),
        ({"neg_scores": ["a", "b", "c"]}, f"score 2 {NUMBER} 'a'"),
        ({"neg_scores": [1.0, True, 2.0]}, f"score 3 {NUMBER} True"),
        ({"neg_scores": [1.0, 10**400, 2.0]}, f"score 3 {NUMBER} 1000"),
        ({"neg_scores": [1.0, 1e39, 2.0]}, f"score 3 {NUMBER} 1e+39"),
        ({"pos_scores": float("inf")}, "pos_scores has 1 teacher scores for 2"),
        ({"pos_scores": "high"}, "field 'pos_scores' is 'high'; a list of numbers"),
    ],
)
def test_bad_rows_are_named(tmp_path, fields, message):
    with pytest.raises(InputError, match=r"x\.jsonl, row 0") as error:
        group_of(tmp_path, **fields)
    assert message in str(error.value)


def test_broken_utf8_in_parquet(tmp_path):
    broken = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.int32([0, 2])), pa.py_buffer(b"\xff\xfe")
    )
    table = pa.table({"english": broken, "non_english": ["b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet", "pair")
    with pytest.raises(InputError, match=r"x\.parquet, row 0.*not UTF-8"):
        source[0]


def test_datasets_with_subsets_and_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = {"train": PAIRS, "dev": PAIRS[:1]}
    data = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(data).save_to_disk(tmp_path / "x")
    names = (str(tmp_path / "x"), str(tmp_path / "x"))
    tables = read_datasets(names, "dev")
    assert [table.num_rows for _, table in tables] == [1, 1]
    with pytest.raises(InputError, match="split 'test'.*could not be read.*'test'"):
        read_datasets(names, "test")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("me/data", [("me/data", "")]),
        ("file:///a/b:c", [("file:///a/b:c", "")]),
        (("a, b", "c"), [("a, b", ""), ("c", "")]),
        ({"a/b": "c", "d": ["", "e"]}, [("a/b", "c"), ("d", ""), ("d", "e")]),
    ],
)
def test_data_sets_and_their_subsets(names, found):
    assert subsets(names) == found


def test_a_data_set_of_another_place_is_refused_at_once():
    """And not asked of the hub, which takes half a minute."""
    with pytest.raises(InputError, match=r"'gs://a/b' is not on this machine"):
        read_datasets("gs://a/b", "train")


def test_an_unknown_dataset_is_named(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=re.escape(f"'{tmp_path / 'empty'}'")):
        read_datasets(str(tmp_path / "empty"), "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install\s'lsrjax\[hub\]'"):
        read_datasets("x", "train")


def test_files_need_no_datasets(tmp_path):
    write_parquet(tmp_path / "x.parquet", PAIRS)
    code = (
        "import sys; from lsrjax.data.reading import files;"
        f"files.read_files({str(tmp_path / 'x.parquet')!r});"
        "print({'datasets', 'torch', 'jax'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_with_negatives_skips_missing_ones():
    corpus = [{"en": f"d{i}"} for i in range(5)]
    groups = [
        Group(str(i), {"en": f"q{i}"}, [corpus[i], corpus[4]], [], None)
        for i in range(2)
    ]
    negatives = np.array([[3, 2, 1], [0, -1, -1]])
    scores = np.float32([[9, 3, 2, 1], [8, 5, np.nan, np.nan]])
    source = WithNegatives(InMemory(groups), corpus, negatives, scores)
    assert source[0].negatives == [corpus[3], corpus[2], corpus[1]]
    assert source[1].positives == [corpus[1]] and source[1].negatives == [corpus[0]]
    np.testing.assert_array_equal(source[1].scores, [8, 5])
    assert WithNegatives(InMemory(groups), corpus, negatives, None)[1].scores is None


def test_debian_pairs_and_groups():
    pairs = embedded.examples("pair", "dev", ("title",))
    assert all(isinstance(pairs[i], Pair) for i in (0, len(pairs) - 1))
    assert pairs[0].id.split("/")[1] == "title"
    groups = embedded.examples("group", "dev")
    assert (
        len(groups) == 600
        and "en" in groups[0].query
        and "en" in groups[0].positives[0]
    )
