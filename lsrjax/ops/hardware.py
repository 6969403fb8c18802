"""The device that a computation is traced for; this machine may not have it."""

import jax

# Of devices that programs are compiled for ahead of time, by part of their name.
CAPABILITIES = {"A100": 8.0, "L40": 8.9, "H100": 9.0, "H200": 9.0, "B200": 10.0}


def device():
    """A device, perhaps abstract, of the mesh that is set; without one, the first.

    A program may be compiled for devices that this machine does not have. Choices that
    depend on the device have to follow those.
    """
    here, mesh = jax.devices()[0], jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device.device_kind == here.device_kind:
        return here
    return mesh.abstract_device


def is_cuda(device, least: float) -> bool:
    """Whether it is a CUDA device of at least this compute capability, such as 8.0."""
    if device.platform not in ("gpu", "cuda"):
        return False
    if hasattr(device, "compute_capability"):
        rocm = "rocm" in device.client.platform_version.lower()
        return not rocm and float(device.compute_capability) >= least
    known = (c for name, c in CAPABILITIES.items() if name in device.device_kind)
    return next(known, 0.0) >= least
