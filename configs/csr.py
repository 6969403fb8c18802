"""CSR: a sparse code of a dense embedding (Wen et al. 2025), learned with the encoder.

    lsrjax train --config csr

The autoencoder reconstructs the mean of the tokens' states with 64 of 4,096 latents;
the contrastive loss of the codes has a tenth of the weight. To freeze the encoder, add
--config.optim.freeze='^encoder/'. On the embedded data:

    --config.init.encoder='' --config.tokenizer=embedded:english
    --config.model.family=bert --config.model.dtype=float32
    --config.model.head.latents=1024 --config.model.head.active_latents=32
    --config.loss='{"reconstruction": {}, "infonce": {"temperature": 0.05}}'
    --config.data.source=debian --config.data.group_size=1
    --config.data.query_languages='{"en": 1}'
    --config.data.document_languages='{"en": 1}'
    --config.data.query_length=24 --config.data.document_length=64
    --config.batch_size=64 --config.steps=300
    --config.epochs=0 --config.optim.lr=1e-3 --config.dev.source=debian
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default


def get_config() -> ConfigDict:
    c = get_default()
    c.model.head = "csr"
    c.model.head.pooling = "mean"
    c.model.dtype = "bfloat16"
    c.init.encoder = "google-bert/bert-base-uncased"
    c.data.source = "datasets"
    c.data.source.dataset = {"sentence-transformers/msmarco-bm25": "triplet"}
    c.data.query_length = 32
    c.data.document_length = 256
    c.data.group_size = 2
    c.loss = {"reconstruction": {}, "infonce": {"weight": 0.1, "temperature": 0.05}}
    c.memory.encode_chunk = 64
    c.batch_size = 128
    c.steps = 50_000
    c.optim.lr = 4e-5
    c.optim.warmup_fraction = 0.05
    return c
