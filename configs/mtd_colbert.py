"""ColBERT-X with Multilingual Translate-Distill (Yang et al. 2024).

    lsrjax train --config mtd_colbert

English queries, each passage in a language drawn for it ("passages"; the other two
strategies: --config.data.mixing=entries or round_robin), KL to the scores of a
cross-encoder. The data are ColBERT's files, with translated collections next to the
English one. On the embedded data, with a small SPLADE as the teacher (configs/splade.py
in runs/splade):

    --config.init.encoder='' --config.tokenizer=embedded:multilingual
    --config.model.head.embedding_size=32 --config.model.dtype=float32
    --config.data.source=debian --config.data.format=auto
    --config.data.corpus='' --config.data.group_size=4
    --config.data.document_languages='{"*": 1}' --config.data.query_length=24
    --config.data.document_length=64 --config.prepare.negatives=bm25
    --config.prepare.scores=teacher --config.teacher.model=runs/splade/train
    --config.batch_size=32 --config.steps=200 --config.optim.lr=1e-3
    --config.dev.source=debian
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head = "colbert"
    c.model.head.embedding_size = 128
    c.model.head.expand_queries = True
    c.model.head.skip_punctuation = True
    c.model.dtype = "bfloat16"
    c.init.encoder = "FacebookAI/xlm-roberta-large"
    c.data.source.files = "data/mtd/scores.jsonl"
    c.data.format = entry("colbert", queries={"en": "data/mtd/queries.tsv"})
    c.data.corpus = {
        language: f"data/mtd/collection.{language}.tsv"
        for language in ("en", "de", "es", "fr", "zh", "fa", "ru")
    }
    c.data.document_languages = {"en": 0, "*": 1}
    c.data.query_length = 32
    c.data.document_length = 180
    c.data.group_size = 6
    c.loss = {"kl": {}}
    c.memory.encode_chunk = 32
    c.batch_size = 64
    c.steps = 200_000
    c.optim.lr = 5e-6
    c.optim.schedule = "constant"
    c.optim.clip_norm = 2.0
    return c
