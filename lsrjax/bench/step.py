"""`step`: one optimizer step of a stage, with random weights and random tokens."""

import argparse
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
from rich.console import Console

from lsrjax.bench import measure, peaks, workload
from lsrjax.bench.sizes import add_flags, positive, resolve
from lsrjax.bench.step_tables import FOOTNOTE, Measured, operations, times
from lsrjax.bench.workload import PRESETS, TEACHER, StepSizes
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.training import compiled_steps, flops, train_step
from lsrjax.training.batch_contents import slots_of

IMPLS = ("auto", "naive", "blocked", "pallas")
# Of the learning rate's schedule; every run is far from its end.
_TOTAL_STEPS = 10**6

_DESCRIPTION = """\
Times whole optimizer steps as a stage makes them: encoder, head, loss, gradients and
optimizer; random weights, random tokens, texts of random lengths, cut into parts as the
loader does. The same step with the plain pooling (naive), which makes the logits of all
tokens and terms, takes turns with it; both go on from the same state. It is left out,
with a note, where its logits would take more than 40 % of the memory. With random
weights nearly every term is active, so the gradient of the pooling is the dense one; a
trained model's is cheaper.

Presets (sizes of the models; the flags below override):
  splade-v3       BERT base, V 30,522, KL over 32 queries with 9 documents of 512 tokens
  xlmr-base-250k  SPLADE on XLM-R base over its own 250,002 terms, tied; InfoNCE over
                  8 queries with a document of 256 tokens each
  milco           XLM-R large with the head of splade-v3, as configs/align.py and
                  configs/distill.py give to each of 8 devices: stage 1 aligns 1,024 of
                  8,192 pairs with a BERT-base teacher, stage 2 distills 128 of 1,024
                  queries with groups of 8 and LexEcho; 256 tokens (queries 64)
  a hub id        SPLADE on a checkpoint whose shape --dry_run knows, over its own terms
                  as xlmr-base-250k: answerdotai/ModernBERT-base, jhu-clsp/mmBERT-base…
All are in bfloat16, and for accelerators: on a CPU, override --batch, --length
and --layers. milco encodes 32 texts at a time (--encode-chunk), which takes 48 GB by
the count of XLA's CPU compiler.
"""


def add_command(commands) -> None:
    """Adds `step` to the program's commands."""
    parser = commands.add_parser(
        "step",
        help="one optimizer step of a stage, against the plain pooling",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, StepSizes, PRESETS)
    parser.add_argument(
        "--mesh-data",
        type=_devices,
        default=1,
        help="devices that texts are divided over; -1: the rest (default: 1)",
    )
    parser.add_argument(
        "--mesh-model",
        type=_devices,
        default=1,
        help="devices that heads, inner widths and vocabularies are divided over; -1: "
        "the rest (default: 1)",
    )
    parser.add_argument(
        "--fsdp",
        action="store_true",
        help="divide parameters and optimizer state over --mesh-data, too",
    )
    parser.add_argument(
        "--steps", type=positive, default=5, help="timed steps (default: 5)"
    )
    parser.add_argument(
        "--impl",
        nargs="+",
        choices=IMPLS,
        default=("auto", "naive"),
        help="poolings to compare; auto is what training takes, pallas needs a GPU or "
        "TPU (default: auto naive)",
    )
    parser.set_defaults(run=run)


def _devices(text: str) -> int:
    value = int(text)
    if value < 1 and value != -1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of devices, or -1")
    return value


def run(args: argparse.Namespace) -> None:
    """Measures and prints the tables."""
    console = Console()
    rows = resolve(args, StepSizes(), PRESETS, "step")
    for sizes in rows.values():
        sizes.check()
    mesh = _mesh(args)
    for sizes in rows.values():
        _check_fits(sizes, mesh)
    console.print(
        f"{measure.machine()}; data {mesh.shape['data']} x model"
        f" {mesh.shape['model']}{' fsdp' if args.fsdp else ''}; median of {args.steps}",
        highlight=False,
    )
    found = {}
    for name, sizes in rows.items():
        with jax.set_mesh(mesh):
            found[name] = _measure(console, name, _stage(sizes, mesh, args.fsdp), args)
    console.print(times(found))
    kind = mesh.devices.flat[0].device_kind
    rates = {name: peaks.peak(kind, sizes.dtype) for name, sizes in rows.items()}
    console.print(operations(found, rates, mesh.size))
    console.print(FOOTNOTE, highlight=False)


def _mesh(args: argparse.Namespace):
    devices, sizes = jax.devices(), [args.mesh_data, args.mesh_model]
    if -1 in sizes:
        free = sizes.index(-1)
        sizes[free] = max(len(devices) // max(sizes[1 - free], 1), 1)
    data, model = sizes
    if data * model > len(devices):
        raise InputError(
            f"--mesh-data {data} x --mesh-model {model} needs {data * model} devices,"
            f" found: {len(devices)} ({devices[0].device_kind}). On a CPU, set"
            f" XLA_FLAGS=--xla_force_host_platform_device_count={data * model}."
        )
    return sharding.make_mesh(data, model, devices[: data * model])


def _check_fits(sizes: StepSizes, mesh) -> None:
    """Refuses sizes that cannot fit with any implementation."""
    host, devices = workload.least_bytes(sizes, mesh.shape[sharding.DATA])
    free = _free(mesh)
    there = None if free is None else free * mesh.size // _sharers(mesh)
    for needed, found in ((host, measure.host_bytes()), (devices, there)):
        if found is not None and needed > found:
            raise InputError(
                f"A step of these sizes takes at least {measure.gigabytes(needed)}, but"
                f" there are {measure.gigabytes(found)}. Take smaller ones."
            )


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A stage on a mesh, before any memory is allocated."""

    sizes: StepSizes
    mesh: jax.sharding.Mesh
    student: retriever.RetrieverSpec
    layout: sharding.Layout
    teacher: retriever.RetrieverSpec | None
    teacher_layout: sharding.Layout | None
    step: train_step.Step
    batch: dict

    @property
    def data(self) -> int:
        return self.mesh.shape[sharding.DATA]

    @property
    def tokens(self) -> int:
        return sum(int(part["mask"].sum()) for part in self.batch["student"]["parts"])


def _stage(sizes: StepSizes, mesh, fsdp: bool) -> _Stage:
    student, teacher = workload.student_of(sizes), workload.teacher_of(sizes)
    return _Stage(
        sizes=sizes,
        mesh=mesh,
        student=student,
        layout=_layout(student, mesh, fsdp),
        teacher=teacher,
        teacher_layout=_layout(teacher, mesh, fsdp) if teacher else None,
        step=workload.step_of(sizes, _TOTAL_STEPS),
        batch=workload.batches(sizes, mesh.shape[sharding.DATA])[0],
    )


def _measure(console: Console, name: str, stage: _Stage, args) -> Measured:
    for note in (_summary(name, stage), *stage.layout.notes):
        console.print(note, highlight=False)
    rows = sharding.local_rows(stage.mesh)
    batch = sharding.to_global(stage.batch, stage.mesh, rows)
    compiled = {}
    for impl in dict.fromkeys(args.impl):
        reason = _left_out(impl, stage)
        if not reason:
            compiled[impl] = _compiled(impl, stage, batch)
            reason = _too_large(impl, compiled[impl], stage.mesh)
        if reason:
            console.print(reason, highlight=False)
            compiled.pop(impl, None)
    if not compiled:
        raise InputError(f"{name}: nothing is left to measure. {_SMALLER}")
    return Measured(
        seconds=_medians(compiled, stage, batch, args.steps),
        temp={impl: measure.temp_bytes(c) for impl, c in compiled.items()},
        examples=stage.sizes.batch * stage.data,
        tokens=stage.tokens,
        operations=operations_of(stage.sizes, stage.batch, stage.data),
    )


def _summary(name: str, stage: _Stage) -> str:
    sizes = stage.sizes
    _, params = retriever.split(stage.student)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    shapes = [part["ids"].shape for part in stage.batch["student"]["parts"]]
    cut = " ".join(f"{texts}x{tokens}" for texts, tokens in shapes)
    padding = 1 - stage.tokens / slots_of(stage.batch)
    return (
        f"{name}: {sizes.task}, {count:,} parameters, {sizes.dtype}; texts x tokens"
        f" {cut}, {padding:.0%} padding"
    )


_SMALLER = "Take a smaller --batch or --length, or --encode-chunk or --remat layer."


def operations_of(sizes: StepSizes, batch: dict, devices: int) -> flops.Flops:
    """Operations of a step by formula, of all devices."""

    def parts(name):
        """(texts, tokens) as computed, and whether in chunks."""
        shapes = [part["ids"].shape for part in batch[name]["parts"]]
        counts = [texts // devices for texts, _ in shapes]
        chunks = math.ceil(sum(counts) / (sizes.encode_chunk or sum(counts)))
        for count, (_, length) in zip(counts, shapes, strict=True):
            yield (math.ceil(count / chunks) * chunks * devices, length), chunks > 1

    student = workload.student_of(sizes)
    total = flops.Flops(0, 0)
    for part, chunked in parts("student"):
        total += flops.training(student, [part], remat=sizes.remat, chunked=chunked)
    if teacher := workload.teacher_of(sizes):
        total += flops.forward(teacher, [part for part, _ in parts(TEACHER)])
    return total


def _layout(spec, mesh, fsdp: bool) -> sharding.Layout:
    return sharding.layout_of(spec, retriever.split(spec)[1], mesh, fsdp)


def _random_params(spec, layout: sharding.Layout) -> dict:
    with sharding.on_one_device():
        params = retriever.init_params(spec, seed=0)
    return sharding.place(params, layout.shardings(params))


def _random_state(stage: _Stage) -> dict:
    params = _random_params(stage.student, stage.layout)

    def init(params):
        return train_step.init_state(stage.step, params)

    shardings = stage.layout.shardings(jax.eval_shape(init, params))
    return jax.jit(init, out_shardings=shardings)(params)


def arguments(stage: _Stage) -> tuple[dict, dict | None]:
    """The abstract state and teacher's parameters of a stage's step."""
    _, params = retriever.split(stage.student)
    state = jax.eval_shape(lambda p: train_step.init_state(stage.step, p), params)
    teacher_params = None
    if stage.teacher and stage.teacher_layout:
        _, teacher_params = retriever.split(stage.teacher)
        teacher_params = stage.teacher_layout.abstract(teacher_params)
    return stage.layout.abstract(state), teacher_params


def _compiled(impl: str, stage: _Stage, batch: dict) -> jax.stages.Compiled:
    # A copy of the step: JAX caches its trace by the function.
    step = dataclasses.replace(stage.step)
    with workload.pooling(impl):
        return compiled_steps.compiled(step, *arguments(stage), batch)


def _left_out(impl: str, stage: _Stage) -> str | None:
    if impl == "pallas" and jax.default_backend() == "cpu":
        return "pallas: the kernels need a GPU or TPU; left out."
    if impl != "naive":
        return None
    sizes, mesh = stage.sizes, stage.mesh
    terms = -(-(sizes.pivot_vocab or sizes.vocab) // mesh.shape[sharding.MODEL])
    shapes = [part["ids"].shape for part in stage.batch["student"]["parts"]]
    needed = naive_bytes_of_parts(
        [(texts // stage.data, length) for texts, length in shapes],
        terms,
        sizes.encode_chunk,
    )
    return measure.left_out(impl, needed * _sharers(mesh), _free(mesh))


def naive_bytes_of_parts(parts: Sequence[flops.Part], terms: int, chunk: int) -> int:
    """Memory of the plain pooling on a device.

    The logits of all parts are kept for the backward pass; those of chunks are
    recomputed there, so only one chunk counts.

    Parts are (texts, tokens) of a device, terms its share of the vocabulary.
    """
    texts = sum(count for count, _ in parts)
    chunks = math.ceil(texts / (chunk or texts))
    return sum(
        measure.naive_bytes(math.ceil(count / chunks), length, terms)
        for count, length in parts
    )


def _too_large(impl: str, compiled: jax.stages.Compiled, mesh) -> str | None:
    needed, free = measure.all_bytes(compiled) * _sharers(mesh), _free(mesh)
    if free is None or needed <= free:
        return None
    return (
        f"{impl}: the step takes {measure.gigabytes(needed)} by the compiler's count,"
        f" more than the {measure.gigabytes(free)} there are; left out."
    )


def _free(mesh) -> int | None:
    return measure.free_bytes(mesh.devices.flat[0])


def _sharers(mesh) -> int:
    """Devices that share one memory: those of a CPU."""
    return mesh.size if mesh.devices.flat[0].platform == "cpu" else 1


def _medians(compiled, stage: _Stage, batch, steps: int) -> dict[str, float]:
    teacher_params = None
    if stage.teacher and stage.teacher_layout:
        teacher_params = _random_params(stage.teacher, stage.teacher_layout)
    # Each step donates its state, so the next one takes its result.
    state = _random_state(stage)

    def run(step):
        nonlocal state
        state, metrics = step(state, teacher_params, batch)
        jax.block_until_ready((state, metrics))

    runs = {impl: functools.partial(run, step) for impl, step in compiled.items()}
    return measure.interleaved_medians(runs, steps)
