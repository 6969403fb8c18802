"""Tiny stages over every way to make up batches: it takes seconds."""

import pathlib

from ml_collections import ConfigDict

from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def get_config():
    c = get_default()
    with c.unlocked():
        c.stages = ConfigDict(
            {"topics": topics(), "sets": sets(), "languages": languages()},
            sort_keys=False,
        )
    return c


def stage():
    c = get_default()
    c.init.encoder = str(_GOLDEN / "xlmr")
    c.init.head = str(_GOLDEN / "bert")
    c.data.source = "debian"
    c.data.source.split = "dev"
    c.data.query_length = 16
    c.data.document_length = 16
    c.data.length_parts = 1
    c.optim.lr = 1e-3
    c.batch_size = 12
    c.steps = 6
    c.checkpoint.every = 3
    c.log.every = 1
    return c


def topics():
    """In-batch negatives from the query's own topic, no text twice."""
    c = stage()
    c.data.topics = 5
    c.data.unique_texts = True
    c.loss = {"infonce": {}}
    return c


def sets():
    """Pairs of titles and of texts, a batch of one of them."""
    c = stage()
    c.data.source = "files"
    c.data.sets = ConfigDict(
        {
            field: data_set(source=entry("debian", split="dev", fields=(field,)))
            for field in ("title", "text")
        },
        sort_keys=False,
    )
    c.data.mixer = entry("weights", weights={"title": 1.0, "text": 2.0})
    c.data.batches_from = "one"
    c.teacher.model = str(_GOLDEN / "bert")
    c.loss = {"alignment": {}}
    return c


def languages():
    """Every query in three languages, negatives by the teacher's margin."""
    c = stage()
    c.teacher.model = str(_GOLDEN / "bert")
    c.prepare.negatives = "bm25"
    c.prepare.scores = "teacher"
    c.prepare.count = 6
    c.data.group_size = 3
    c.data.negatives = "margin_bins"
    c.data.mixing = "round_robin"
    c.data.query_languages = {"en": 1}
    c.data.document_languages = {"en": 1, "de": 1, "ja": 1}
    c.loss = {"kl": {}}
    return c
