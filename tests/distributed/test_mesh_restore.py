"""A run goes on elsewhere as if it had stayed; and it compiles few training steps."""

import json
import pathlib
import shutil

import pytest
from programs import launch

from lsrjax.data.batching.orders import Order

TESTS = pathlib.Path(__file__).parents[1]
PROGRAM = TESTS / "programs" / "recorded_main.py"
CONFIG = TESTS / "configs" / "golden_infonce.py"
STOPPED, STEPS = 4, 12


def mesh(data, model, fsdp=False):
    sizes = [f"--config.mesh.data={data}", f"--config.mesh.model={model}"]
    return [*sizes, f"--config.mesh.fsdp={fsdp}"]


def run(folder, flags, *, processes=1, devices=1, snapshot=0):
    """Runs `lsrjax.main` in `folder / run`; returns what each process recorded."""
    record = folder / "record"
    command = [str(PROGRAM), str(record), str(snapshot), "--config", str(CONFIG)]
    started = launch.start(
        [*command, "--workdir", str(folder / "run"), *flags],
        folder,
        processes=processes,
        devices=devices,
    )
    launch.finish(started)
    return [read(folder / f"record.{number}") for number in range(processes)]


def read(path):
    """Numbers by step; texts and shapes by batch; and what was compiled."""
    found = {"steps": {}, "texts": {}, "shapes": {}}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        if "loss" in values.get("numbers", ()):
            found["steps"][values["step"]] = values["numbers"]
        elif "batch" in values:
            found["texts"][values["batch"]] = values["texts"]
            found["shapes"][values["batch"]] = tuple(values["shape"])
        elif "compiled" in values:
            found |= {"compiled": values["compiled"], "table": values["shapes"]}
    return found


@pytest.fixture(scope="module")
def stayed(tmp_path_factory):
    """A run on 4 x 2 devices to its end, and what a kill after step 4 would leave."""
    folder = tmp_path_factory.mktemp("stayed")
    (record,) = run(folder, mesh(4, 2), devices=8, snapshot=STOPPED)
    stopped = folder / "run.snapshot"
    saved = {p.name for p in (stopped / "train" / "checkpoints").iterdir()}
    assert str(STOPPED) in saved and str(2 * STOPPED) not in saved
    assert not (stopped / "train" / "done.json").exists()
    return stopped, record


# Work that is cut otherwise, and read by other threads.
OTHERWISE = [
    *("--config.memory.encode_chunk=3", "--config.memory.remat=layer"),
    *("--config.data.threads=1", "--config.data.prefetch=3"),
]


def place(name, *values, slow=False):
    return pytest.param(values, id=name, marks=[pytest.mark.slow] * slow)


# Flags, processes, devices of each, and how many processes read each text.
ELSEWHERE = [
    place("one device", [*mesh(1, 1), *OTHERWISE], 1, 1, 1),
    place("two processes by texts", mesh(4, 1, fsdp=True), 2, 2, 1),
    place("two processes by terms", mesh(1, 4), 2, 2, 2, slow=True),
    place("eight devices by texts", mesh(8, 1, fsdp=True), 1, 8, 1, slow=True),
]


@pytest.fixture(scope="module", params=ELSEWHERE)
def elsewhere(request, stayed, tmp_path_factory):
    """Where the stopped run went on, what each process recorded, and its readers."""
    flags, processes, devices, readers = request.param
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(stayed[0], folder / "run")
    records = run(folder, flags, processes=processes, devices=devices)
    return folder, records, readers


def test_a_stopped_run_goes_on_elsewhere_with_the_same_numbers(stayed, elsewhere):
    _, wanted = stayed
    _, records, _ = elsewhere
    later = list(range(STOPPED + 1, STEPS + 1))
    for found in records:
        assert sorted(found["steps"]) == later
        for step in later:
            for name in ("loss", "grad_norm"):
                a, b = found["steps"][step][name], wanted["steps"][step][name]
                assert abs(a - b) <= 1e-5 * b, f"{name} of step {step}: {a}, was {b}"
    assert len({wanted["steps"][step]["loss"] for step in later}) == len(later)


def test_a_stopped_run_goes_on_elsewhere_with_the_same_examples(stayed, elsewhere):
    _, wanted = stayed
    _, records, readers = elsewhere
    for found in records:
        assert sorted(found["texts"]) == list(range(STOPPED, STEPS))
    for batch in range(STOPPED, STEPS):
        read = sorted(text for found in records for text in found["texts"][batch])
        assert read == sorted(wanted["texts"][batch] * readers)
    everything = [str(texts) for texts in wanted["texts"].values()]
    assert len(set(everything)) == STEPS


def test_a_stopped_run_says_where_it_goes_on_and_keeps_one_line_a_step(elsewhere):
    folder, _, _ = elsewhere
    assert f"goes on at step {STOPPED} of {STEPS}" in (folder / "stdout.0").read_text()
    lines = (folder / "run" / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))


# What a run that stops twice goes on with, from 4 x 2 devices in one process.
MOVES = {
    "8, 4, 1 devices": [(mesh(4, 1), 1, 4), (mesh(1, 1), 1, 1)],
    "1, 2, 1 processes": [(mesh(4, 1, fsdp=True), 2, 2), (mesh(2, 2), 1, 4)],
}


@pytest.mark.slow
@pytest.mark.parametrize("moves", MOVES.values(), ids=MOVES)
def test_a_run_moves_again_and_again(stayed, tmp_path, moves):
    stopped, wanted = stayed
    for number, (flags, processes, devices) in enumerate(moves, start=1):
        first, folder = number * STOPPED, tmp_path / str(number)
        shutil.copytree(stopped, folder / "run")
        snapshot = first + STOPPED if number < len(moves) else 0
        records = run(
            folder, flags, processes=processes, devices=devices, snapshot=snapshot
        )
        for found in records:
            assert sorted(found["steps"]) == list(range(first + 1, STEPS + 1))
            for step, numbers in found["steps"].items():
                loss = wanted["steps"][step]["loss"]
                assert abs(numbers["loss"] - loss) <= 1e-5 * loss, step
        for batch in range(first, STEPS):
            read = sorted(text for found in records for text in found["texts"][batch])
            assert read == sorted(wanted["texts"][batch])
        stopped = folder / "run.snapshot"


# An epoch of groups, in two windows of batches that share their examples out; the
# first is what the shapes are fitted to.
BATCHES, SIZE = 64, 32


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """Groups of short queries and longer texts; a few with more than that."""
    order = Order(BATCHES * SIZE, SIZE, seed=0)
    assert [order.window(batch).start for batch in (0, 31, 32, 63)] == [0, 0, 32, 32]
    rows = [
        {"query": f"{i}", "pos": [f"text {i}" + " and more" * 4], "neg": []}
        for i in range(BATCHES * SIZE)
    ]
    for batch in (40, 50):
        _, example = order[batch][5]
        rows[example]["query"] = rows[example]["pos"][0]
    _, example = order[45][30]
    rows[example]["pos"] = ["more and " * 40]
    path = tmp_path_factory.mktemp("skewed") / "groups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_more_steps_are_compiled_than_the_table_has_shapes(skewed, tmp_path):
    flags = [
        *mesh(2, 1),
        *("--config.data.source=files", f"--config.data.source.files={skewed}"),
        "--config.data.length_parts=2",
        *("--config.model.dropout=0.0", f"--config.batch_size={SIZE}"),
        *(f"--config.steps={BATCHES}", "--config.checkpoint.every=64"),
    ]
    (found,) = run(tmp_path, flags, devices=2)
    assert sorted(found["steps"]) == list(range(1, BATCHES + 1))
    used = [found["shapes"][batch] for batch in range(BATCHES)]
    assert len(set(used)) == found["table"] == 3
    assert found["compiled"] == 3
    # As few as there are batches that need one.
    lengths = [[*map(len, found["texts"][batch])] for batch in range(BATCHES)]
    longest = max(lengths[0])
    more = {i for i, n in enumerate(lengths) if sum(x > 8 for x in n) > SIZE}
    most = {i for i, n in enumerate(lengths) if max(n) > longest}
    assert 1 <= len(more - most) <= 2 and len(most) == 1
    assert {i for i in range(BATCHES) if used[i] != used[0]} == more | most
