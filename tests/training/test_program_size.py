"""The size of the lowered step, which the time to compile follows."""

import dataclasses

import jax
import pytest

from lsrjax.bench import step, workload
from lsrjax.distributed import sharding
from lsrjax.training import compiled_steps

SMALL = {
    "dim": 16,
    "heads": 2,
    "inner": 32,
    "vocab": 211,
    "pivot_vocab": 199,
    "pivot_dim": 8,
    "batch": 32,
    "encode_chunk": 128,
    "remat": "layer",
    "parts": 10,
}


def lowered(layers: int, **changes) -> tuple[int, list]:
    """Lines of StableHLO of MILCO's second stage, and its parts."""
    sizes = workload.PRESETS["milco"]["stage 2"]
    sizes = dataclasses.replace(sizes, **(SMALL | {"layers": layers} | changes))
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        stage = step._stage(sizes, mesh, fsdp=False)
        batch = sharding.to_global(stage.batch, mesh, [0])
        text = compiled_steps.lowered(
            stage.step, *step.arguments(stage), batch
        ).as_text()
    return text.count("\n"), stage.batch["student"]["parts"]


@pytest.fixture(scope="module")
def six():
    return lowered(6)


def test_layers_that_are_computed_again_cost_no_lines(six):
    assert lowered(12)[0] == six[0]


def test_the_step_of_the_second_stage_is_no_longer_than_it_was(six):
    lines, parts = six
    assert len(parts) == 10
    # 9,979 on a CPU, with attention written out and products of the head by part.
    # configs/distill.py, with dropout, has 7,414 on an H100.
    assert lines < 10_200


def test_a_part_costs_less_than_a_tenth_of_the_step(six):
    """What is computed token by token stands there once for all parts."""
    fewer, parts = lowered(6, parts=5)
    assert len(parts) == 5
    assert (six[0] - fewer) / 5 < 0.1 * fewer
