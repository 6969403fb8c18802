"""Which device a computation is traced for, and whether it is a CUDA device."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from lsrjax.ops import hardware, vocab_pool


def mesh_of(device):
    # As `sharding.make_mesh`; newer releases of JAX have explicit axes by default.
    return AbstractMesh(
        (2, 2),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        abstract_device=device,
    )


def abstract(kind, platform="gpu"):
    return AbstractDevice(kind, None, platform)


def test_without_a_mesh_it_is_the_first_device():
    assert hardware.device() is jax.devices()[0]
    nothing = jax.sharding.Mesh(np.empty((), object), ())
    with jax.set_mesh(nothing):
        assert hardware.device() is jax.devices()[0]


def test_in_a_mesh_of_devices_that_are_here_it_is_the_first_one():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        assert hardware.device() is jax.devices()[0]
        found = jax.eval_shape(lambda: found_in([]))
    assert found is None and hardware.device() is jax.devices()[0]


def found_in(seen):
    """Notes the device while it is traced."""
    seen.append(hardware.device())


@pytest.mark.parametrize(
    "device", [abstract("NVIDIA H100 80GB HBM3"), abstract("TPU v5e", "tpu")]
)
def test_in_a_mesh_of_devices_that_are_not_here_it_is_theirs(device):
    seen = []

    def traced(x):
        found_in(seen)
        return jax.shard_map(
            lambda x: found_in(seen) or x,
            in_specs=P("data", "model"),
            out_specs=P("data", "model"),
        )(x)

    with jax.sharding.use_abstract_mesh(mesh_of(device)):
        found_in(seen)
        jax.eval_shape(jax.jit(traced), jax.ShapeDtypeStruct((4, 6), np.float32))
    assert seen == [device] * 3
    assert hardware.device() is jax.devices()[0]


def real(capability, version="PJRT C API cuda 12090", platform="gpu"):
    """What is looked at of a device that is here."""
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(
        platform=platform, client=client, compute_capability=capability
    )


@pytest.mark.parametrize(
    ("device", "least", "wanted"),
    [
        (real("9.0"), 8.0, True),
        (real("8.0"), 8.0, True),
        (real("7.5"), 8.0, False),
        # As numbers, not as strings.
        (real("10.0"), 9.0, True),
        (real("12.0"), 8.0, True),
        (real("9.0", version="rocm 60300"), 8.0, False),
        (abstract("NVIDIA A100-SXM4-80GB"), 8.0, True),
        (abstract("NVIDIA A100-SXM4-80GB"), 9.0, False),
        (abstract("NVIDIA H100 80GB HBM3"), 9.0, True),
        (abstract("NVIDIA H200", "cuda"), 9.0, True),
        (abstract("NVIDIA L40S"), 8.9, True),
        (abstract("NVIDIA B200"), 10.0, True),
        # Of a device that nobody knows, the least is assumed.
        (abstract("NVIDIA Tesla T4"), 7.0, False),
        (abstract("TPU v5e", "tpu"), 1.0, False),
        (abstract("cpu", "cpu"), 0.0, False),
        (jax.devices("cpu")[0], 0.0, False),
    ],
    ids=str,
)
def test_cuda_devices_of_a_capability(device, least, wanted):
    assert hardware.is_cuda(device, least) is wanted


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        (abstract("NVIDIA H100 80GB HBM3"), True),
        (abstract("NVIDIA Tesla T4"), False),
        (abstract("TPU v5e", "tpu"), False),
    ],
)
def test_the_pooling_takes_the_kernel_for_the_devices_of_the_mesh(
    monkeypatch, device, wanted
):
    monkeypatch.setattr(vocab_pool, "has_triton", lambda: True)
    with jax.sharding.use_abstract_mesh(mesh_of(device)):
        assert vocab_pool.pallas_is_faster() is wanted
        monkeypatch.setattr(vocab_pool, "has_triton", lambda: False)
        assert not vocab_pool.pallas_is_faster()
    assert not vocab_pool.pallas_is_faster()
