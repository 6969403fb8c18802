"""Files of rows that are written block by block."""

import json

import pytest

from lsrjax.data.written_rows import RowsFile, facts_file
from lsrjax.errors import InputError


@pytest.fixture
def begun(tmp_path):
    """A file with one block of rows."""
    file = RowsFile(tmp_path / "rows.jsonl", {"depth": 3})
    file.add([{"a": 1}, {"a": 2}], {"rows": 2})
    file.close()
    return file


def test_rows_go_on_behind_the_last_block(begun):
    with open(begun.folder / "lines.jsonl", "a") as lines:
        lines.write('{"a": 3}\n{"a"')
    file = RowsFile(begun.path, {"depth": 3})
    assert (file.blocks, file.counts) == (1, {"rows": 2})
    file.add([{"a": 4}], {"rows": 1})
    file.finish()
    assert begun.path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 4}\n'
    assert json.loads(facts_file(begun.path).read_text()) == {
        "made_of": {"depth": 3},
        "counts": {"rows": 3},
    }
    assert not begun.folder.exists()
    with pytest.raises(InputError, match="exists"):
        RowsFile(begun.path, {"depth": 3})


def test_rows_of_something_else_are_refused(begun):
    with pytest.raises(InputError, match="  depth: there 3, asked 4"):
        RowsFile(begun.path, {"depth": 4})


@pytest.mark.parametrize(
    "damage",
    ["", "[]", "{}", '{"made_of": {"depth": 3}}', '{"made_of": null, "blocks": 1}'],
)
def test_a_damaged_state_is_named(begun, damage):
    (begun.folder / "state.json").write_text(damage)
    with pytest.raises(InputError, match=r"state\.json is damaged .* Remove .*partial"):
        RowsFile(begun.path, {"depth": 3})


def test_lines_that_were_cut_are_named(begun):
    (begun.folder / "lines.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"lines\.jsonl is shorter than it was"):
        RowsFile(begun.path, {"depth": 3})
