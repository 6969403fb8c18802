"""The tiny demo's teacher, divided by texts, and a student taught by it on a mesh of
its own, divided by heads and terms: it takes seconds, and evaluates nothing.
"""

import importlib.util
import pathlib

from lsrjax.config.nodes import entry

_SPEC = importlib.util.spec_from_file_location(
    "tiny_demo", pathlib.Path(__file__).with_name("tiny_demo.py")
)
_TINY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TINY)


def get_config():
    c = _TINY.get_config()
    with c.unlocked():
        del c.stages["align"]
    c.evaluate.test, c.evaluate.split = "", "test"
    c.evaluate.examples = ()
    teacher, student = c.stages.teacher, c.stages.distill
    for stage in (teacher, student):
        stage.batch_size = 8
        stage.steps = 5
        stage.checkpoint.every = 5
        stage.optim.lr = 1e-3
        stage.optim.warmup_steps = 1
        # Adam divides by the gradient's size, which for one of about zero is noise.
        stage.optim.optimizer.eps = 1e-3
        stage.dev.source = ""
        stage.dev.every = 0
        stage.dev.queries = 300
    teacher.data.length_parts = student.data.length_parts = 1
    teacher.mesh.data, teacher.mesh.model = 4, 1
    student.mesh.data, student.mesh.model = 1, 4
    student.init = {"head": {"model": "stage:teacher", "encoder": "shared"}}
    student.model.head = entry("milco", lexecho=True)
    student.optim.groups = {}
    student.tokenizer = "embedded:multilingual"
    student.model.hidden_size = 64
    student.model.num_layers = 1
    student.model.intermediate_size = 64
    student.model.max_length = 16
    return c
