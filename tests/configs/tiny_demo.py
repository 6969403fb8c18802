"""The demo with small models, few steps, the dev split, and a last stage that is
distilled from the first: it takes seconds. `aligned`: up to its alignment.
"""

import importlib.util
import pathlib

_PATH = pathlib.Path(__file__).parents[2] / "configs" / "demo.py"
_SPEC = importlib.util.spec_from_file_location("demo", _PATH)
_DEMO = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_DEMO)


def get_config(form=""):
    c = _DEMO.get_config()
    c.evaluate.split = "dev"
    for stage in c.stages.values():
        stage.data.source.split = "dev"
        stage.data.query_length = 16
        stage.data.document_length = 16
        stage.data.length_parts = 2
        stage.batch_size = 4
        stage.steps = stage.optim.warmup_steps = 8
        stage.log.every = 1
        stage.checkpoint.every = 3
        stage.dev.queries = 20
        stage.dev.every = 4
        stage.model.dropout = 0.1
    for name in ("teacher", "align"):
        c.stages[name].model.hidden_size = 64
        c.stages[name].model.num_layers = 1
        c.stages[name].model.intermediate_size = 64
        c.stages[name].model.max_length = 16
    for name in ("align", "contrast"):
        c.stages[name].model.head.stems = 101
    # The last stage reads a teacher's scores of negatives as well.
    with c.unlocked():
        c.stages.distill = last = c.stages.contrast
        del c.stages["contrast"]
    last.teacher.model = "stage:teacher"
    last.prepare.negatives = "bm25"
    last.prepare.scores = "teacher"
    last.prepare.count = last.data.group_size = 3
    last.loss = {"kl": {}, "infonce": {"weight": 0.5}}
    if form == "aligned":
        with c.unlocked():
            del c.stages["distill"]
        c.evaluate.test, c.evaluate.split, c.evaluate.examples = "", "test", ()
        for stage in c.stages.values():
            stage.steps = stage.optim.warmup_steps = stage.dev.every = 3
            stage.data.length_parts = 1
    return c
