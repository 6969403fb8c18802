"""Files of rows: resumed after the last block, and never from a damaged state."""

import json

import pytest

from lsrjax.data.written_rows import RowsFile
from lsrjax.errors import InputError

MADE_OF = {"with": "bm25", "blocks": (0, 2)}


@pytest.fixture
def begun(tmp_path):
    """A file with one block, whose program was stopped in the second."""
    path = tmp_path / "out.jsonl"
    file = RowsFile(path, MADE_OF)
    file.add([{"query": "é"}], {"rows": 1})
    file._file.write(b'{"que')
    file.close()
    return path


def test_a_file_is_resumed_after_its_last_block(begun):
    file = RowsFile(begun, MADE_OF)
    assert (file.blocks, file.counts) == (1, {"rows": 1})
    file.add([{"query": "b"}], {"rows": 1, "short": 2})
    file.finish()
    assert begun.read_text() == '{"query": "é"}\n{"query": "b"}\n'
    facts = json.loads(begun.with_name("_out.jsonl.json").read_text())
    assert facts["counts"] == {"rows": 2, "short": 2}


def test_other_rows_are_not_mixed_in(begun):
    with pytest.raises(InputError, match="was begun with something else:\n  with: "):
        RowsFile(begun, MADE_OF | {"with": "model"})


@pytest.mark.parametrize(
    "change", [{"made_of": None}, {"blocks": "x"}, {"counts": []}, {"bytes": None}]
)
def test_a_damaged_state_is_named(begun, change):
    state = begun.with_name("out.jsonl.partial") / "state.json"
    values = json.loads(state.read_text())
    for damaged in (values | change, {k: values[k] for k in values.keys() - change}):
        state.write_text(json.dumps(damaged))
        with pytest.raises(
            InputError, match=r"state.json is damaged .* are made again"
        ):
            RowsFile(begun, MADE_OF)
