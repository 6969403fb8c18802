"""MILCO stage 1, sparse alignment: `align.py` as in the paper, `align.py:script`.

    lsrjax train --config align[:script]

`paper` is tables 14 and 16 of arXiv 2510.00671 v2 (594M pairs); `script` the released
code at cfa602d, for eight devices. If a comment names only one of them, the other is
silent and gets the same. Data, models and MIRACL's hard negatives in hi, zh and yo (for
evaluation: a BEIR folder `miracl/` with qrels/dev.tsv; --config.dev.source='' omits it)
come from the Hugging Face hub. On eight accelerators a step of the paper's takes about
22 GB of each (--dry_run --devices 8). With local copies:

    --config.init.encoder=DIR --config.init.head=DIR --config.teacher.model=DIR
    --config.data.source=files --config.data.source.files='*.parquet'
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default, variant
from lsrjax.config.nodes import entry

_MMARCO = "ar zh nl fr de hi id it ja pt ru es vi".split()
_SENTENCES = "wikimatrix europarl opensubtitles talks tatoeba jw300 news-commentary"


def get_config(name: str = "paper") -> ConfigDict:
    paper = variant({"paper": True, "script": False}, name)
    c = get_default()
    c.seed = 0 if paper else 42  # script
    c.model.dtype = "bfloat16"  # paper
    c.init.encoder = "BAAI/bge-m3-unsupervised"  # both; its dropout (.1) is kept
    c.init.head = c.teacher.model = "naver/splade-v3"  # both
    english = [f"en_{language}" for language in _MMARCO]
    corpora = {"omai-research/parallel_mmarco_passage": english}  # both
    if not paper:
        corpora["omai-research/parallel_mmarco_query"] = _MMARCO
    # Both have all of these, the paper 14M titles of Wikipedia as well (table 14).
    names = _SENTENCES.split() + ["wikititles"] * paper
    corpora |= {f"sentence-transformers/parallel-sentences-{n}": "all" for n in names}
    c.data.source = entry("datasets", dataset=corpora)
    c.data.document_length = 256 if paper else 512  # both
    c.loss = {"alignment": {}}  # both
    c.batch_size = 8192 if paper else 8 * 32  # both
    c.epochs = 2.0 if paper else 1.0  # both
    c.optim.lr = 2e-5  # paper
    c.optim.schedule = "cosine" if paper else "linear"  # both
    c.optim.warmup_steps = 10_000 if paper else 0  # both
    c.optim.weight_decay = 0.0  # both: the optimizer's default
    c.memory.encode_chunk, c.memory.remat = 128, "layer"  # ours
    c.dev.source = entry("files", files="miracl")  # script
    c.dev.format = "beir"  # script
    c.dev.metric = "nDCG@10"  # both
    c.dev.every = c.checkpoint.every = 5_000  # ours
    return c
