"""BGE-M3's three views with self-knowledge distillation (Chen et al. 2024).

    lsrjax train --config m3

An embedding of the text, weights of its tokens and an embedding of each token are
trained together, and their sum teaches each of them. Point config.data.source.files to
rows of query, pos and neg; `--dry_run` shows the memory of a step.

To train BGE-M3 itself on, or what FlagEmbedding made of it, with all three views:

    --config.init.encoder='' --config.init.model=BAAI/bge-m3

(its encoder is a pickle on the hub: convert it once, docs/exports.md). `lsrjax convert
--to bge-m3` writes the result for FlagEmbedding. On the embedded data:

    --config.init.encoder='' --config.tokenizer=embedded:multilingual
    --config.model.dtype=float32 --config.data.source=debian
    --config.data.group_size=1 --config.data.query_length=24
    --config.data.document_length=64 --config.batch_size=64 --config.steps=200
    --config.epochs=0 --config.optim.lr=1e-3 --config.loss.m3.temperature=0.05
    --config.dev.source=debian
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head = "m3"
    c.model.dtype = "bfloat16"
    c.init.encoder = "BAAI/bge-m3-unsupervised"
    c.data.source.files = "data/m3/*.jsonl"
    c.data.query_length = 64
    c.data.document_length = 512
    c.data.group_size = 8
    c.loss = {"m3": {"temperature": 0.02}}
    c.memory.encode_chunk = 32
    c.memory.remat = "layer"
    c.batch_size = 64
    c.epochs = 1.0
    c.optim.lr = 1e-5
    c.optim.warmup_fraction = 0.1
    return c
