"""SPLADE with in-batch and BM25 negatives (Formal et al. 2021), on MS MARCO.

    lsrjax train --config splade

FLOPS regularization rises over the first third of training. The data set comes from the
Hugging Face hub; `--dry_run` shows the memory of a step. On the embedded data, from
random weights:

    --config.init.encoder='' --config.tokenizer=embedded:english
    --config.model.family=bert --config.init.lexical=True --config.model.dtype=float32
    --config.data.source=debian --config.data.group_size=1
    --config.data.query_languages='{"en": 1}'
    --config.data.document_languages='{"en": 1}'
    --config.data.query_length=24 --config.data.document_length=64
    --config.batch_size=64 --config.steps=300 --config.epochs=0 --config.optim.lr=1e-3
    --config.regularizer.query=1e-3 --config.regularizer.document=1e-3
    --config.regularizer.schedule.steps=100 --config.optim.warmup_steps=20
    --config.optim.warmup_fraction=0 --config.dev.source=debian
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head = "splade"
    c.model.dtype = "bfloat16"
    c.init.encoder = "google-bert/bert-base-uncased"
    c.data.source = "datasets"
    c.data.source.dataset = {"sentence-transformers/msmarco-bm25": "triplet"}
    c.data.query_length = 32
    c.data.document_length = 256
    c.data.group_size = 2
    c.loss = {"infonce": {}}
    c.regularizer.name = "flops"
    c.regularizer.query = 5e-4
    c.regularizer.document = 3e-4
    c.regularizer.schedule = entry("quadratic", steps=50_000)
    c.memory.encode_chunk = 64
    c.batch_size = 128
    c.steps = 150_000
    c.optim.lr = 2e-5
    c.optim.schedule = "linear"
    c.optim.warmup_fraction = 0.04
    return c
