"""Pretraining on texts alone: `pretrain.py`, or with one of its variants.

    lsrjax train --config pretrain[:VARIANT]

A SPLADE learns to predict masked tokens (`mlm`) and the text's bag of words with them
(`bag_of_words`: Xiao et al. 2023; of [CLS], --config.model.head.pooling=cls: Ma et al.
2024); to find one part of a text by another (`crops`: Contriever, Izacard et al. 2022;
`cloze`: Lee et al. 2019; `title`); or, without a variant, tokens and parts in one pass
over masked crops, as coCondenser (Gao and Callan 2022) with Condenser (`condenser`).
Texts and model come from the Hugging Face hub; `--dry_run` shows the memory of a step.
What follows starts from it by `--config.init.encoder=runs/pretrain/train`, or as
the next stage of one run by `init.encoder = "stage:pretrain"`. On the embedded data,
from random weights:

    --config.init.encoder='' --config.tokenizer=embedded:multilingual
    --config.model.family=bert --config.model.dtype=float32
    --config.data.source.files=embedded --config.data.document_length=64
    --config.data.query_length=64 --config.batch_size=64 --config.steps=300
    --config.optim.lr=1e-3 --config.regularizer.schedule.steps=100
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default, variant
from lsrjax.config.nodes import entry

_WIKIPEDIAS = "ar da de en es fi fr hi it ja ko nl no pl pt ru sv sw th uk zh"
# What is predicted, and which parts of a text find each other.
_VARIANTS = {
    "": ({"mlm": {}, "infonce": {"weight": 0.1}}, "crops"),
    **{name: ({"mlm": {}}, "title") for name in ("mlm", "condenser")},
    "bag_of_words": ({"mlm": {"rate": 0.3}, "bag_of_words": {}}, "title"),
    **{pairs: ({"infonce": {}}, pairs) for pairs in ("crops", "cloze", "title")},
}


def get_config(name: str = "") -> ConfigDict:
    c = get_default()
    c.model.head = "splade"
    c.model.head.condenser = 2 if name in ("", "condenser") else 0
    c.model.dtype = "bfloat16"
    c.init.encoder = "FacebookAI/xlm-roberta-base"
    c.loss, pairs = variant(_VARIANTS, name)
    c.data.source = entry("texts", pairs=entry(pairs))
    c.data.source.files = {
        language: {"dataset": "wikimedia/wikipedia", "subset": f"20231101.{language}"}
        for language in _WIKIPEDIAS.split()
    }
    c.data.query_length = c.data.document_length = 128
    c.regularizer.name = "flops"
    c.regularizer.query = c.regularizer.document = 1e-4
    c.regularizer.schedule = entry("quadratic", steps=30_000)
    c.memory.encode_chunk = 64
    c.batch_size = 512
    c.steps = 100_000
    c.optim.lr = 5e-5
    c.optim.schedule = "linear"
    c.optim.warmup_fraction = 0.05
    return c
