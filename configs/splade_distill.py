"""SPLADE distilled from a cross-encoder: KL and margin MSE (SPLADE-v3's losses).

    lsrjax train --config splade_distill

Eight negatives for each query, with a cross-encoder's scores; SPLADE-v3 weights KL 1
and margin MSE .05 (Lassance et al. 2024). Point config.data.source.files to rows of
query, pos, neg, pos_scores and neg_scores; `--dry_run` shows the memory of a step. On
the embedded data, with a small SPLADE as the teacher (configs/splade.py in
runs/splade):

    --config.init.encoder='' --config.tokenizer=embedded:english
    --config.model.family=bert --config.init.lexical=True --config.model.dtype=float32
    --config.data.source=debian --config.data.group_size=4
    --config.data.query_languages='{"en": 1}'
    --config.data.document_languages='{"en": 1}'
    --config.data.query_length=24 --config.data.document_length=64
    --config.prepare.negatives=bm25 --config.prepare.scores=teacher
    --config.teacher.model=runs/splade/train --config.loss.kl.teacher_scale=1
    --config.batch_size=32 --config.steps=200 --config.epochs=0 --config.optim.lr=1e-3
    --config.regularizer.query=1e-3 --config.regularizer.document=1e-3
    --config.regularizer.schedule.steps=100 --config.dev.source=debian
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head = "splade"
    c.model.dtype = "bfloat16"
    c.init.encoder = "naver/splade-cocondenser-selfdistil"
    c.data.source.files = "data/scored/*.parquet"
    c.data.query_length = 64
    c.data.document_length = 256
    c.data.group_size = 9
    c.loss = {"kl": {}, "margin_mse": {"weight": 0.05}}
    c.regularizer.name = "flops"
    c.regularizer.query = 5e-4
    c.regularizer.document = 3e-4
    c.regularizer.schedule = entry("quadratic", steps=50_000)
    c.memory.encode_chunk = 64
    c.batch_size = 64
    c.epochs = 3.0
    c.optim.lr = 2e-5
    c.optim.warmup_fraction = 0.04
    return c
