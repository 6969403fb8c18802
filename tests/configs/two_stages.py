"""Two stages of a tiny MILCO, with saves and evaluations in between: seconds."""

import importlib.util
import pathlib

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default

_SPEC = importlib.util.spec_from_file_location(
    "survived", pathlib.Path(__file__).with_name("survived.py")
)
_SURVIVED = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_SURVIVED)


def get_config():
    c = get_default()
    first, second = _SURVIVED.get_config(), _SURVIVED.get_config()
    second.init.encoder = second.init.head = ""
    second.init.model = "stage:first"
    with c.unlocked():
        c.stages = ConfigDict({"first": first, "second": second}, sort_keys=False)
    return c
