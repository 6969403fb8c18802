"""Devices of chips that this machine does not have, to compile for; their traffic.

XLA compiles for a TPU slice with libtpu and for Nvidia GPUs with JAX's CUDA plugin, no
chip needed. The compiled program shows what a device stores and what it exchanges with
the others; estimates of time follow from the vendors' data sheets.
"""

import dataclasses
import importlib
import math
import os
import re
from collections import Counter
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from lsrjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Capabilities of a chip, from its data sheet.

    Attributes:
      memory: bytes available to a program.
      peak: FLOP/s of bfloat16 products.
      bandwidth: bytes/s that a device sends to others, one way: of all links of a TPU,
        of NVLink between the GPUs of a host.
      network: the same beyond `near` devices; for a TPU slice equal to `bandwidth`.
      near: devices that the bandwidth applies to.
    """

    memory: float
    peak: float
    bandwidth: float
    network: float
    near: int


CHIPS = {
    "v5e": Chip(16e9, 197e12, 200e9, 200e9, 256),
    "v5p": Chip(95e9, 459e12, 600e9, 600e9, 8960),
    "v6e": Chip(32e9, 918e12, 448e9, 448e9, 256),
    # A network card of 400 Gb/s for each GPU of a host.
    "h100": Chip(80e9, 989e12, 450e9, 50e9, 8),
}
# Products reach this share of the peak; docs/performance.md has the measurements.
MFU = 0.4

# Properties of a GPU that XLA cannot query without one.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """The chip and devices of "v5e:4x4", "h100:8", …; InputError if not available."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise InputError(
            f"--topology is {name!r}; it is a chip ({', '.join(CHIPS)}) and a shape, as"
            " in v5e:4x4, v5p:2x2x1 or h100:8."
        )
    jax.config.update("jax_platforms", "cpu")
    try:
        if kind == "h100":
            return CHIPS[kind], _gpus(math.prod(map(int, shape.split("x"))))
        # Without it, libtpu queries the network for chips.
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        # No chip is used, so other processes may have libtpu open as well.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        importlib.import_module("libtpu")
        return CHIPS[kind], topologies.get_topology_desc(name, "tpu").devices
    except ImportError as error:
        package = "jax-cuda13-plugin" if kind == "h100" else "libtpu"
        raise InputError(
            f"--topology {name} needs {package}, of jax's own version:"
            f" pip install {package}. ({error})"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology {name}: {str(error).splitlines()[0]}") from error


def _gpus(count: int) -> Sequence[jax.Device]:
    plugin = importlib.import_module("jax_plugins.xla_cuda13")
    jax.devices()  # discovers plugins, once; ours may be a second call
    try:
        plugin.initialize()
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise
    hosts = math.ceil(count / CHIPS["h100"].near)
    if count % hosts:
        raise InputError(f"--topology h100:{count}: hosts have 8 GPUs each.")
    shape = f"1x{hosts}x{count // hosts}"
    description = topologies.get_topology_desc(
        "h100", "cuda", target_config=_H100, topology=shape
    )
    return description.devices


_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
_BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVE = re.compile(
    r"= (?P<shapes>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|"
    r"all-to-all|collective-permute)(?:-start)?\("
)
_CALL = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?%?([\w.\-]+)")


def collectives(compiled: jax.stages.Compiled) -> dict[str, tuple[int, int]]:
    """Number and total bytes of the results of each collective in a device's step.

    A collective in a loop counts once per iteration, or once if their number is
    unknown.
    """
    bodies, entry = _computations(compiled.as_text() or "")
    number: Counter = Counter()
    volume: Counter = Counter()

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                number[match["kind"]] += times
                volume[match["kind"]] += times * _bytes_of(match)
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for called in _CALL.findall(line):
                body = f"body=%{called}" in line or f"body={called}" in line
                walk(called, times * int(trips[1]) if trips and body else times)

    walk(entry, 1)
    return {kind: (number[kind], volume[kind]) for kind in sorted(number)}


def _bytes_of(match: re.Match) -> int:
    total = [
        _BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", match["shapes"])
    ]
    # The result of an asynchronous start includes its operands.
    started = "-start(" in match[0] and match["kind"] != "all-reduce"
    return max(total) if started else sum(total)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation of a compiled program, and the entry's name."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = bodies.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None:
            current.append(line)
    return bodies, entry


def efficiency(
    chip: Chip, flops: float, exchanged: float, counts: Sequence[int]
) -> dict[int, float]:
    """Share of the time that products take, by the number of devices.

    Every device keeps its share of the batch, so products take the same time; a ring
    passes (n - 1) / n of the volume, twice for sums, which `exchanged` counts once.
    Assumes no overlap.

    Args:
      flops: of a device in a step.
      exchanged: bytes of the results of a device's collectives in a step.
    """
    products = flops / (chip.peak * MFU)

    def seconds(count: int) -> float:
        rate = chip.bandwidth if count <= chip.near else chip.network
        return 2 * (count - 1) / count * exchanged / rate

    return {count: products / (products + seconds(count)) for count in counts}
