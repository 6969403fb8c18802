"""`attention`: attention within a window, by a mask and in blocks."""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from lsrjax.bench import measure
from lsrjax.bench.sizes import add_flags, not_negative, positive, resolve, size
from lsrjax.models.backbones import local_attention

_DESCRIPTION = """\
Times the attention of a local layer with its gradients, forward and backward: with a
mask over the products of all pairs of tokens, and in blocks, which make only those that
a window can reach. They take turns, so a machine that slows down slows both; medians
are shown. The defaults are those of ModernBERT-base.
"""


@dataclasses.dataclass(frozen=True)
class AttentionSizes:
    """Sizes of the operation."""

    batch: int = size(2, "texts")
    length: int = size(1024, "tokens per text")
    heads: int = size(12, "attention heads")
    width: int = size(64, "of a head")
    left: int = size(64, "tokens that a token sees to the left", type=not_negative)
    right: int = size(64, "to the right", type=not_negative)
    dtype: str = size("float32", "of the products", choices=("float32", "bfloat16"))


def add_command(commands) -> None:
    """Adds `attention` to the program's commands."""
    parser = commands.add_parser(
        "attention",
        help="attention within a window, by a mask and in blocks",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, AttentionSizes, {})
    parser.add_argument(
        "--repeats", type=positive, default=5, help="timed rounds (default: 5)"
    )
    parser.set_defaults(run=run, preset=None)


def run(args: argparse.Namespace) -> None:
    """Measures and prints the table."""
    (sizes,) = resolve(args, AttentionSizes(), {}, "attention").values()
    window = (sizes.left, sizes.right)
    compiled = {
        "mask": _compiled(sizes, functools.partial(_masked, window=window)),
        "blocks": _compiled(
            sizes, functools.partial(local_attention.local_attention, window=window)
        ),
    }
    keys = jax.random.split(jax.random.key(0), 4)
    shape, seen = _arguments(sizes)
    qkvg = [jax.random.normal(key, shape.shape, shape.dtype) for key in keys]
    seen = jnp.ones(seen.shape, bool)

    def once(step):
        jax.block_until_ready(step(*qkvg, seen))

    seconds = measure.interleaved_medians(
        {name: functools.partial(once, step) for name, step in compiled.items()},
        args.repeats,
    )
    taken = "blocks" if local_attention.pays(sizes.length, window) else "mask"
    table = Table(title=f"{sizes.batch} texts of {sizes.length} tokens, {window}")
    for column in ("attention", "ms", "speed-up", "temp MB"):
        table.add_column(column, justify="right")
    for name, step in compiled.items():
        table.add_row(
            name + " (in training)" * (name == taken),
            measure.figure(1e3 * seconds[name]),
            f"{seconds['mask'] / seconds[name]:.2f}x",
            measure.megabytes(measure.temp_bytes(step)),
        )
    Console().print(measure.machine(), table, sep="\n", highlight=False)


def _arguments(sizes: AttentionSizes):
    shape = (sizes.batch, sizes.length, sizes.heads, sizes.width)
    array = jax.ShapeDtypeStruct(shape, jnp.dtype(sizes.dtype))
    return array, jax.ShapeDtypeStruct(shape[:2], jnp.bool_)


def _masked(q, k, v, seen, window):
    return jax.nn.dot_product_attention(
        q, k, v, mask=seen[:, None, None, :], local_window_size=window
    )


def _compiled(sizes: AttentionSizes, attention) -> jax.stages.Compiled:
    """The gradients of queries, keys and values."""

    def gradients(q, k, v, g, seen):
        def total(q, k, v):
            return (attention(q, k, v, seen) * g).sum(dtype=jnp.float32)

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    array, seen = _arguments(sizes)
    return jax.jit(gradients).lower(*[array] * 4, seen).compile()
