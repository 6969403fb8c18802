"""Measures the parts that decide the speed of a run, on the machine at hand.

`python -m lsrjax.bench head` compares the fused vocabulary projection and max with the
plain one, and with PyTorch where it is installed.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from lsrjax.ops.vocab_pool import vocab_pool

HEAD_IMPLS = ("naive", "blocked", "pallas", "torch")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark named on the command line."""
    args = _parser().parse_args(argv)
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lsrjax.bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    head = commands.add_parser(
        "head",
        help="vocabulary projection and max over tokens, forward and backward",
        description=(
            "Times logits = h @ w.T + b followed by the max over tokens, forward and "
            "with gradients for h, w and b of sum(log1p(relu(max)) * random). The "
            "bias is set so that the asked share of terms is active, which is what "
            "the fused backward pass depends on. Implementations take turns, so a "
            "machine that slows down slows all of them; medians are shown."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    head.add_argument("--batch", type=_positive, default=64, help="texts")
    head.add_argument("--length", type=_positive, default=64, help="tokens per text")
    head.add_argument("--dim", type=_positive, default=128, help="hidden size")
    head.add_argument("--vocab", type=_positive, default=8192, help="terms")
    head.add_argument(
        "--active",
        type=_share,
        default=0.01,
        help="share of terms per text with a positive weight, 0 to 1; trained models "
        "have about 0.01, a fresh head up to 1",
    )
    head.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the states and of the products; weights stay float32 in JAX",
    )
    head.add_argument("--repeats", type=_positive, default=10, help="timed rounds")
    head.add_argument(
        "--impl",
        nargs="+",
        choices=HEAD_IMPLS,
        default=HEAD_IMPLS,
        help="what to time; pallas needs a GPU or TPU and torch has to be installed, "
        "else they are left out with a note",
    )
    head.set_defaults(run=_head)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def _head(args: argparse.Namespace) -> None:
    console = Console()
    inputs, active = _head_inputs(args)
    # Per implementation: forward, forward + backward, and their temporary bytes.
    cases: dict[str, tuple[Callable, Callable, Any, Any]] = {}
    for impl in dict.fromkeys(args.impl):
        if impl == "torch":
            case = _torch_head(inputs, args.dtype)
            if case is None:
                console.print("PyTorch is not installed here; left out.")
                continue
        elif impl == "pallas" and jax.default_backend() == "cpu":
            console.print("The Pallas kernels need a GPU or TPU; left out.")
            continue
        else:
            case = _jax_head(inputs, args.dtype, impl)
        cases[impl] = case
    runs = {(impl, i): cases[impl][i] for impl in cases for i in (0, 1)}
    medians = interleaved_medians(runs, args.repeats)

    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    console.print(
        f"{cores or os.cpu_count()} cores, jax {jax.__version__}, "
        f"{device.platform} ({device.device_kind}); median of {args.repeats}"
    )
    table = Table(
        title=f"head: B {args.batch}, L {args.length}, D {args.dim}, V {args.vocab}, "
        f"{args.dtype}, {active:.2%} active"
    )
    table.add_column("impl")
    for column in (
        *("forward ms", "speed-up", "temp MB"),
        *("fwd + bwd ms", "speed-up", "temp MB"),
    ):
        table.add_column(column, justify="right")
    for impl, case in cases.items():
        row = []
        for i in (0, 1):
            seconds = medians[impl, i]
            base = medians.get(("naive", i))
            row.append(f"{seconds * 1e3:.1f}")
            row.append(f"{base / seconds:.2f}x" if base else "-")
            row.append("-" if case[2 + i] is None else f"{case[2 + i] / 1e6:.1f}")
        table.add_row(impl, *row)
    console.print(table)
    console.print(
        "speed-up: naive time / time; temp MB: what the compiler reserves beyond "
        "arguments and results."
    )


def interleaved_medians(
    runs: dict[Any, Callable[[], Any]], repeats: int
) -> dict[Any, float]:
    """Calls all runs in turn, `repeats` rounds after one of warm-up.

    Args:
      runs: functions of no argument which return when their work is done.
      repeats: timed rounds.

    Returns:
      Median seconds of each run.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _head_inputs(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], float]:
    """Random inputs as numpy, and the share of terms which are active with them."""
    rng = np.random.default_rng(0)
    B, L, D, V = args.batch, args.length, args.dim, args.vocab
    h_BLD = rng.standard_normal((B, L, D), np.float32)
    w_VD = rng.standard_normal((V, D), np.float32) / np.float32(np.sqrt(D))
    lengths_B = rng.integers(max(1, L // 2), L, size=B, endpoint=True)
    mask_BL = np.arange(L) < lengths_B[:, None]
    zero_V = np.zeros(V, np.float32)
    top_BV = np.asarray(jax.jit(vocab_pool)(h_BLD, w_VD, zero_V, mask_BL)[0])
    # A margin, so that rounding to a shorter dtype cannot cross at the ends.
    if args.active == 0:
        threshold = top_BV.max() + 1
    elif args.active == 1:
        threshold = top_BV.min() - 1
    else:
        threshold = np.quantile(top_BV, 1 - args.active)
    inputs = {
        "h": h_BLD,
        "w": w_VD,
        "b": np.full(V, -threshold, np.float32),
        "mask": mask_BL,
        "cotangent": rng.standard_normal((B, V), np.float32),
    }
    return inputs, float((top_BV > threshold).mean())


def _jax_head(inputs: dict[str, np.ndarray], dtype: str, impl: str) -> tuple:
    h, w, b, mask, cotangent = (jnp.asarray(x) for x in inputs.values())
    h = h.astype(dtype)

    def forward(h, w, b):
        return vocab_pool(h, w, b, mask, impl=impl)[0]

    def loss(h, w, b):
        return (jnp.log1p(jax.nn.relu(forward(h, w, b))) * cotangent).sum()

    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    compiled = [jax.jit(f).lower(h, w, b).compile() for f in (forward, both)]
    runs = [lambda f=f: jax.block_until_ready(f(h, w, b)) for f in compiled]
    return (*runs, *map(_temp_bytes, compiled))


def _temp_bytes(compiled: jax.stages.Compiled) -> int | None:
    memory = compiled.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


def _torch_head(inputs: dict[str, np.ndarray], dtype: str) -> tuple | None:
    """The same in PyTorch, on its CPU; None if it is not installed."""
    try:
        import torch
    except ImportError:
        return None
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


if __name__ == "__main__":
    main()
