"""SPLADE for Norwegian, Danish and Swedish: NLI, ScandiQA and DDSC in turn.

    python -m lsrjax.main --config configs/scandinavian.py

Data and schedule of the embedding model thivy/norbert4-base-scandinavian-embedding:
each batch is from one data set, and they take turns, so that none is forgotten.
In-batch negatives only, since most of DDSC's rows have no others. The data sets come
from the Hugging Face hub; DDSC's needs a login. On the embedded data:

    --config.init.encoder='' --config.tokenizer=embedded:multilingual
    --config.init.lexical=True --config.model.dtype=float32
    --config.data.sets.nli.source=debian
    --config.data.sets.qa.source=debian
    --config.data.sets.qa.format=auto
    --config.data.sets.ddsc.source=debian
    --config.data.query_length=24 --config.data.document_length=64
    --config.batch_size=64 --config.steps=200 --config.epochs=0 --config.optim.lr=1e-3
    --config.regularizer.schedule.steps=100 --config.dev.source=debian
"""

import functools

from ml_collections import ConfigDict

from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head = "splade"
    c.model.dtype = "bfloat16"
    c.init.encoder = "FacebookAI/xlm-roberta-base"
    hub = functools.partial(entry, "datasets")
    c.data.sets = {
        "nli": data_set(source=hub(dataset="Fremtind/all-nli-norwegian")),
        "qa": data_set(
            source=hub(dataset={"alexandrainst/scandi-qa": ["no", "da", "sv"]}),
            format=entry("milco", query="question", pos="context"),
        ),
        "ddsc": data_set(source=hub(dataset="DDSC/nordic-embedding-training-data")),
    }
    c.data.mixer = "round_robin"
    c.data.batches_from = "one"
    c.data.document_length = 256
    c.loss = {"infonce": {}}
    c.regularizer.name = "flops"
    c.regularizer.query, c.regularizer.document = 5e-4, 3e-4
    c.regularizer.schedule = entry("quadratic", steps=16_000)
    c.memory.encode_chunk = 64
    c.batch_size, c.epochs = 32, 1.0
    c.optim.lr, c.optim.weight_decay = 5e-6, 0.015
    return c
