"""Twelve steps of a tiny MILCO with saves and evaluations in between: seconds."""

import importlib.util
import pathlib

_SPEC = importlib.util.spec_from_file_location(
    "golden_infonce", pathlib.Path(__file__).with_name("golden_infonce.py")
)
_GOLDEN = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_GOLDEN)


def get_config():
    c = _GOLDEN.get_config()
    c.data.length_parts = 1
    c.dev.source = "debian"
    c.dev.queries = 8
    c.dev.every = 5
    return c
