"""What a run says in a terminal of 80 columns, and in a file."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from rich.console import Console

from lsrjax.distributed import activity
from lsrjax.distributed.activity import Progress
from lsrjax.training import terminal
from lsrjax.training.terminal import PATIENCE, SILENCE, Terminal

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
NUMBERS = {"loss": 2.5, "kl": 1.25, "grad_norm": 0.5, "active_query_pivot": 123.0}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def piped():
    """A terminal over a file of the usual 80 columns, its clock and progress."""
    clock, progress = Clock(), Progress()
    console = Console(file=io.StringIO(), width=80)
    return Terminal(console, progress, clock), clock, progress


def lines(shown):
    return shown.console.file.getvalue().splitlines()


def test_a_file_of_many_entries_has_no_wrapped_line(piped):
    shown, *_ = piped
    numbers = {f"a_number_with_a_long_name_{i}": 1 / 3 for i in range(12)}
    shown.train("distill", 0, 10_000)
    for step in range(1, 10_001):
        shown.entry(step, NUMBERS | numbers, 60.0 * (10_000 - step))
    shown.stop()
    found = lines(shown)
    assert len(found) == 10_000 and min(map(len, found)) > 400
    entry = re.compile(rf"{STAMP} stage=distill step=\d+/10000( [^ =]+=[^ =]+)+")
    assert all(entry.fullmatch(line) for line in found)
    assert found[0].endswith(" left=166:39:00") and " loss=2.5 " in found[0]


def test_a_long_note_is_one_line_of_a_file(piped):
    shown, *_ = piped
    shown.note("word " * 60 + "[bold]:smile:")
    shown.note("first\nsecond")
    found = lines(shown)
    assert len(found) == 3 and found[0].endswith("word [bold]:smile:")
    assert all(re.match(f"{STAMP} ", line) for line in found)


@pytest.mark.parametrize(
    "phase",
    [
        activity.PREPARING,
        activity.COMPILING,
        activity.EVALUATING,
        activity.RESULTS,
        activity.STEPPING,
        activity.DATA,
    ],
)
def test_a_file_gets_a_line_a_minute_in_every_phase(piped, phase):
    shown, clock, progress = piped
    progress.stage, progress.step = "distill", 7
    shown.train("distill", 0, 100)
    shown.stop()  # the test beats itself
    said = []
    with progress.at(phase):
        for second in range(600):
            clock.now, before = float(second), len(lines(shown))
            shown.beat()
            said += [second] * (len(lines(shown)) - before)
    assert max(b - a for a, b in zip([0, *said], said, strict=False)) <= 51 < 60
    long = phase not in (activity.STEPPING, activity.DATA)
    assert said[0] == (PATIENCE if long else SILENCE)
    name = phase.replace(" ", "_")
    assert re.fullmatch(
        rf"{STAMP} stage=distill step=7/100 phase={name} seconds={said[1]}",
        lines(shown)[1],
    )


def test_steps_that_are_logged_need_no_other_line(piped):
    shown, clock, progress = piped
    shown.train("distill", 0, 100)
    shown.stop()
    with progress.at(activity.STEPPING):
        for step in range(1, 21):
            clock.now += 30
            shown.entry(step, NUMBERS, 30.0)
            shown.beat()
    assert len(lines(shown)) == 20


def test_the_thread_beats_until_the_run_ends(piped, monkeypatch):
    monkeypatch.setattr(terminal, "_TICK", 0.01)
    shown, clock, progress = piped
    with progress.at(activity.COMPILING):
        shown.begin("distill", 2, 3)
        clock.now += SILENCE
        deadline = time.monotonic() + 10
        while len(lines(shown)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    shown.stop()
    assert "Preparing stage distill (2 of 3) on cpu" in lines(shown)[0]
    assert "phase=compiling" in lines(shown)[1]
    assert shown._thread is None


def test_a_quiet_console_has_no_thread():
    shown = Terminal(Console(quiet=True), Progress())
    shown.begin("distill", 1, 1)
    assert shown._thread is None


def bar_of(width, encoding="utf-8", phase=activity.STEPPING, device="cpu", **more):
    clock, progress = Clock(), Progress()
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    shown = Terminal(
        Console(file=file, width=width, force_terminal=True), progress, clock
    )
    shown._name, shown._number, shown._count = more.get("name", "distill"), 2, 3
    shown._device = device
    shown._total = 400
    shown.entry(100, NUMBERS, 3750.0)
    with progress.at(phase):
        shown.bar()
        clock.now += 65
        return shown.bar().plain


def test_a_bar_has_the_stage_its_steps_the_time_left_and_the_device():
    wanted = (
        "[2/3] distill ━━━┄┄┄┄┄┄┄┄┄ 100/400 1:01:25 left · cpu · loss 2.5 · kl 1.25"
    )
    assert bar_of(80) == f"{wanted} · |…"
    assert bar_of(200).endswith(
        "· loss 2.5 · kl 1.25 · |g| 0.5 · active_query_pivot 123"
    )
    assert "###---------" in bar_of(80, "ascii")
    assert "8 x H100 80GB" in bar_of(80, device="8 x H100 80GB")


@pytest.mark.parametrize(
    "phase", [one for one in terminal._LONG if one != activity.STARTING]
)
def test_a_bar_says_what_the_run_is_at_and_for_how_long(phase):
    assert f"· cpu · {phase} 1:05 ·" in bar_of(100, phase=phase)


def test_a_bar_says_that_a_run_starts_before_its_first_stage():
    progress = Progress()
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    shown = Terminal(console, progress, Clock())
    assert shown.bar().plain == "starting 0:00"
    with progress.at(activity.PREPARING):
        assert shown.bar().plain == "preparing 0:00"


@pytest.mark.parametrize("name", ["a", "a_stage_with_a_name_that_takes_most_of_a_line"])
@pytest.mark.parametrize("phase", [activity.STEPPING, activity.RESULTS])
def test_a_bar_is_one_line(name, phase):
    for width in (20, 79, 80, 81):
        line = bar_of(width, phase=phase, name=name)
        assert len(line) <= width - 1 and "\n" not in line


def test_a_terminal_of_80_columns_shows_one_line_that_is_drawn_anew():
    ours, theirs = pty.openpty()
    read, progress = [], Progress()
    reader = threading.Thread(target=read_all, args=(ours, read))
    reader.start()
    with os.fdopen(theirs, "w") as file:
        shown = Terminal(Console(file=file, width=80, force_terminal=True), progress)
        shown.begin("distill", 2, 3)
        with progress.at(activity.COMPILING):
            shown.train("distill", 0, 400)
            time.sleep(0.6)
        shown.entry(100, NUMBERS, 30.0)
        shown.entry(100, {"dev_nDCG@10": 0.5, "dev_R@100/da": 0.25}, None, kept=True)
        time.sleep(0.6)
        shown.end()
        shown.stop()
    reader.join()
    os.close(ours)
    text = b"".join(read).decode()
    drawn = re.split(r"\r\n|\r", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    assert max(map(len, drawn)) < 80
    assert any("compiling 0:00" in line for line in drawn)
    bar = re.compile(r"100/400 0:(30|29) left · cpu · loss 2.5")
    assert any(bar.search(line) for line in drawn)
    # The bar takes one line: the cursor goes up once, to erase it at the end.
    assert text.count("\x1b[1A") == 1
    assert any("dev_nDCG@10 0.5" in line for line in drawn)


_CONFIG = """
from lsrjax.config import get_default

def get_config():
    c = get_default()
    c.data.source = c.dev.source = "debian"
    c.model.head, c.model.family, c.tokenizer = "splade", "bert", "embedded:english"
    c.model.hidden_size, c.model.num_layers, c.model.intermediate_size = 12, 1, 17
    c.model.num_heads, c.batch_size, c.steps, c.dev.queries = 2, 8, 12, 20
    c.data.query_length, c.data.document_length, c.data.length_parts = 8, 12, 1
    c.loss, c.log.every = {"infonce": {}}, 4
    return c
"""


@pytest.mark.slow
def test_the_command_in_a_terminal_of_80_columns(tmp_path):
    (tmp_path / "own.py").write_text(_CONFIG)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.getcwd()}
    environ.pop("COLUMNS", None)
    command = [sys.executable, "-m", "lsrjax", "train", "--config", "own.py"]
    process = subprocess.Popen(
        [*command, "--workdir", "run"],
        **{"cwd": tmp_path, "env": environ, "start_new_session": True},
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs},
    )
    os.close(theirs)
    read = []
    read_all(ours, read)
    os.close(ours)
    text = b"".join(read).decode()
    assert process.wait() == 0, text
    before, after = text.split("What to do next:")
    drawn = re.split(r"\r\n|\r", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", before))
    assert max(map(len, drawn)) <= 80
    bars = [line for line in drawn if line.startswith("[1/1] train")]
    for said in ("cpu · preparing", "cpu · compiling", "12/12 0:00 left · cpu", "loss"):
        assert any(said in line for line in bars), said
    assert "nDCG@10 on the dev data" in before and "query (en): " in before
    assert "lsrjax search --index run-index --model run" in after
    assert (tmp_path / "run" / "libraries.log").is_file()


def read_all(descriptor, read):
    """Reads a terminal until nothing has it open, which is an error on Linux."""
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, 4096):
            read.append(data)
