"""`lsrjax train --dry_run`: what a run's steps need, without data and weights."""

import argparse
import functools
import time
from collections.abc import Iterator

import jax
from rich.console import Console

from lsrjax.cli.flags import Given
from lsrjax.config import check_run
from lsrjax.distributed import processes, topology
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.training import memory_plan
from lsrjax.training.memory_plan import Memory, StagePlan, size


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --dry_run, and the flags that depend on it."""
    add = parser.add_argument_group("a plan instead of a run").add_argument
    add(
        "--dry_run",
        action="store_true",
        help="compile every stage's step and print what it takes; train nothing, read"
        " no data and no weights",
    )
    add("--devices", type=int, metavar="N", help="plan for N devices")
    add(
        "--topology",
        metavar="CHIPS",
        help="compile for chips that are not here, such as v5e:4x4 or h100:8; print"
        " what they exchange and how the step scales",
    )
    add(
        "--device_gb",
        type=float,
        metavar="GB",
        help="memory of a device; what does not fit ends with exit code 2",
    )


def without_effect(given: argparse.Namespace) -> Iterator[str]:
    """Messages about flags that have no effect because --dry_run is missing."""
    for name in ("devices", "topology", "device_gb"):
        if getattr(given, name) is not None and not given.dry_run:
            yield f"--{name} has no effect without --dry_run."


def plan(given: Given) -> None:
    """Prints what every stage needs with texts of the greatest length.

    Raises:
      InputError: a config that cannot be run, flags that exclude each other, or, once
        all is printed, a stage whose step does not fit.
    """
    asked, console = given.flags, Console()
    say = functools.partial(console.print, highlight=False, markup=False)
    if asked.devices is not None and asked.topology:
        raise InputError("--topology says how many devices there are; leave --devices.")
    if asked.devices is not None:
        _pretend_devices(asked.devices)
    chip, devices = None, None
    if asked.topology:
        chip, devices = topology.devices(asked.topology)
    processes.check_devices()
    check_run.validate(given.config)
    limit = None if chip is None else int(chip.memory)
    if asked.device_gb is not None:
        limit = int(asked.device_gb * 1e9)
    assert given.config_path  # as there is a config
    plans = memory_plan.plan_stages(given.config, given.config_path.parent, devices)
    too_large = []
    for name, stage in plans.items():
        with jax.set_mesh(stage.mesh):
            count = stage.mesh.size
            devices_said = f"{count} device{'s' * (count > 1)}"
            say(f"Compiling the step of stage {name} for {devices_said}")
            start = time.perf_counter()
            compiled, memory = stage.compiled()
            seconds = time.perf_counter() - start
            _print(name, stage, memory, console)
            if chip:
                for line in _traffic(stage, compiled, chip, seconds):
                    say(f"  {line}")
            limit = memory_plan.device_limit() if limit is None else limit
            if not limit:
                say("  --device_gb GB says whether it fits")
            elif memory.total <= limit:
                say(f"  fits: {memory_plan.taken(memory, limit)} of each device")
            else:
                too_large.append(name)
                say(f"  does not fit: {memory_plan.taken(memory, limit)}")
                for line in memory_plan.advice(
                    stage, memory, limit, lambda text: say(f"  {text}")
                ):
                    say(f"  {line}")
    if too_large:
        raise InputError(
            f"What does not fit into a device's memory: {', '.join(too_large)}."
        )


def _pretend_devices(count: int) -> None:
    """Makes JAX simulate `count` devices; call it before any device is used."""
    if count < 1:
        raise InputError(f"--devices is {count}; it is a number of devices.")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def _print(name: str, plan: StagePlan, memory: Memory, console: Console) -> None:
    config, spec = plan.config, plan.spec
    _, params = retriever.split(spec)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    encoder = spec.encoder
    views = " + ".join(f"{view} {size:,}" for view, size in spec.views.items())
    operations = plan.operations()
    lines = [
        f"Stage {name}: {count:,} parameters"
        + (f", {plan.trained:,} trained" if plan.trained else "")
        + f"; {encoder.family} of"
        f" {encoder.num_layers} layers, {encoder.hidden_size} wide; views {views}",
        *(f"  {one}" for one in plan.said),
        f"  mesh data {plan.mesh.shape['data']} x model {plan.mesh.shape['model']}"
        + (", fsdp" if config.mesh.fsdp else "")
        + f"; {config.model.dtype}; batch {config.batch_size:,}",
        "  a device's texts x tokens: "
        + "; ".join(f"{model} {shape}" for model, shape in plan.shapes.items())
        + f"; encode_chunk {config.memory.encode_chunk or 'off'}, remat"
        f" {config.memory.remat}",
        *(f"  {note}" for note in plan.notes),
        f"  operations of a step: {operations.both:.3g} (encoder"
        f" {operations.encoder:.3g}, head {operations.head:.3g})",
        f"  memory of a device: {size(memory.total)} = parameters"
        f" {size(memory.params)} + optimizer {size(memory.optimizer)}"
        + (f" + teacher {size(memory.teacher)}" if memory.teacher else "")
        + f" + batch {size(memory.batch)} + activations, gradients and vectors"
        f" {size(memory.step)}",
    ]
    for line in lines:
        console.print(line, highlight=False)


def _traffic(plan: StagePlan, compiled, chip: topology.Chip, seconds: float):
    """What the devices exchange, and how that scales."""
    found = topology.collectives(compiled)
    yield f"compiled in {seconds:.0f} s for {plan.mesh.devices.flat[0].device_kind}"
    each = "; ".join(
        f"{number} {kind} {size(volume)}" for kind, (number, volume) in found.items()
    )
    yield f"exchanged by a device in a step: {each or 'nothing'}"
    exchanged = sum(volume for _, volume in found.values())
    flops = plan.operations().both / plan.mesh.size
    counts = [1, 2, 4, 8, 16, 32, 64]
    shares = topology.efficiency(chip, flops, exchanged, counts)
    yield (
        "expected share of the time in products, each device with the batch it has here"
        f" ({topology.MFU:.0%} of {chip.peak / 1e12:g} TFLOP/s,"
        f" {chip.bandwidth / 1e9:g} GB/s between {chip.near} devices, else"
        f" {chip.network / 1e9:g}; nothing overlaps): "
        + ", ".join(f"{count}: {share:.0%}" for count, share in shares.items())
    )
