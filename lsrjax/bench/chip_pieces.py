"""The pieces of `chip`: functions that return figures by name."""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.bench import encode, head, measure, peaks, step, torch_side, workload
from lsrjax.bench.workload import PRESETS
from lsrjax.distributed import sharding
from lsrjax.models.backbones.encoder import shapes_of
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.ops import hardware, pallas_pool
from lsrjax.ops.vocab_pool import vocab_pool
from lsrjax.training import compiled_steps

_ROUNDS = 5
# As in configs/align.py and configs/distill.py.
_CUT = {"encode_chunk": 128, "remat": "layer", "parts": 10}
# The load of one device: 16 queries with 9 documents of 512 tokens; pairs and groups as
# for one of eight devices, in chunks.
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "splade-v3": ("splade-v3", {"batch": 16, "fill": 1.0, "parts": 1}),
    "milco stage 1": ("stage 1", {"batch": 256, **_CUT}),
    "milco stage 2": ("stage 2", {"batch": 32, **_CUT}),
}
_TINY = {
    "layers": 1,
    "dim": 16,
    "heads": 2,
    "inner": 32,
    "vocab": 211,
    "length": 16,
    "query_length": 8,
    "batch": 4,
    "encode_chunk": 0,
}


def measure_piece(name: str, preset: str | None = None) -> dict:
    """The figures of a piece of `lsrjax.bench.chip.LIMITS`.

    `preset` is a checkpoint whose shape encoders have in place of BERT base's.
    """
    if name.startswith("step "):
        name = name.removeprefix("step ")
        return _step(name, step_sizes(name, preset))
    if name.startswith("torch step "):
        row, _, compiled = name.removeprefix("torch step ").partition(", ")
        return torch_side.step(step_sizes(row, preset), _ROUNDS, bool(compiled))
    if name == "encoder":
        return _encoder(*encoder_sizes(preset))
    if name == "torch encoder":
        return torch_side.encoder(*encoder_sizes(preset), _ROUNDS)
    return _PIECES[name]()


def on_cpu() -> bool:
    """Whether sizes must be tiny."""
    return jax.default_backend() == "cpu"


def step_sizes(name: str, preset: str | None = None) -> workload.StepSizes:
    """The sizes of a whole step."""
    row, changes = STEPS[name]
    rows = {row: sizes for preset in PRESETS.values() for row, sizes in preset.items()}
    if preset and not rows[row].milco:
        changes = changes | workload.model_sizes(preset)
    if on_cpu():
        changes = changes | {"checkpoint": ""}
        tiny = {"pivot_vocab": 199, "pivot_dim": 8} if rows[row].milco else {}
        changes = changes | _TINY | tiny | {"teacher_layers": 1}
    return dataclasses.replace(rows[row], **changes)


def seconds_of(call: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Median seconds of a call, to the end of its computation, after one warm-up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _machine() -> dict:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch")
    versions = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    size, count = (256, 2**20) if on_cpu() else (8192, 2**29)
    x, y = (
        jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in (0, 1)
    )
    product = jax.jit(lambda x, y: x @ y)
    z = jax.random.normal(jax.random.key(2), (count,), jnp.bfloat16)
    copy = jax.jit(lambda z: z + jnp.ones((), z.dtype))
    moved = 2 * z.nbytes
    return {
        "machine": measure.machine(),
        "versions": ", ".join(versions),
        f"product of {size}^3, bfloat16, TFLOP/s": 2
        * size**3
        / seconds_of(lambda: product(x, y), 20)
        / 1e12,
        "copy, read and written, GB/s": moved / seconds_of(lambda: copy(z), 20) / 1e9,
    }


def _kernels() -> dict:
    """Differences between each kernel and the definition, with exact products."""
    shapes = [(7, 77, 96, 1013), (4, 200, 768, 5003), (3, 512, 768, 30522)]
    impls = ["blocked", "pallas"]
    if on_cpu():
        shapes, impls = [(3, 17, 24, 211)], ["blocked"]
    impls = ["naive", *impls]
    cases = {
        (*shape, impl): _pooled(*shape, impl) for shape in shapes for impl in impls
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda case: case[0].compile(), cases.values())
    results = {
        name: program(*arguments)
        for (name, (_, arguments)), program in zip(cases.items(), compiled, strict=True)
    }
    found: dict[str, object] = {}
    for (B, L, D, V, impl), have in results.items():
        wanted = results[B, L, D, V, "naive"]
        if impl == "naive":
            continue
        name = f"{impl} {B} x {L} x {D} x {V}"
        found[f"{name}: other positions"] = int((have[1] != wanted[1]).sum())
        worst = max(
            float(jnp.abs(x - y).max() / jnp.abs(y).max())
            for x, y in zip(have[:1] + have[2:], wanted[:1] + wanted[2:], strict=True)
        )
        found[f"{name}: largest difference of values and gradients"] = worst
    return found


def _pooled(B: int, L: int, D: int, V: int, impl: str):
    """A program of values, positions and gradients, not compiled; its arguments."""
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(B * L, D)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    b = jnp.asarray(rng.normal(size=V), jnp.float32)
    g = jnp.asarray(rng.normal(size=(B, V)) * (rng.random((B, V)) < 0.01))
    # Two parts if there are enough texts.
    lengths = rng.integers(1, L, B, endpoint=True)
    whole = np.arange(L) < lengths[:, None]
    masks = (jnp.asarray(whole[:1]), jnp.asarray(whole[1:]))

    def both(h, w, b, masks, g):
        def loss(h, w, b):
            top, first = vocab_pool(h, w, b, masks, impl=impl)
            return (top * g).sum(), (top, first)

        grads, values = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(h, w, b)
        return (*values, *grads)

    with jax.default_matmul_precision("highest"):
        return jax.jit(both).lower(h, w, b, masks, g), (h, w, b, masks, g)


def _head() -> dict:
    sizes = {
        "320 x 512 x 768 x 30,522": head.HeadSizes(320, 512, 768, 30522),
        "16 x 256 x 768 x 250,002": head.HeadSizes(16, 256, 768, 250002),
    }
    impls = ["pallas", "blocked"]
    if on_cpu():
        sizes, impls = {"tiny": head.HeadSizes(3, 17, 24, 211)}, ["blocked"]
    found: dict[str, object] = {}
    for name, one in sizes.items():
        inputs, _ = head._inputs(one, 0.01)
        peak = 2 * one.batch * one.length * one.dim * one.vocab
        for impl in impls:
            forward, both, _, temp = head._jax_case(inputs, "bfloat16", impl)
            seconds = seconds_of(forward)
            found[f"{name} {impl}: forward ms"] = 1e3 * seconds
            found[f"{name} {impl}: forward TFLOP/s"] = peak / seconds / 1e12
            found[f"{name} {impl}: forward + backward ms"] = 1e3 * seconds_of(both)
            found[f"{name} {impl}: temporary MB"] = (temp or 0) / 1e6
    return found


# Of the kernel for Hopper, whose tiles have not been chosen on one.
_HOPPER_TILES: dict[str, dict[str, int]] = {
    "as they are": {},
    "cluster 2": {"cluster": 2},
    "cluster 2, chunks 4": {"cluster": 2, "chunks": 4},
    "cluster 2, chunks 4, lag 0": {"cluster": 2, "chunks": 4, "lag": 0},
}


def _hopper() -> dict:
    """The kernel for Hopper beside that in Triton: other values, and times by tiles."""
    device = jax.devices()[0]
    if not hardware.is_cuda(device, 9.0) or hardware.is_cuda(device, 10.0):
        return {"not measured": "for GPUs of compute capability 9.x"}
    from lsrjax.ops.hopper_pool import HopperTiles, hopper

    kernels = {"Triton": partial(pallas_pool.project_max, backend="gpu")}
    for name, sizes in _HOPPER_TILES.items():
        kernels[name] = partial(hopper, tiles=HopperTiles(**sizes))
    found: dict[str, Any] = {}
    # Whole numbers, whose sums are exact in any order.
    for parts, D, V, share in (
        (((5, 7), (4, 611)), 200, 1031, 0.9),
        (((320, 512),), 768, 30522, 1.0),
    ):
        tokens = sum(texts * length for texts, length in parts)
        h, w = (
            jax.random.randint(jax.random.key(i), (n, D), -2, 3).astype(jnp.bfloat16)
            for i, n in enumerate((tokens, V))
        )
        real = jax.random.bernoulli(jax.random.key(2), share, (tokens,)).astype(int)
        wanted = None
        for name, kernel in kernels.items():
            try:
                call = partial(jax.jit(partial(kernel, parts=parts)), h, w, real)
                have = jax.block_until_ready(call())
                wanted = wanted or have
                wrong = [int((x != y).sum()) for x, y in zip(have, wanted, strict=True)]
                found[f"{name}, V {V:,}: other values, positions"] = str(wrong)
                found[f"{name}, V {V:,}: forward ms"] = 1e3 * seconds_of(call)
            except Exception as error:  # a compiler's may be of any class
                found[f"{name}, V {V:,}"] = f"{type(error).__name__}: {error!s:.100}"
    return found


def encoder_sizes(preset: str | None = None) -> tuple[EncoderConfig, int, int]:
    """BERT base, or a checkpoint's encoder, over 144 texts of 512 tokens."""
    config = workload.student_of(step_sizes("splade-v3", preset)).encoder
    return (config, 3, 16) if on_cpu() else (config, 144, 512)


def _encoder(config: EncoderConfig, texts: int, length: int) -> dict:
    family = backbone(config.family)
    model = shapes_of(
        lambda: family.encoder(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    graphdef, abstract = nnx.split(model, nnx.Param)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), abstract
    )
    ids = jax.random.randint(jax.random.key(0), (texts, length), 5, config.vocab_size)
    mask = jnp.ones((texts, length), bool)
    shape = (texts, length, config.hidden_size)
    g = jax.random.normal(jax.random.key(1), shape, jnp.bfloat16)

    @jax.jit
    def both(params, ids, mask, g):
        def total(params):
            states = nnx.merge(graphdef, params)(ids, mask)
            return (states * g).sum(dtype=jnp.float32)

        return jax.grad(total)(params)

    start = time.perf_counter()
    compiled = both.lower(params, ids, mask, g).compile()
    compiling = time.perf_counter() - start
    seconds = seconds_of(lambda: compiled(params, ids, mask, g))
    layer = config.layer_products + 2 * length * config.hidden_size
    operations = 3 * 2 * texts * length * config.num_layers * layer
    return {
        "texts x tokens": f"{texts} x {length}",
        "compile s": compiling,
        "forward + backward ms": 1e3 * seconds,
        "TFLOP/s": operations / seconds / 1e12,
        "temporary GB": (measure.temp_bytes(compiled) or 0) / 1e9,
    }


def _step(name: str, sizes: workload.StepSizes) -> dict:
    sizes.check()
    device = jax.devices()[0]
    mesh = sharding.make_mesh(1, 1, [device])
    with jax.set_mesh(mesh):
        stage = step._stage(sizes, mesh, fsdp=False)
        rows = sharding.local_rows(mesh)
        batch = sharding.to_global(stage.batch, mesh, rows)
        state, teacher = step.arguments(stage)
        start = time.perf_counter()
        state_now = step._random_state(stage)
        jax.block_until_ready(state_now)
        making = time.perf_counter() - start
        start = time.perf_counter()
        lowered = compiled_steps.lowered(stage.step, state, teacher, batch)
        traced = time.perf_counter() - start
        compiled = lowered.compile()
        compiling = time.perf_counter() - start - traced
        if stage.teacher and stage.teacher_layout:
            teacher = step._random_params(stage.teacher, stage.teacher_layout)
        state = state_now
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, teacher, batch))
        first = time.perf_counter() - start
        times = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, teacher, batch))
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    operations = step.operations_of(sizes, stage.batch, 1).both
    peak = peaks.peak(device.device_kind, sizes.dtype)
    return {
        "sizes": step._summary(name, stage),
        "lines of StableHLO": lowered.as_text().count("\n"),
        "random parameters s": making,
        "trace s": traced,
        "compile s": compiling,
        "first step s": first,
        "loss": float(metrics["loss"]),
        "step ms": 1e3 * seconds,
        "tokens/s": stage.tokens / seconds,
        "TFLOP/s": operations / seconds / 1e12,
        "share of the peak": operations / seconds / peak if peak else "-",
        "temporary GB": (measure.temp_bytes(compiled) or 0) / 1e9,
        "peak GB": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9,
    }


def _encode(dtype: str) -> dict:
    sizes = encode.EncodeSizes(20000, 128, 256, 12, 768, 12, 3072, dtype)
    if on_cpu():
        sizes = encode.EncodeSizes(16, 64, 256, 1, 16, 2, 32, dtype)
    texts = encode.documents(sizes.texts)
    model = encode.random_model("splade", sizes, 0.01, texts)
    device, seconds = encode.compared(model, texts, sizes, repeats=2)
    rates = {
        f"{name}: texts/s": sizes.texts / of
        for name, of in seconds.items()
        if name.startswith((encode.OURS, encode.THEIRS))
    }
    return {"texts": sizes.texts, "theirs on": device} | seconds | rates


_PIECES: dict[str, Callable[[], dict]] = {
    "machine": _machine,
    "kernels": _kernels,
    "head": _head,
    "kernel for Hopper": _hopper,
    "encode float32": partial(_encode, "float32"),
    "encode bfloat16": partial(_encode, "bfloat16"),
}
