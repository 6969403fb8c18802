"""MILCO, stage 2, by Multilingual Translate-Distill (Yang et al. 2024).

    lsrjax train --config mtd_sparse

Like configs/distill.py, but each passage is in a language drawn for it, so that the
English view has to work in all of them. Starts from stage 1 (`runs/align`). The data
are ColBERT's files, with translated collections next to the English one. On the
embedded data, with the stages of configs/heads.py in runs/heads:

    --config.init.model=runs/heads/align --config.model.dtype=float32
    --config.data.source=debian --config.data.format=auto
    --config.data.corpus='' --config.data.group_size=4
    --config.data.document_languages='{"*": 1}' --config.data.query_length=24
    --config.data.document_length=64 --config.prepare.negatives=bm25
    --config.prepare.scores=teacher --config.teacher.model=runs/heads/teacher
    --config.loss.kl.teacher_scale=3.0
    --config.init.idf_echo.scale=0.6
    --config.model.head.repeats=max --config.model.head.exclude_special_tokens=True
    --config.regularizer.query=3e-4 --config.regularizer.document=3e-5
    --config.batch_size=32 --config.steps=200 --config.optim.lr=1e-4
    --config.optim.warmup_fraction=0.1 --config.dev.source=debian
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head.lexecho = True
    c.model.dtype = "bfloat16"
    c.init.model = "runs/align"
    c.data.source.files = "data/mtd/scores.jsonl"
    c.data.format = entry("colbert", queries={"en": "data/mtd/queries.tsv"})
    c.data.corpus = {
        language: f"data/mtd/collection.{language}.tsv"
        for language in ("en", "de", "es", "fr", "zh", "fa", "ru")
    }
    c.data.query_length = 64
    c.data.document_length = 256
    c.data.group_size = 8
    c.loss = {"kl": {}}
    c.regularizer.query = 1e-3
    c.regularizer.document = 1e-5
    c.memory.encode_chunk = 128
    c.memory.remat = "layer"
    c.batch_size = 256
    c.steps = 50_000
    c.optim.lr = 2e-5
    c.optim.warmup_fraction = 0.03
    return c
