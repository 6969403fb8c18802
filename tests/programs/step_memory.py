"""What the plan of a step says it takes, and what the step then takes on a CPU.

python step_memory.py LAYERS TEXTS LENGTH HIDDEN REMAT CHUNK; prints both in bytes.
"""

import ctypes
import pathlib
import sys
import time

import jax
import numpy as np
import tiny

from lsrjax.config.fields import get_default
from lsrjax.data.batching.length_shapes import Shape
from lsrjax.distributed import sharding
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import compiled_steps, memory_plan, train_step

GROUP = 7


def resident(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def settled() -> int:
    """What is resident once all that was freed has gone back to the system.

    A step's temporary memory may be freed after its results are there.
    """
    before, now = float("inf"), resident("VmRSS")
    while now < before:
        time.sleep(0.2)
        before, now = now, resident("VmRSS")
    return now


def main(layers, queries, length, hidden, remat, chunk):
    encoder = tiny.encoder(
        vocab_size=8192,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=4,
        intermediate_size=4 * hidden,
        max_positions=512,
    )
    spec = RetrieverSpec.of("splade", encoder, tied=True)
    config = get_default()
    config.loss, config.data.group_size = {"kl": {}}, GROUP
    config.batch_size = queries
    config.regularizer.query = config.regularizer.document = 1e-3
    config.memory.remat, config.memory.encode_chunk = remat, chunk
    config.model.dropout = 0.0
    mesh = sharding.make_mesh(1, 1)
    texts = queries * (1 + GROUP)
    shapes = {"student": Shape(((texts, length),))}
    stage = memory_plan.StagePlan(config, spec, None, mesh, shapes)
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        planned = stage.memory().total
        step = train_step.make_step(config, 1000, spec)
        take = compiled_steps.CompiledSteps(step)
        params = jax.tree.map(
            lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
            retriever.split(spec)[1],
        )
        where = sharding.layout(params, mesh, num_heads=4, fsdp=False)

        def state():
            init = jax.jit(lambda p: train_step.init_state(step, p))
            lies = where.shardings(jax.eval_shape(init, params))
            return jax.jit(init, out_shardings=lies)(params)

        part = {
            "ids": rng.integers(1, 8192, (texts, length)).astype(np.int32),
            "mask": np.ones((texts, length), np.int32),
            "query": np.arange(texts) < queries,
            "number": np.arange(texts, dtype=np.int32),
        }
        place = np.split(np.arange(texts, dtype=np.int32), [queries])
        place = dict(zip(("query", "document"), place, strict=True))
        batch = {
            "student": {"parts": (part,), "place": place},
            "targets": {"scores": rng.normal(size=(queries, GROUP)).astype("f4")},
        }
        batch = sharding.to_global(batch, mesh, [0])
        # Once, so that the compiler's own memory is not counted.
        jax.block_until_ready(take(state(), None, batch))
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = settled()
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        current = state()
        current, _ = take(current, None, batch)
        jax.block_until_ready(current)
    print(planned, resident("VmHWM") - before)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5], int(sys.argv[6]))
