"""The lines that a run prints, and its `metrics.jsonl`."""

import io
import json
import re

import pytest
from rich.console import Console

from lsrjax.training.trackers import METRICS_FILE, TEXTS_FILE, Tracker


@pytest.fixture
def tracker():
    made = Tracker(Console(file=io.StringIO(), width=200))
    yield made
    made.terminal.stop()


def printed(tracker):
    """The lines without their time stamps, which each has."""
    lines = tracker.terminal.console.file.getvalue().splitlines()
    found = [
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (.*)", line) for line in lines
    ]
    return [match[1] for match in found]


def steps(folder):
    lines = (folder / METRICS_FILE).read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_each_step_is_a_line_of_json_at_once(tracker, tmp_path):
    tracker.stage("train", tmp_path, 0, 20, {})
    tracker.log(1, {"loss": 1 / 3, "lr": 2e-5})
    tracker.log(2, {"dev_nDCG@10": 0.5})
    text = (tmp_path / METRICS_FILE).read_text()  # before the stage's end
    assert text == (
        '{"step": 1, "loss": 0.333333, "lr": 2e-05}\n{"step": 2, "dev_nDCG@10": 0.5}\n'
    )
    tracker.stage_end()
    tracker.stage_end()  # once more after an error, without harm


def test_damaged_lines_are_left_out_and_the_rest_is_read(tracker, tmp_path):
    lines = [b'{"step": 1}', b'{"st\xff', b"7", b"[1]", b'{"step": 3}', b'{"step": 5}']
    (tmp_path / METRICS_FILE).write_bytes(b"\n".join([*lines, b'{"step": 4']))
    tracker.stage("train", tmp_path, 4, 20, {})
    tracker.log(5, {"loss": 1.0})
    assert steps(tmp_path) == [1, 3, 5]
    assert any("3 damaged lines are left out" in line for line in printed(tracker))


def test_lines_that_a_full_disk_does_not_take_are_written_later(tracker, tmp_path):
    tracker.stage("train", tmp_path, 0, 20, {})
    tracker.log(1, {"loss": 1.0})
    usual = tracker._metrics._file
    with open("/dev/full", "ab", buffering=0) as full:
        tracker._metrics._file = full
        for step in (2, 3):
            tracker.log(step, {"loss": 1.0})
    assert steps(tmp_path) == [1]
    said = [line for line in printed(tracker) if "cannot be written" in line]
    assert len(said) == 1 and "No space left on device" in said[0]
    tracker._metrics._file = usual
    tracker.log(4, {"loss": 1.0})
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_lines_that_a_disk_never_takes_are_counted(tracker, tmp_path):
    tracker.stage("train", tmp_path, 0, 20, {})
    tracker._metrics._file.close()
    tracker._metrics._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
    tracker.stage_end()
    assert "lacks its last 2 lines" in printed(tracker)[-1]


@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo', '{"step": 5}', "\0\0"])
def test_a_run_goes_on_behind_the_restored_step(tracker, tmp_path, tail):
    kept = (
        '{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 0.25}\n{"step": 4, "dev": 1}\n'
    )
    (tmp_path / METRICS_FILE).write_text(kept + '{"step": 5, "loss": 9}\n' + tail)
    tracker.stage("train", tmp_path, 4, 20, {})
    assert (tmp_path / METRICS_FILE).read_text() == kept
    tracker.log(5, {"loss": 0.2})
    tracker.stage_end()
    assert steps(tmp_path) == [2, 4, 4, 5]
    assert "  goes on at step 4 of 20" in printed(tracker)


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', '{"step": 3}'])
def test_a_half_written_last_line_is_dropped(tracker, tmp_path, tail):
    (tmp_path / METRICS_FILE).write_text('{"step": 2}\n' + tail)
    tracker.stage("train", tmp_path, 3, 20, {})
    tracker.log(4, {})
    tracker.stage_end()
    assert steps(tmp_path) == [2, 4]


def test_a_fresh_start_drops_what_a_run_without_checkpoint_left(tracker, tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\n')
    tracker.stage("train", tmp_path, 0, 20, {})
    tracker.stage_end()
    assert steps(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1


def test_without_a_terminal_each_entry_is_a_line_of_pairs(tracker, tmp_path):
    tracker.stage(
        "align", tmp_path, 0, 400, {"examples": 12345, "views": {"pivot": 8192}}
    )
    for step in range(10, 401, 10):
        tracker.log(step, {"loss": 2.5, "examples_per_s": 1234.5, "lr": 5e-4})
    tracker.log(400, {"dev_nDCG@10": 0.123})
    tracker.stage_end()
    first, *lines, dev = printed(tracker)
    assert first == "Stage align: examples 12,345, views pivot 8,192"
    assert len(lines) == 40
    assert lines[3] == (
        "stage=align step=40/400 loss=2.5 lr=0.0005 examples_per_s=1234.5 left=0:00"
    )
    assert dev == "stage=align step=400/400 dev_nDCG@10=0.123"


def test_of_numbers_by_language_a_line_has_the_lowest_and_the_highest(
    tracker, tmp_path
):
    terms = {"ja": 31.0, "da": 8.25, "en": 9.0, "other": 12.0}
    by_language = {f"active_query_terms/{name}": n for name, n in terms.items()}
    numbers = {"loss": 1.0, "active_query_terms": 10.0, "tokens_per_s": 5.0}
    one = {"active_document_terms/da": 3.0}
    tracker.stage("train", tmp_path, 0, 1, {})
    tracker.log(1, numbers | by_language | one)
    tracker.stage_end()
    assert printed(tracker)[1].split(" ")[2:-1] == [
        "loss=1",
        "active_query_terms=10",
        "active_query_terms/lowest=8.25(da)",
        "active_query_terms/highest=31(ja)",
        "active_document_terms/lowest=3(da)",
        "active_document_terms/highest=3(da)",
        "tokens_per_s=5",
    ]
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert json.loads(line) == {"step": 1} | numbers | by_language | one


def test_markup_in_a_note_is_printed_as_it_is(tracker):
    tracker.note("no file [bold]x[/bold].jsonl")
    assert printed(tracker) == ["no file [bold]x[/bold].jsonl"]


def test_on_a_terminal_one_line_is_kept_up_to_date(tmp_path):
    tracker = Tracker(Console(file=io.StringIO(), width=200, force_terminal=True))
    tracker.begin("train", 1, 1)
    tracker.stage("train", tmp_path, 0, 10_000, {})
    tracker.log(3, {"loss": 0.5})
    tracker.log(4, {"loss": 0.25})
    tracker.log(4, {"dev_R@100": 0.75})
    tracker.close(failed=False)
    text = tracker.terminal.console.file.getvalue()
    assert re.search(r"\[1/1\] train .* 4/10,000 \d+:\d\d left · cpu · loss 0.25", text)
    assert "\x1b[2K" in text  # the live line is erased and drawn anew
    assert "train 4/10,000 · dev_R@100 0.75\n" in text.replace("\r", "")
    assert steps(tmp_path) == [3, 4, 4]
    tracker.note("after")
    assert tracker.terminal.console.file.getvalue().endswith("after\n")


ROWS = [("query", "da", "tekst", "pivot", "text 1.00"), ("document", *"abcd")]


class Other:
    """Another tracker."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *given: self.calls.append((name, *given))


def test_sample_texts_are_kept_and_passed_on_with_those_of_steps_before(
    tracker, tmp_path
):
    tracker.others = [Other()]
    for first, step in ((0, 10), (10, 20), (10, 30)):  # the last of a resumed run
        tracker.stage("train", tmp_path, first, 40, {})
        tracker.texts(step, ROWS)
        tracker.stage_end()
    lines = (tmp_path / TEXTS_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 10, 30, 30]
    assert json.loads(lines[0]) == {
        **{"step": 10, "role": "query", "language": "da", "text": "tekst"},
        **{"view": "pivot", "terms": "text 1.00"},
    }
    passed = [call for call in tracker.others[0].calls if call[0] == "texts"]
    assert [len(table) for *_, table in passed] == [2, 4, 4]
    assert passed[-1][1:3] == ("train", 30)
    assert passed[-1][3][2] == [30, *ROWS[0]]


def test_other_trackers_receive_the_same_numbers_and_the_end(tracker, tmp_path):
    other = Other()
    tracker.others = [other]
    tracker.stage("train", tmp_path, 4, 40, {})
    tracker.log(5, {"loss": 1 / 3})
    tracker.log(5, {"dev_R": 0.5, "dev_R/da": 0.5})
    tracker.close(failed=True)
    assert other.calls[:-1] == [
        ("stage", "train", 4),
        ("log", "train", 5, {"loss": 0.333333}, ""),
        ("log", "train", 5, {"dev_R": 0.5, "dev_R/da": 0.5}, "dev"),
        ("end", True),
    ]
    assert other.calls[-1][:2] == ("close", True)
