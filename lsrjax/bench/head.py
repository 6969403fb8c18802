"""`head`: the vocabulary projection and max over tokens, forward and backward."""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from lsrjax.bench import measure, peaks
from lsrjax.bench.sizes import add_flags, positive, resolve, share, size
from lsrjax.errors import InputError
from lsrjax.ops.vocab_pool import vocab_pool

IMPLS = ("naive", "blocked", "pallas", "torch")
# Implementations that make the logits of all tokens.
_PLAIN = ("naive", "torch")


@dataclasses.dataclass(frozen=True)
class HeadSizes:
    """Sizes of the operation."""

    batch: int = size(64, "texts")
    length: int = size(64, "tokens per text")
    dim: int = size(128, "hidden size")
    vocab: int = size(8192, "terms")


PRESETS = {
    "splade-v3": {"splade-v3": HeadSizes(320, 512, 768, 30522)},
    "xlmr-base-250k": {"xlmr-base-250k": HeadSizes(16, 256, 768, 250002)},
    "milco": {
        "milco stage 1": HeadSizes(512, 256, 768, 30522),
        "milco stage 2": HeadSizes(1024, 256, 768, 30522),
    },
}

_DESCRIPTION = """\
Times logits = h @ w.T + b followed by the max over tokens, forward and with gradients
for h, w and b of sum(log1p(relu(max)) * random). The bias is set so that the asked
share of terms is active, which is what the fused backward pass depends on.
Implementations take turns, so a machine that slows down slows all of them; medians are
shown.

An implementation that makes the logits of all tokens (naive, torch) is left out, with a
note, where they and their gradient (8 * B * L * V bytes) would take more than 40 % of
the memory.

Presets:
  splade-v3       B 320, L 512, D 768, V 30,522: 32 queries with 9 documents each
  xlmr-base-250k  B 16, L 256, D 768, V 250,002: SPLADE over the vocabulary of XLM-R
  milco           D 768, V 30,522 (the head of splade-v3), L 256; of configs/align.py
                  and configs/distill.py, run on 8 devices:
                  stage 1: B 512, translation and English of 256 pairs. A device has
                  1,024 of the 8,192 pairs, hence four times this, and the loader's
                  four parts by length have 512 texts each on average;
                  stage 2: B 1,024, the documents of a device's 128 of the 1,024
                  queries in groups of 8. The queries, 128 x 64 tokens, would add 3 %.
"""


def add_command(commands) -> None:
    """Adds `head` to the program's commands."""
    parser = commands.add_parser(
        "head",
        help="vocabulary projection and max over tokens, forward and backward",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, HeadSizes, PRESETS)
    parser.add_argument(
        "--active",
        type=share,
        default=0.01,
        help="share of terms per text with a positive weight, 0 to 1; trained models "
        "have about 0.01, a fresh head up to 1 (default: 0.01)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the states and of the products; weights stay float32 in JAX "
        "(default: float32)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=10, help="timed rounds (default: 10)"
    )
    parser.add_argument(
        "--impl",
        nargs="+",
        choices=IMPLS,
        default=IMPLS,
        help="what to time; pallas needs a GPU or TPU and torch, timed on the CPU, has "
        "to be installed, else they are left out with a note (default: all)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures and prints a table for each of the sizes."""
    console = Console()
    console.print(f"{measure.machine()}; median of {args.repeats}", highlight=False)
    for name, sizes in resolve(args, HeadSizes(), PRESETS, "head").items():
        _measure(console, name, sizes, args)
    console.print(
        "speed-up: naive time / time; temp MB: what the compiler reserves beyond "
        "arguments and results."
    )


def _measure(console: Console, name: str, sizes: HeadSizes, args) -> None:
    _check_fits(sizes)
    impls = []
    for impl in dict.fromkeys(args.impl):
        note = _left_out(impl, sizes)
        if note:
            console.print(note, highlight=False)
        else:
            impls.append(impl)
    if not impls:
        return
    inputs, active = _inputs(sizes, args.active)
    # Per implementation: forward, forward + backward, and their temporary bytes.
    cases: dict[str, tuple] = {
        impl: _torch_case(inputs, args.dtype)
        if impl == "torch"
        else _jax_case(inputs, args.dtype, impl)
        for impl in impls
    }
    runs = {(impl, i): cases[impl][i] for impl in cases for i in (0, 1)}
    medians = measure.interleaved_medians(runs, args.repeats)
    table = Table(
        title=f"{name}: B {sizes.batch}, L {sizes.length}, D {sizes.dim}, "
        f"V {sizes.vocab}, {args.dtype}, {active:.2%} active"
    )
    table.add_column("impl")
    for column in (
        *("forward ms", "speed-up", "temp MB"),
        *("fwd + bwd ms", "speed-up", "temp MB"),
    ):
        table.add_column(column, justify="right")
    for impl, case in cases.items():
        row: list[str] = []
        for i in (0, 1):
            seconds = medians[impl, i]
            base = medians.get(("naive", i))
            row.append(measure.figure(seconds * 1e3))
            row.append(f"{base / seconds:.2f}x" if base else "-")
            row.append(measure.megabytes(case[2 + i]))
        table.add_row(impl, *row)
    console.print(table)
    on_device = [impl for impl in impls if impl != "torch"]
    _print_utilisation(console, sizes, args.dtype, on_device, medians)


def _print_utilisation(console, sizes: HeadSizes, dtype: str, impls, medians) -> None:
    peak = peaks.peak(jax.devices()[0].device_kind, dtype)
    if peak is None:
        return
    table = Table(title=f"of the dense peak of {peak / 1e12:g} TFLOP/s, {dtype}")
    table.add_column("impl")
    for when in ("forward", "fwd + bwd"):
        table.add_column(f"{when} TFLOP/s", justify="right")
        table.add_column("utilisation", justify="right")
    operations = 2 * sizes.batch * sizes.length * sizes.dim * sizes.vocab
    for impl in impls:
        row = []
        for i, times in enumerate((1, 3)):
            rate = times * operations / medians[impl, i]
            row += [measure.figure(rate / 1e12), f"{rate / peak:.1%}"]
        table.add_row(impl, *row)
    console.print(table)
    console.print(
        "TFLOP/s: 2 B L D V forward, three times that with a dense backward pass; "
        "where few terms are active the fused one computes less and may pass 100 %."
    )


def _check_fits(sizes: HeadSizes) -> None:
    """Refuses sizes whose arguments and gradients alone do not fit."""
    B, L, D, V = sizes.batch, sizes.length, sizes.dim, sizes.vocab
    needed = 4 * (3 * B * L * D + 3 * V * D + 4 * B * V)
    free = measure.free_bytes(jax.devices()[0])
    if free is not None and needed > free:
        raise InputError(
            f"Arguments and gradients of B {B}, L {L}, D {D}, V {V} take"
            f" {measure.gigabytes(needed)}, but there are {measure.gigabytes(free)}."
            " Take smaller sizes."
        )


def _left_out(impl: str, sizes: HeadSizes) -> str | None:
    if impl == "pallas" and jax.default_backend() == "cpu":
        return "pallas: the kernels need a GPU or TPU; left out."
    if impl == "torch":
        try:
            import torch  # noqa: F401
        except ImportError:
            return "torch: PyTorch is not installed here; left out."
    if impl not in _PLAIN:
        return None
    needed = measure.naive_bytes(sizes.batch, sizes.length, sizes.vocab)
    device = jax.devices("cpu" if impl == "torch" else None)[0]
    return measure.left_out(impl, needed, measure.free_bytes(device))


def _inputs(sizes: HeadSizes, active: float) -> tuple[dict[str, np.ndarray], float]:
    """Random inputs as numpy, and the share of terms that are active with them."""
    rng = np.random.default_rng(0)
    B, L, D, V = sizes.batch, sizes.length, sizes.dim, sizes.vocab
    h_BLD = rng.standard_normal((B, L, D), np.float32)
    w_VD = rng.standard_normal((V, D), np.float32) / np.float32(np.sqrt(D))
    lengths_B = rng.integers(max(1, L // 2), L, size=B, endpoint=True)
    mask_BL = np.arange(L) < lengths_B[:, None]
    zero_V = np.zeros(V, np.float32)
    top_BV = np.asarray(jax.jit(vocab_pool)(h_BLD, w_VD, zero_V, mask_BL)[0])
    # A margin, so that rounding to a shorter dtype cannot cross 0 at the extremes.
    if active == 0:
        threshold = top_BV.max() + 1
    elif active == 1:
        threshold = top_BV.min() - 1
    else:
        threshold = np.quantile(top_BV, 1 - active)
    inputs = {
        "h": h_BLD,
        "w": w_VD,
        "b": np.full(V, -threshold, np.float32),
        "mask": mask_BL,
        "cotangent": rng.standard_normal((B, V), np.float32),
    }
    return inputs, float((top_BV > threshold).mean())


def _jax_case(inputs: dict[str, np.ndarray], dtype: str, impl: str) -> tuple:
    h, w, b, mask, cotangent = (jnp.asarray(x) for x in inputs.values())
    h = h.astype(dtype)

    # The mask and the cotangent are arguments: the compiler would fold constants.
    def forward(h, w, b, mask):
        return vocab_pool(h, w, b, mask, impl=impl)[0]

    def loss(h, w, b, mask, cotangent):
        weights = jnp.log1p(jax.nn.relu(forward(h, w, b, mask)))
        return (weights * cotangent).sum()

    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    calls = ((forward, (h, w, b, mask)), (both, (h, w, b, mask, cotangent)))
    compiled = [jax.jit(f).lower(*values).compile() for f, values in calls]
    runs = [
        lambda f=f, values=values: jax.block_until_ready(f(*values))
        for f, (_, values) in zip(compiled, calls, strict=True)
    ]
    return (*runs, *map(measure.temp_bytes, compiled))


def _torch_case(inputs: dict[str, np.ndarray], dtype: str) -> tuple:
    """The same in PyTorch, on its CPU."""
    import torch

    h, w, b, mask, cotangent = (torch.from_numpy(x) for x in inputs.values())
    h, w, b = (x.to(getattr(torch, dtype)).requires_grad_() for x in (h, w, b))

    def pool():
        logits_BLV = torch.einsum("bld,vd->blv", h, w) + b
        return logits_BLV.masked_fill(~mask[:, :, None], -torch.inf).max(dim=1).values

    def forward():
        with torch.no_grad():
            return pool()

    def both():
        loss = (torch.log1p(torch.relu(pool())) * cotangent).sum()
        return torch.autograd.grad(loss, (h, w, b))

    return forward, both, None, None
