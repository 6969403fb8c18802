"""Eight steps of a tiny MILCO that mines its negatives again, on files of a folder."""

import pathlib

from lsrjax.config.fields import get_default

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def get_config(folder, every="3"):
    c = get_default()
    c.init.encoder = str(_GOLDEN / "xlmr")
    c.init.head = str(_GOLDEN / "bert")
    c.data.source.files = f"{folder}/rows.jsonl"
    c.data.corpus = f"{folder}/docs.jsonl"
    c.data.query_length = c.data.document_length = 12
    c.data.length_parts = 1
    c.data.group_size = 3
    c.prepare.negatives = "bm25"
    c.prepare.every = int(every)
    c.prepare.count, c.prepare.depth = 3, 8
    c.loss = {"infonce": {}}
    c.optim.lr = 3e-3
    # Adam divides by the gradient's size, which for one of about zero is noise.
    c.optim.optimizer.eps = 1e-3
    c.batch_size, c.steps = 4, 8
    c.checkpoint.every, c.log.every = 2, 1
    return c
