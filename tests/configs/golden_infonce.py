"""A few steps of a tiny MILCO with every view, penalty and kind of randomness."""

import pathlib

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def get_config():
    c = get_default()
    c.init.encoder = str(_GOLDEN / "xlmr")
    c.init.head = str(_GOLDEN / "bert")
    c.model.head.lexecho = True
    c.model.dropout = 0.1
    c.data.source = "debian"
    c.data.source.split = "dev"
    c.data.query_length = 16
    c.data.document_length = 32
    c.loss = {"infonce": {}}
    c.regularizer.name = "flops"
    for field in ("query", "document", "source_query", "source_document"):
        c.regularizer[field] = 1e-3
    c.regularizer.schedule = entry("quadratic", steps=10)
    c.optim.lr = 1e-3
    c.optim.warmup_steps = 2
    c.optim.schedule = "linear"
    # Adam divides by the gradient's size, which for a gradient of about zero is noise.
    c.optim.optimizer.eps = 1e-3
    c.batch_size = 8
    c.steps = 12
    c.checkpoint.every = 4
    c.log.every = 1
    return c
