"""Inference-free SPLADE: queries are looked up, not encoded (Geng et al. 2024).

    lsrjax train --config inference_free

A query is the bag of its words, with learned weights that start at their idf in the
training documents; IDF-aware FLOPS spares the documents' rare terms. Point
config.data.source.files to rows of query, pos, neg, pos_scores and neg_scores. On the
embedded data, without scores:

    --config.init.encoder='' --config.tokenizer=embedded:english
    --config.model.family=bert --config.init.lexical=True --config.model.dtype=float32
    --config.data.source=debian --config.data.group_size=1
    --config.data.query_languages='{"en": 1}'
    --config.data.document_languages='{"en": 1}'
    --config.data.query_length=24 --config.data.document_length=64
    --config.loss='{"infonce": {}}' --config.batch_size=64 --config.steps=300
    --config.epochs=0 --config.optim.lr=1e-3 --config.regularizer.schedule.steps=100
    --config.dev.source=debian
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head = "splade"
    c.model.head.queries = "static"
    c.model.dtype = "bfloat16"
    c.init.encoder = "google-bert/bert-base-uncased"
    c.init.idf_queries = True
    c.data.source.files = "data/scored/*.parquet"
    c.data.query_length = 64
    c.data.document_length = 256
    c.data.group_size = 8
    c.loss = {"kl": {}}
    c.regularizer.name = "idf_flops"
    c.regularizer.document = 1e-3
    c.regularizer.schedule = entry("quadratic", steps=10_000)
    c.memory.encode_chunk = 64
    c.batch_size = 64
    c.epochs = 3.0
    c.optim.lr = 2e-5
    c.optim.warmup_fraction = 0.04
    return c
