"""The benchmarks' command line on sizes that take no time, and their arithmetic."""

import dataclasses
import math
import os
import re
import subprocess
import sys

import jax
import pytest
from jax.extend import core
from rich.console import Console
from scipy import sparse

from lsrjax.bench import (
    chip_pieces,
    data,
    encode,
    head,
    measure,
    peaks,
    step,
    step_tables,
    workload,
)
from lsrjax.bench.__main__ import main
from lsrjax.convert.read import presets
from lsrjax.data.batching.orders import Order
from lsrjax.data.debian_texts import embedded
from lsrjax.distributed import sharding
from lsrjax.losses.table import LOSSES
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.training import flops

HEAD = "head --batch 2 --length 3 --dim 5 --vocab 40 --repeats 1".split()
ATTENTION = "attention --batch 1 --length 200 --heads 2 --width 4 --repeats 1".split()
MODEL = "--layers 1 --teacher-layers 1 --dim 8 --heads 2 --inner 16 --vocab 50"
TEXTS = "--batch 2 --length 8 --query-length 4 --parts 1 --steps 1"
STEP = f"step {MODEL} --pivot-vocab 40 --group 2 {TEXTS}".split()


def rows_of(out):
    """The cells of all tables' rows, without their headers."""
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert all(len(line) <= 80 for line in out.splitlines())
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def numbers(cells):
    """The cells as numbers, each of them positive; `-` is none."""
    values = [float(re.sub("[,x%]", "", cell)) for cell in cells if cell != "-"]
    assert values and all(0 < value < math.inf for value in values)
    return values


# head


def test_head_prints_a_row_for_each_implementation(capsys):
    main([*HEAD, "--impl", "naive", "blocked", "--active", "0.1"])
    out = capsys.readouterr().out
    assert "head: B 2, L 3, D 5, V 40, float32, 10.00% active" in " ".join(out.split())
    rows = {row[0]: row for row in rows_of(out)}
    assert list(rows) == ["naive", "blocked"]
    assert rows["naive"].count("1.00x") == 2
    for row in rows.values():
        assert len(row) == 7 and len(numbers(row[1:])) == 6


def test_attention_compares_blocks_with_the_mask(capsys):
    main([*ATTENTION, "--left", "3", "--right", "0"])
    mask, blocks = rows_of(capsys.readouterr().out)
    assert mask[0] == "mask (in training)" and blocks[0] == "blocks"
    numbers(mask[1:] + blocks[1:])


def test_a_platform_that_there_is_not_is_an_error(capsys, monkeypatch):
    def none():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(SystemExit) as ended:
        main(["head"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Error: JAX cannot use")


def test_without_the_plain_one_there_is_no_speed_up(capsys):
    main([*HEAD, "--impl", "blocked", "--active", "1", "--dtype", "bfloat16"])
    out = capsys.readouterr().out
    assert "bfloat16, 100.00% active" in " ".join(out.split())
    assert "1.00x" not in out


def test_a_chip_whose_peak_is_known_gets_a_table_of_utilisation(capsys, monkeypatch):
    # So low that no machine, however loaded, rounds its share to 0.
    monkeypatch.setattr(peaks, "peak", lambda kind, dtype: 1e7)
    main([*HEAD, "--impl", "blocked"])
    out = capsys.readouterr().out
    assert "of the dense peak of 1e-05 TFLOP/s" in out
    forward, share, both, share_of_both = numbers(rows_of(out)[1][1:])
    # 2 B L D V operations forward, three times as many with the gradients.
    assert share == pytest.approx(forward * 1e12 / 1e7 * 100, rel=0.02, abs=0.06)
    assert share_of_both == pytest.approx(both * 1e12 / 1e7 * 100, rel=0.02, abs=0.06)


def test_head_presets_have_the_stated_sizes_and_flags_override_them():
    sizes = {name: rows for name, rows in head.PRESETS.items()}
    (splade,) = sizes["splade-v3"].values()
    assert dataclasses.astuple(splade) == (320, 512, 768, 30522)
    (xlmr,) = sizes["xlmr-base-250k"].values()
    assert dataclasses.astuple(xlmr) == (16, 256, 768, 250002)
    first, second = sizes["milco"].values()
    assert dataclasses.astuple(first) == (512, 256, 768, 30522)
    assert dataclasses.astuple(second) == (8 * 128, 256, 768, 30522)


def test_a_preset_of_two_rows_prints_both(capsys):
    tiny = "--batch 2 --length 3 --dim 5 --vocab 40 --repeats 1 --impl blocked"
    main(["head", "--preset", "milco", *tiny.split()])
    out = " ".join(capsys.readouterr().out.split())
    assert "milco stage 1: B 2, L 3, D 5, V 40" in out
    assert "milco stage 2: B 2, L 3, D 5, V 40" in out


# What is left out


def test_the_plain_pooling_is_left_out_above_40_percent_of_the_memory():
    needed = measure.naive_bytes(2, 3, 5)
    assert needed == 2 * 4 * 2 * 3 * 5
    assert measure.left_out("naive", 40, 100) is None
    assert measure.left_out("naive", 41, 100).startswith("naive: ")
    assert measure.left_out("naive", 10**15, None) is None


def test_a_head_too_large_for_the_plain_pooling_leaves_it_out(capsys, monkeypatch):
    logits = measure.naive_bytes(2, 3, 40)
    free = {"free": int(logits / 0.4) - 1}
    monkeypatch.setattr(measure, "free_bytes", lambda device: free["free"])
    monkeypatch.setattr(head, "_check_fits", lambda sizes: None)
    main([*HEAD, "--impl", "naive", "torch", "blocked"])
    out = capsys.readouterr().out
    assert "naive: the logits" in out and "torch: " in out
    assert [row[0] for row in rows_of(out)] == ["blocked"]
    free["free"] += 2
    main([*HEAD, "--impl", "naive"])
    assert [row[0] for row in rows_of(capsys.readouterr().out)] == ["naive"]


def test_logits_of_chunks_do_not_add_up():
    size = measure.naive_bytes
    parts = [(10, 3), (6, 5)]
    whole = size(10, 3, 7) + size(6, 5, 7)
    assert step.naive_bytes_of_parts(parts, 7, 0) == whole
    assert step.naive_bytes_of_parts(parts, 7, 16) == whole
    # Two and eight chunks of 16 texts, each with its share of both parts.
    assert step.naive_bytes_of_parts(parts, 7, 10) == size(5, 3, 7) + size(3, 5, 7)
    assert step.naive_bytes_of_parts(parts, 7, 2) == size(2, 3, 7) + size(1, 5, 7)


def test_the_memory_there_is_was_found():
    assert (
        2**26
        < measure.host_bytes()
        <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    assert measure.free_bytes(jax.devices("cpu")[0]) > 2**26


# Peaks


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA H100 80GB HBM3", 989, 495),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA H200", 989, 495),
        ("NVIDIA L4", 121, 60.5),
        ("NVIDIA L40S", 362, 183),
        ("Tesla T4", None, 8.1),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("TPU v4", 275, 275),
        ("TPU v5 lite", 197, 197),
        ("TPU v5e", 197, 197),
        ("TPU v5p", 459, 459),
        ("TPU v5", 459, 459),
        ("TPU v6 lite", 918, 918),
        ("TPU v6e", 918, 918),
        ("NVIDIA T400", None, None),
        ("NVIDIA A10G", None, None),
        ("cpu", None, None),
    ],
)
def test_peaks_by_kind_of_device(kind, bfloat16, float32):
    found = [peaks.peak(kind, dtype) for dtype in ("bfloat16", "float32")]
    assert found == [x and x * 1e12 for x in (bfloat16, float32)]


SMALL = workload.StepSizes(
    layers=2,
    dim=48,
    heads=3,
    inner=80,
    vocab=301,
    pivot_vocab=401,
    batch=4,
    group=3,
    length=16,
    query_length=16,
    parts=2,
)


def dots(jaxpr):
    """Operations of all matrix products of a computation, loops taken in full."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((left, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            contracted = math.prod(shape[axis] for axis in left)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * contracted
        for inner in core.jaxprs_in_params(equation.params):
            total += equation.params.get("length", 1) * dots(inner)
    return total


def traced(impl, stage):
    """A stage's step as a jaxpr."""
    with workload.pooling(impl):
        one = dataclasses.replace(stage.step)
        return jax.make_jaxpr(one)(*step.arguments(stage), stage.batch)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remat": "dots"},
        {"remat": "layer"},
        {"pivot_vocab": 0, "family": "bert"},
        {"task": "alignment", "pivot_dim": 32, "teacher_layers": 3},
        {"encode_chunk": 3},
        {"encode_chunk": 3, "remat": "layer"},
    ],
    ids=str,
)
def test_the_formula_is_what_a_step_with_the_plain_pooling_computes(changes):
    sizes = dataclasses.replace(SMALL, **changes)
    stage = step._stage(sizes, sharding.make_mesh(1, 1), fsdp=False)
    found = step.operations_of(sizes, stage.batch, 1)
    assert found.both == pytest.approx(dots(traced("naive", stage).jaxpr), rel=0.03)


# step


def test_a_step_with_either_pooling(capsys):
    main([*STEP, *"--task alignment --pivot-dim 4 --impl naive auto".split()])
    out = capsys.readouterr().out
    assert "step: alignment, " in out and "texts x tokens 4x8" in out
    times, operations = rows_of(out)[:2], rows_of(out)[2:]
    assert [row[:2] for row in times] == [["step", "naive"], ["step", "auto"]]
    assert [row[:2] for row in operations] == [["step", "naive"], ["step", "auto"]]
    assert times[0][3] == "1.00x"
    for time, operation in zip(times, operations, strict=True):
        milliseconds, _, examples, tokens, _ = numbers(time[2:])
        assert examples == pytest.approx(2e3 / milliseconds, rel=0.1)
        # Two texts to a pair, of 4 to 8 tokens.
        assert 2 * 4 / 1.01 < tokens / examples < 2 * 8 * 1.01
        encoder, heads, rate = numbers(operation[2:])
        assert (encoder + heads) / milliseconds * 1e3 == pytest.approx(rate, rel=0.1)


MEASURED = step_tables.Measured(
    seconds={"auto": 0.5, "naive": 1.0},
    temp={"auto": 1, "naive": None},
    examples=8,
    tokens=100,
    operations=flops.Flops(20 * 10**9, 30 * 10**9),
)


def test_the_milco_preset_is_two_rows(capsys, monkeypatch):
    stages = {}

    def measured(console, name, stage, args):
        stages[name] = stage
        return MEASURED

    monkeypatch.setattr(step, "_measure", measured)
    main(f"step --preset milco {MODEL} {TEXTS} --pivot-vocab 40 --pivot-dim 4".split())
    rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == 2 * (2 * ["stage 1"] + 2 * ["stage 2"])
    first, second = stages.values()
    assert first.sizes.pairs and first.teacher and not first.student.options.lexecho
    assert second.student.options.lexecho and not second.teacher
    # Flags override the preset, which keeps the rest.
    assert (first.sizes.batch, second.sizes.batch, second.sizes.group) == (2, 2, 8)
    assert second.sizes.encode_chunk == 32


def test_the_figures_of_the_tables():
    found = [measure.figure(x) for x in (0.01234, 1.234, 62.14, 138.52, 1058.8, 1e6)]
    assert found == ["0.0123", "1.23", "62.1", "138.5", "1,059", "1,000,000"]


def test_both_poolings_are_really_two():
    # More terms than the fused pooling takes at a time.
    sizes = dataclasses.replace(SMALL, task="infonce", parts=1, pivot_vocab=9001)
    stage = step._stage(sizes, sharding.make_mesh(1, 1), fsdp=False)
    original = workload.term_weights.vocab_pool
    logits = f"[{sizes.texts},16,{sizes.pivot_vocab}]"
    for impl in ("naive", "auto"):
        assert (logits in str(traced(impl, stage))) == (impl == "naive")
    assert workload.term_weights.vocab_pool is original


@pytest.mark.parametrize("task", workload.TASKS)
def test_every_task_that_can_be_chosen_is_a_step(task):
    sizes = dataclasses.replace(SMALL, task=task)
    stage = step._stage(sizes, sharding.make_mesh(1, 1), fsdp=False)
    one = dataclasses.replace(stage.step)
    _, metrics = jax.eval_shape(one, *step.arguments(stage), stage.batch)
    assert metrics["loss"].shape == () and "grad_norm" in metrics


def test_the_tasks_are_all_losses_but_those_of_other_heads_and_data():
    others = {"reconstruction", "m3", "language_kl", "mlm", "bag_of_words", "angle"}
    others |= {"batch_kl", "batch_margin_mse", "embedding"}  # with a teacher
    others |= {"listnet", "wasserstein", "cosent", "mann_whitney", "passage_centric"}
    assert set(workload.TASKS) == set(LOSSES) - others


def test_step_presets_are_the_published_models():
    (splade,) = workload.PRESETS["splade-v3"].values()
    # 32 queries with 9 documents are the 320 texts of the head's preset.
    assert (splade.texts, splade.length) == (320, 512)
    assert (splade.family, splade.vocab, splade.milco) == ("bert", 30522, False)
    (xlmr,) = workload.PRESETS["xlmr-base-250k"].values()
    assert (xlmr.texts, xlmr.length) == (16, 256)
    assert (xlmr.family, xlmr.vocab, xlmr.milco) == ("xlm-roberta", 250002, False)
    first, second = workload.PRESETS["milco"].values()
    assert (first.task, second.task) == ("alignment", "kl")
    assert (8 * first.batch, 8 * second.batch, second.group) == (8192, 1024, 8)
    assert workload.student_of(second).options.lexecho
    for sizes in (splade, xlmr, first, second):
        sizes.check()
        layers, dim = (24, 1024) if sizes.milco else (12, 768)
        assert (sizes.layers, sizes.dim, sizes.inner) == (layers, dim, 4 * dim)
    teacher = workload.teacher_of(first).encoder
    assert (teacher.hidden_size, teacher.num_layers, teacher.num_heads) == (768, 12, 12)
    assert (teacher.intermediate_size, teacher.vocab_size) == (3072, 30522)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_step_has_an_encoder_of_any_family(family):
    sizes = dataclasses.replace(SMALL, family=family)
    sizes.check()
    encoder = workload.student_of(sizes).encoder
    assert encoder.family == family and encoder.num_layers == sizes.layers
    assert encoder.max_length >= sizes.length


def test_a_checkpoint_is_a_preset_with_all_that_its_encoder_has():
    for name, (known, _) in presets.PRESETS.items():
        (sizes,) = workload.PRESETS[name].values()
        sizes.check()
        assert workload.student_of(sizes).encoder == known
    long = dataclasses.replace(sizes, length=9000)
    assert workload.student_of(long).encoder.max_length == 9000
    chip = chip_pieces.encoder_sizes("answerdotai/ModernBERT-base")[0]
    assert chip.family == "modernbert"


def test_texts_are_as_long_as_asked_on_average():
    assert workload.lengths_around(1.0, 64) == (64, 64)
    assert workload.lengths_around(0.75, 64) == (32, 64)
    assert workload.lengths_around(0.25, 64) == (1, 32)
    assert workload.lengths_around(0.0, 64) == (1, 1)
    full = dataclasses.replace(SMALL, fill=1.0)
    for sizes, most in ((full, 1.0), (SMALL, 0.9)):
        parts = workload.batches(sizes, 1)[0]["student"]["parts"]
        share = sum(p["mask"].sum() for p in parts) / (sizes.texts * sizes.length)
        assert most - 0.3 < share <= most


def test_known_peaks_give_utilisation_of_both_parts_and_together():
    large = flops.Flops(20 * 10**12, 30 * 10**12)
    large = dataclasses.replace(MEASURED, operations=large)
    found = {"xlmr-base-250k": large, "unknown": large}
    peaks = {"xlmr-base-250k": 100e12, "unknown": None}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(step_tables.operations(found, peaks, devices=2))
    assert "TFLOP/s" in capture.get()
    rows = [row for row in rows_of(capture.get()) if row[1]]
    assert rows[0][1:] == ["auto", "20.0", "30.0", "100.0", "20.0%", "30.0%", "50.0%"]
    assert rows[1][1:] == ["naive", "20.0", "30.0", "50.0", "10.0%", "15.0%", "25.0%"]
    assert rows[2][5:] == ["-"] * 3


def test_large_numbers_fit_into_80_columns():
    seconds = {"blocked": 1.2345, "naive": 23.456}
    temp = {"blocked": 123_456.7e6, "naive": 98_765.4e6}
    huge = step_tables.Measured(
        seconds, temp, 8192, 10**7, flops.Flops(1258291 * 10**9, 412345 * 10**9)
    )
    console = Console(width=80)
    with console.capture() as capture:
        console.print(step_tables.times({"stage 1": huge}))
        console.print(step_tables.operations({"stage 1": huge}, {"stage 1": 1e15}, 8))
    rows = rows_of(capture.get())
    assert len(rows) == 4 and "…" not in capture.get()
    for row in rows:
        numbers(row[2:])


@pytest.mark.slow
def test_a_step_on_a_mesh():
    flag = "--xla_force_host_platform_device_count=4"
    command = [sys.executable, "-m", "lsrjax.bench", *STEP, "--fsdp"]
    command += "--mesh-data -1 --mesh-model 2 --impl auto".split()
    result = subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": flag},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "data 2 x model 2 fsdp" in result.stdout
    # Two queries and four documents for each device of data.
    assert "texts x tokens 12x8" in result.stdout
    for row in rows_of(result.stdout):
        numbers(row[2:])


# data


def test_data_compares_the_loaders(capsys):
    sizes = "--batch 8 --group 2 --length 48 --query-length 8 --batches 3 --repeats 1"
    main(f"data {sizes} --threads 1 2".split())
    rows = rows_of(capsys.readouterr().out)
    assert [row[:3] for row in rows] == [
        [kind, where, threads]
        for kind in ("pairs", "groups")
        for where in ("its part", "the longest")
        for threads in ("1", "2")
    ]
    for row in rows:
        examples, tokens, padding, shapes = numbers(row[3:])
        assert tokens > examples and padding < 100 and 1 <= shapes <= 3
    by_name = {tuple(row[:2]): row for row in rows}
    for kind in ("pairs", "groups"):
        ours, longest = (
            numbers(by_name[kind, where][5:6])[0]
            for where in ("its part", "the longest")
        )
        assert ours < longest


def test_padding_to_the_longest_counts_what_a_batch_holds():
    loaders = data._loaders("pairs", data.DataSizes(batch=8, length=48))
    # Of as many batches as share their examples out among them.
    count = len(Order(len(embedded.examples("pair", "train")), 8, 0).window(0))
    ours, longest = (data.content(b, count, 8) for b in loaders.values())
    assert ours.examples == longest.examples == 8 * count
    assert ours.tokens == longest.tokens
    batch = loaders["pairs", "longest"][0]
    (part,) = batch["student"]["parts"]
    assert part["mask"].sum(axis=1).max() == part["ids"].shape[1]
    assert part["ids"].shape[0] == 16 and part["ids"].size <= longest.slots
    assert 0 <= ours.padding < longest.padding < 1


# encode

ENCODE = (
    "encode --texts 20 --batch 8 --length 16 --layers 1 --dim 8 --heads 2 --inner 8"
)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "terms"), [("splade", 16_000), ("milco", 8_192)])
def test_encode_compares_vectors_that_are_the_same(capsys, head, terms):
    main([*ENCODE.split(), "--head", head, "--active", "0.02", "--repeats", "2"])
    rows = {row[0]: row for row in rows_of(capsys.readouterr().out)}
    programs, others = list(rows)[:4], list(rows)[4:]
    rounds = ["first round", "later"]
    both = ("lsrjax", "SparseEncoder")
    assert programs == [f"{name}, {when}" for when in rounds for name in both]
    for name in programs:
        seconds, speed, gain = numbers(rows[name][1:])
        assert speed == pytest.approx(20 / seconds, rel=0.1, abs=1)
        assert gain == 1 or name.startswith("lsrjax")
    active, _, largest = (numbers(rows[name][1:2])[0] for name in others)
    assert largest < 1e-5
    # With LexEcho, those of the text besides.
    assert 0.8 < active / (0.02 * terms) < 1.2


@pytest.mark.slow
def test_the_pipeline_is_compared_with_the_model_alone(capsys):
    main([*ENCODE.split(), "--active", "0.02", "--pipeline", "npz", "qdrant"])
    rows = rows_of(capsys.readouterr().out)
    names = ["the model alone", "with input and npz", "with input and qdrant"]
    assert [row[0] for row in rows] == names
    alone, *_ = seconds = [numbers(row[1:]) for row in rows]
    for passed, speed, share, used, cpu in seconds:
        assert speed == pytest.approx(20 / passed, rel=0.1, abs=1)
        assert share == pytest.approx(alone[0] / passed, rel=0.1, abs=0.02)
        assert cpu == pytest.approx(alone[3] / used, rel=0.1, abs=0.02)


def test_a_text_whose_vectors_differ_is_seen():
    wanted = sparse.csr_matrix([[2.0, 0, 1], [0, 4, 0], [0, 0, 0]])
    found = sparse.csr_matrix([[2.0, 0, 1], [0, 4, 1], [0, 0, 0]])
    assert encode.difference(wanted, wanted) == 0
    assert encode.difference(found, wanted) == pytest.approx(0.25)


def test_more_documents_than_there_are_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*ENCODE.split(), "--texts", "10000000"])
    assert stop.value.code == 2
    assert "--texts 10000000, but there are" in capsys.readouterr().err


# The command line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["tail"], "'tail'"),
        ([*HEAD, "--batch", "0"], "--batch: 0 is not a positive integer"),
        ([*HEAD, "--vocab", "many"], "--vocab: invalid"),
        ([*HEAD, "--active", "1.5"], "--active: 1.5 is not a share between 0 and 1"),
        ([*HEAD, "--active", "nan"], "--active: nan is not a share"),
        ([*HEAD, "--impl", "jax"], "invalid choice: 'jax'"),
        ([*HEAD, "--dtype", "float16"], "invalid choice: 'float16'"),
        ([*HEAD, "--preset", "colbert"], "invalid choice: 'colbert'"),
        ([*STEP, "--task", "mse"], "invalid choice: 'mse'"),
        ([*STEP, "--fill", "1.5"], "--fill: 1.5 is not a share between 0 and 1"),
        ([*STEP, "--encode-chunk", "-1"], "--encode-chunk: -1 is not an integer from"),
        ([*STEP, "--mesh-data", "0"], "--mesh-data: 0 is not a number of devices"),
        ([*STEP, "--task", "m3"], "--task: invalid choice: 'm3'"),
    ],
)
def test_bad_arguments_end_with_status_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*HEAD, "--vocab", str(10**12)], "Arguments and gradients of B 2, L 3"),
        ([*STEP, "--vocab", str(10**12)], "A step of these sizes takes at least"),
        ([*STEP, "--batch", str(10**9)], "A step of these sizes takes at least"),
        ([*STEP, "--dim", "9"], "--dim 9 does not divide over --heads 2."),
        ([*STEP, "--group", "1"], "kl compares a query's documents: --group 2"),
        ([*STEP, "--vocab", "2"], "A vocabulary of 2 holds nothing but"),
        (
            [*STEP, "--task", "alignment", "--pivot-vocab", "0"],
            "alignment needs an English vocabulary: --pivot-vocab.",
        ),
        (
            [*STEP, "--task", "alignment", "--pivot-dim", "7"],
            "--pivot-dim 7 does not divide into heads of 4",
        ),
        ([*STEP, "--mesh-model", "64"], "needs 64 devices, found: "),
        ([*STEP, "--impl", "pallas"], "step: nothing is left to measure."),
        (["data", "--batch", str(10**9)], "there are 84,408 of them."),
        (["data", "--group", str(10**9)], "the embedded data has 18,380 documents."),
    ],
)
def test_sizes_that_cannot_work_end_with_one_line(capsys, argv, message):
    if "pallas" in argv and jax.default_backend() != "cpu":
        pytest.skip("the kernels run here")
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1
    assert message in error


def test_a_device_out_of_memory_ends_with_one_line(capsys, monkeypatch):
    def exhausted(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(head, "_jax_case", exhausted)
    with pytest.raises(SystemExit) as stop:
        main([*HEAD, "--impl", "blocked"])
    assert stop.value.code == 2
    assert "ran out of memory" in capsys.readouterr().err


def test_medians_are_of_the_rounds_after_the_first():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    medians = measure.interleaved_medians(runs, 3)
    assert "".join(calls) == "ab" * 4
    assert set(medians) == {"a", "b"} and min(medians.values()) >= 0
