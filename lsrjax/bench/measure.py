"""Alternating timings, available and needed memory, and the machine's name."""

import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

# Share of the memory that the plain pooling may take; the rest is for everything else,
# and for copies that the compiler makes beyond the estimate.
NAIVE_SHARE = 0.4


def interleaved_medians(
    runs: Mapping[Any, Callable[[], Any]], repeats: int
) -> dict[Any, float]:
    """Median seconds of each run: one round of warm-up, then `repeats`, in turn."""
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> str:
    """Cores, versions and devices, in words."""
    device = jax.devices()[0]
    available = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if available else os.cpu_count()
    kind = f"{device.platform} ({device.device_kind})"
    count = jax.device_count()
    return f"{cores} cores, jax {jax.__version__}, {count} x {kind}"


def free_bytes(device: jax.Device) -> int | None:
    """Memory of a device that arrays can take; None if unknown."""
    if device.platform == "cpu":
        return host_bytes()
    return (device.memory_stats() or {}).get("bytes_limit")


def host_bytes() -> int:
    """Host memory that this process can take."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.is_file():
        # os.sysconf has free pages too, but counts the file cache as used.
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.M)
        limits += [int(found[1]) * 1024] if found else []
    # A container's limit, in both layouts of cgroups.
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = pathlib.Path("/sys/fs/cgroup") / name
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def naive_bytes(texts: int, length: int, terms: int) -> int:
    """Memory of the plain pooling: float32 logits [B, L, V] and their gradient."""
    return 2 * 4 * texts * length * terms


def left_out(impl: str, needed: int, free: int | None) -> str | None:
    """A note that logits of `needed` bytes do not fit, or None."""
    if free is None or needed <= NAIVE_SHARE * free:
        return None
    return (
        f"{impl}: the logits of all tokens and their gradient take"
        f" {gigabytes(needed)}, more than {NAIVE_SHARE:.0%} of the"
        f" {gigabytes(free)} there are; left out."
    )


def temp_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that the compiler reserves beyond arguments and results, per device."""
    memory = compiled.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


def all_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of a run with arguments and results, per device; 0 if unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        # Donated arguments are the results.
        - memory.alias_size_in_bytes
    )


def gigabytes(count: float) -> str:
    """Bytes in GB, in words."""
    return f"{figure(count / 1e9)} GB"


def megabytes(count: float | None) -> str:
    """Bytes in MB as a figure; `-` if unknown."""
    return "-" if count is None else figure(count / 1e6)


def figure(x: float) -> str:
    """A number with three digits or, from 10 on, at most one decimal."""
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.3g}"
