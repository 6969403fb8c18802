"""MILCO stage 1, sparse alignment, as published (ICLR 2026).

    python -m lsrjax.main --config configs/align.py

Aligns BAAI/bge-m3-unsupervised (XLM-R large) with naver/splade-v3 on the parallel
corpora of the MILCO release. The paper's run: 594M pairs, length 256, global batch
8,192, 2 epochs, bfloat16. On eight accelerators a step takes about 22 GB of each (see
--dry_run --devices 8; 10 GB with --config.mesh.fsdp=True). Both models and all data
sets come from the Hugging Face hub; without it, point to local copies:

    --config.init.encoder=DIR --config.init.head=DIR --config.teacher.model=DIR
    --config.data.source=files --config.data.dataset=''
    --config.data.files='DIR/*.parquet'
"""

from ml_collections import ConfigDict

from lsrjax.config import get_default

_MMARCO = "ar zh nl fr de hi id it ja pt ru es vi".split()
_SENTENCES = "wikimatrix europarl opensubtitles talks tatoeba jw300 news-commentary"


def get_config() -> ConfigDict:
    c = get_default()
    c.model.dtype = "bfloat16"
    c.init.encoder = "BAAI/bge-m3-unsupervised"
    c.init.head = "naver/splade-v3"
    c.teacher.model = "naver/splade-v3"
    c.data.source = "datasets"
    c.data.dataset = ",".join(
        [
            "omai-research/parallel_mmarco_passage:"
            + "+".join(f"en_{language}" for language in _MMARCO),
            "omai-research/parallel_mmarco_query:" + "+".join(_MMARCO),
            *(
                f"sentence-transformers/parallel-sentences-{name}:all"
                for name in _SENTENCES.split()
            ),
        ]
    )
    c.data.document_length = 256
    c.loss.name = "alignment"
    c.memory.encode_chunk = 128
    c.memory.remat = "layer"
    c.batch_size = 8192
    c.epochs = 2.0
    c.optim.lr = 2e-5
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 10_000
    c.checkpoint.every = 5_000
    return c
