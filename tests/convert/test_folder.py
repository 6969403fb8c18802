"""Folders appear whole or not at all, whatever ends the program that writes them."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lsrjax.convert.write.folder import whole_folder, write_weights
from lsrjax.errors import InputError

# Writes half of a folder, says so, and waits to be killed.
HALF = """
import pathlib, sys, time
from lsrjax.convert.write.folder import whole_folder
with whole_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_text("half")
    print("half", flush=True)
    time.sleep(600)
"""


def half(out):
    """A process in the middle of writing a folder."""
    program = [sys.executable, "-c", HALF, str(out)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    return process


def test_a_whole_folder_appears_at_the_end(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/a").read_text() == "a"
    with pytest.raises(InputError, match=r"--out .*out exists"):
        whole_folder(tmp_path / "out").__enter__()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_and_folders_follow_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        with whole_folder(tmp_path / "out") as folder:
            (folder / "below").mkdir(mode=0o700)
            state = {"x": np.zeros(3, np.float32)}
            write_weights(folder / "below", state)
            (folder / "open").write_text("")
            (folder / "open").chmod(0o666)
    finally:
        os.umask(before)
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))
    }
    folders = dict.fromkeys(("out", "below"), 0o777 & ~umask)
    files = dict.fromkeys(("open", "model.safetensors"), 0o666 & ~umask)
    assert modes == folders | files


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError(), SystemExit()])
def test_an_error_leaves_nothing(error, tmp_path):
    with (
        pytest.raises((InputError, ValueError, SystemExit)),
        whole_folder(tmp_path / "out") as folder,
    ):
        (folder / "a").write_text("a")
        raise error
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_and_no_sooner(tmp_path):
    out, other = tmp_path / "out", tmp_path / "out.more"
    alive, killed, beside = half(out), half(out), half(other)
    try:
        for process in (killed, beside):
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not out.exists() and not other.exists()
        assert len(list(tmp_path.iterdir())) == 3  # all hidden, none named out
        (tmp_path / ".out.note.tmp").write_text("not ours")
        with whole_folder(out):
            pass
        names = {path.name for path in tmp_path.iterdir()}
        left = {name for name in names if name.startswith(".out.")} - {".out.note.tmp"}
        assert {"out", ".out.note.tmp"} < names
        # The one that is being written, and the one of another folder.
        assert len(left) == 2 and sum(".more." in name for name in left) == 1
    finally:
        alive.kill()
        alive.wait()


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_folder(tmp_path):
    model, out = pathlib.Path(__file__).parents[1] / "golden/bert", tmp_path / "out"
    command = [sys.executable, "-m", "lsrjax.convert", "--to", "lsrjax"]
    command += ["--from", str(model), "--out", str(out)]
    process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    while not list(tmp_path.glob(".out.*.tmp/*")):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
