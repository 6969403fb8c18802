"""The tiny demo for runs on several meshes: no evaluation, batches that divide by 8."""

import importlib.util
import pathlib

_SPEC = importlib.util.spec_from_file_location(
    "tiny_demo", pathlib.Path(__file__).with_name("tiny_demo.py")
)
_TINY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TINY)


def get_config():
    c = _TINY.get_config()
    c.evaluate.test = ""
    c.evaluate.examples = ()
    for stage in c.stages.values():
        stage.batch_size = 8
        stage.steps = 4
        stage.dev.source = ""
        stage.dev.every = 0
        stage.dev.queries = 300
        stage.checkpoint.every = 4
    return c
