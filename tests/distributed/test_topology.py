"""Chips that are not here: their names, what a program exchanges, how it scales."""

import importlib.util
import os
import subprocess
import sys

import pytest

from lsrjax.distributed import topology
from lsrjax.errors import InputError

PROGRAM = """\
HloModule jit_step

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ar = f32[8,4]{1,0} all-reduce(%x), replica_groups={}, to_apply=%sum
  %inner = (s32[], f32[8,4]) while(%t), condition=%c2, body=%deep
}

%deep (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %cp = bf16[16]{0} collective-permute(%y), source_target_pairs={{0,1}}
}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %ag = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%z), dimensions={0}
  %agd = f32[16,4]{1,0} all-gather-done(%ag)
  %both = (f32[3]{0}, s32[5]{0}) all-reduce(%a, %b), to_apply=%sum
}
"""  # noqa: E501


class Compiled:
    def as_text(self):
        return PROGRAM


def test_exchanges_are_counted_as_often_as_their_loop_runs():
    assert topology.collectives(Compiled()) == {
        "all-gather": (1, 16 * 4 * 4),
        "all-reduce": (13, 12 * 8 * 4 * 4 + 3 * 4 + 5 * 4),
        "collective-permute": (12, 12 * 16 * 2),
    }


def test_a_ring_passes_what_is_summed_twice():
    chip = topology.Chip(1.0, 1e12, bandwidth=1e9, network=1e8, near=4)
    # Products take half a second, a ring of 4 devices 2 * 3/4 of a second.
    # At 40 % of the peak, as measured (docs/performance.md).
    flops = 0.5 * 1e12 * 0.4
    found = topology.efficiency(chip, flops, 1e9, [1, 4, 8])
    assert found[1] == 1
    assert found[4] == pytest.approx(0.5 / (0.5 + 1.5))
    assert found[8] == pytest.approx(0.5 / (0.5 + 2 * 7 / 8 * 10))


@pytest.mark.parametrize(
    "name", ["h100", "v9:2x2", "v5e:0x4", "v5e:4x", "h100:8;x", ""]
)
def test_a_name_that_is_no_topology_is_refused(name):
    with pytest.raises(InputError, match="v5e:4x4"):
        topology.devices(name)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match="pip install libtpu"):
        topology.devices("v5e:2x2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "kind"),
    [
        ("v5e:2x2", "libtpu", "TPU v5 lite"),
        ("h100:2", "jax_plugins.xla_cuda13", "NVIDIA H100"),
    ],
)
def test_a_program_is_compiled_for_chips_that_are_not_here(name, package, kind):
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{package} is not installed")
    code = f"""
import jax
from lsrjax.distributed import sharding, topology
chip, devices = topology.devices({name!r})
mesh = sharding.make_mesh(-1, 1, devices)
where = sharding.over_data(mesh)
x = jax.ShapeDtypeStruct((8 * len(devices), 128), "float32", sharding=where)
with jax.set_mesh(mesh):
    step = jax.jit(lambda x: x.T @ x, out_shardings=sharding.replicated(mesh))
    compiled = step.lower(x).compile()
print(devices[0].device_kind, topology.collectives(compiled))
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert kind in done.stdout
    assert "(1, 65536)" in done.stdout  # the sum of all devices' products
