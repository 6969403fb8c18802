"""The tiny demo up to its alignment, in three steps each, with a dev metric of both."""

import importlib.util
import pathlib

_PATH = pathlib.Path(__file__).with_name("tiny_demo.py")
_SPEC = importlib.util.spec_from_file_location("tiny_demo", _PATH)
_TINY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TINY)


def get_config():
    c = _TINY.get_config()
    with c.unlocked():
        del c.stages["distill"]
    c.evaluate.test, c.evaluate.split = "", "test"
    c.evaluate.examples = ()
    for stage in c.stages.values():
        stage.steps = stage.optim.warmup_steps = stage.dev.every = 3
        stage.data.length_parts = 1
    return c
