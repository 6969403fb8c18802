"""The teacher of `two_meshes.py` alone, on all devices there are."""

import importlib.util
import pathlib

_SPEC = importlib.util.spec_from_file_location(
    "two_meshes", pathlib.Path(__file__).with_name("two_meshes.py")
)
_MESHES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MESHES)


def get_config():
    c = _MESHES.get_config()
    with c.unlocked():
        del c.stages["distill"]
    c.stages.teacher.mesh.data = -1
    # The same for a run of any length.
    c.stages.teacher.optim.schedule = "constant"
    return c
