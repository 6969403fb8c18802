"""MILCO stage 2, distillation with LexEcho, as published (ICLR 2026).

    python -m lsrjax.main --config configs/distill.py

Goes on from stage 1 (`runs/align`; --config.init.model=DIR for another folder). The
paper's run: 1.39M queries with scores of bge-reranker-v2.5-gemma2-lightweight, groups
of 8, global batch 1,024, 8 epochs, bfloat16. On eight accelerators a step takes about
26 GB of each (12 GB with --config.mesh.fsdp=True). Lengths and lambdas are those of the
released script. Reported: nDCG@10 72.3 on MIRACL dev (18 languages). The data set comes
from the Hugging Face hub; without it, point to local files with the columns query, pos,
neg, pos_scores and neg_scores:

    --config.data.source=files --config.data.dataset=''
    --config.data.files='DIR/*.parquet'
"""

from ml_collections import ConfigDict

from lsrjax.config import get_default


def get_config() -> ConfigDict:
    c = get_default()
    c.model.lexecho = True
    c.model.dtype = "bfloat16"
    c.init.model = "runs/align"
    c.data.source = "datasets"
    c.data.dataset = "omai-research/bge-multilingual-distillation-dataset"
    c.data.query_length = 64
    c.data.document_length = 256
    c.data.group_size = 8
    c.loss.name = "kl"
    c.regularizer.name = "l1"
    c.regularizer.query = 1e-3
    c.regularizer.document = 1e-5
    c.memory.encode_chunk = 128
    c.memory.remat = "layer"
    c.batch_size = 1024
    c.epochs = 8.0
    c.optim.lr = 2e-5
    c.optim.schedule = "cosine"
    c.optim.warmup_fraction = 0.03
    c.checkpoint.every = 500
    return c
