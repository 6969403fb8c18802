"""An epoch over the 100 groups of `BAD_RECORDS_FILE`, with a tiny SPLADE."""

import os
import pathlib

from lsrjax.config.fields import get_default

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def get_config():
    c = get_default()
    c.model.head = "splade"
    c.init.encoder = str(_GOLDEN / "bert")
    c.data.source = "files"
    c.data.source.files = os.environ["BAD_RECORDS_FILE"]
    c.data.bad_records = 0.1
    c.data.query_length = 8
    c.data.document_length = 8
    c.data.length_parts = 1
    c.data.group_size = 2
    c.loss = {"kl": {}}
    c.optim.lr = 1e-4
    c.batch_size = 10
    c.epochs = 1.0
    c.checkpoint.every = 100
    c.log.every = 5
    return c
