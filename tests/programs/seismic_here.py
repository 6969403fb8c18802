"""Whether Seismic can be tested: pyseismic-lsr has no wheels for Python 3.13 on."""

import importlib.util

import pytest

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("seismic") is None, reason="pyseismic-lsr is not installed"
)
SEISMIC = pytest.param("seismic", marks=NEEDED)
