"""The compiled training and encoding steps on eight devices, as text.

python step_hlo.py OUT.json CASE… with CASE = task:data:model:fsdp and task = kl |
infonce | alignment | encode
"""

import json
import os
import sys

from launch import QUICK

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"

import jax
import jax.numpy as jnp
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lsrjax.config.fields import get_default
from lsrjax.distributed import sharding
from lsrjax.losses import objective
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import train_step
from lsrjax.training.batch_contents import Contents

# Large enough that [texts, tokens, terms], even one device's part of it, is larger than
# anything else.
EXAMPLES, GROUP, LENGTH, TERMS, HIDDEN = 16, 3, 16, 2**16, 16


def encoder(family, vocab):
    return tiny.encoder(
        family,
        vocab_size=vocab,
        hidden_size=HIDDEN,
        num_heads=8,
        intermediate_size=32,
        max_positions=LENGTH + 2,
        type_vocab_size=1,
        pad_token_id=0,
    )


TEACHER = RetrieverSpec.of("splade", encoder("bert", TERMS), tied=True)
STUDENT = RetrieverSpec.of(
    "milco",
    encoder("xlm-roberta", 4096),
    pivot_vocab_size=TERMS,
    pivot_hidden_size=HIDDEN,
    lexecho=True,
)


def compiled(task, data, model, fsdp) -> str:
    mesh = sharding.make_mesh(data, model, jax.devices()[: data * model])

    def lying(spec, shape, dtype):
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def abstract(spec):
        graphdef, params = retriever.split(spec)
        layout = sharding.layout(params, mesh, num_heads=8, fsdp=fsdp)
        return graphdef, placed(params, layout), layout

    def placed(tree, layout):
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=where
            ),
            tree,
            layout.shardings(tree),
        )

    def text(count):
        part = lying(P("data"), (count, LENGTH), jnp.int32)
        return {"ids": part, "mask": part}

    def texts(**counts):
        def row(count, dtype=jnp.int32):
            return lying(P("data"), (count,), dtype)

        count = sum(counts.values())
        parts = tuple(
            text(n) | {"query": row(n, jnp.bool_), "number": row(n)}
            for n in (count // 2, count - count // 2)
        )
        return {"parts": parts, "place": {name: row(n) for name, n in counts.items()}}

    with jax.set_mesh(mesh):
        graphdef, params, layout = abstract(STUDENT)
        if task == "encode":
            step = jax.jit(lambda p, t: retriever.apply(graphdef, p, t))
            return step.lower(params, text(64)).compile().as_text()
        config = get_default()
        config.loss = {task: {}}
        config.data.group_size = 1 if task == "alignment" else GROUP
        teacher = TEACHER if task == "alignment" else None
        step = train_step.make_step(config, 10, STUDENT, teacher)
        state = jax.eval_shape(lambda p: train_step.init_state(step, p), params)
        state = placed(state, layout)
        counts = {
            name: EXAMPLES * count for name, count in Contents.of(config).texts.items()
        }
        batch = {"student": texts(**counts), "targets": {}}
        if task == "alignment":
            batch["teacher"] = texts(teacher=EXAMPLES)
        arrays = objective.of(config.loss).arrays(EXAMPLES, config.data.group_size)
        for name, array in arrays.items():
            batch["targets"][name] = lying(P("data"), array.shape, array.dtype)
        lies = jax.tree.map(lambda leaf: leaf.sharding, state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(lies, None))
        teacher_params = abstract(TEACHER)[1] if teacher else None
        return jitted.lower(state, teacher_params, batch).compile().as_text()


if __name__ == "__main__":
    results = {}
    for case in sys.argv[2:]:
        task, data, model, fsdp = case.split(":")
        results[case] = compiled(task, int(data), int(model), fsdp == "1")
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file)
