"""What a command says of errors of the file system."""

import errno
import os

import pytest

from lsrjax.cli import exits


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "notes").write_text("no folder")
    with pytest.raises(SystemExit) as ended, exits.on_input_error():
        (tmp_path / "notes" / "out").mkdir()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert f"Error: {tmp_path}/notes/out: Not a directory. Name a file" in said


def test_a_full_disk_is_said(capsys):
    with pytest.raises(SystemExit) as ended, exits.on_input_error():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert ended.value.code == 2 and "No space left" in capsys.readouterr().err


def test_other_errors_of_the_system_are_left_alone():
    with pytest.raises(BrokenPipeError), exits.on_input_error():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
