"""A student with prompt vectors, of a model."""

import dataclasses

import numpy as np

from lsrjax import options
from lsrjax.config.fields import get_default
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.initial import build_student
from lsrjax.models.heads import HEADS
from lsrjax.models.retriever import towers_of
from lsrjax.options import Chosen


def config_of(model, queries=2, documents=3):
    """The config of a stage that starts from a model and trains prompt vectors."""
    spec, c = model.spec, get_default()
    head = Chosen(spec.head, HEADS[spec.head], spec.options)
    c.model.head = options.plain(head)
    c.model.towers, c.init.model = spec.towers, "before"
    c.loss = {"infonce": {}}
    c.data.query_length = model.query_length or c.data.query_length
    c.data.document_length = model.document_length or c.data.document_length
    tokenizer = TextTokenizer(model.tokenizer)
    for role in ("query", "document"):
        c.model[f"{role}_prompt"] = getattr(spec, f"{role}_prompt")
        marker = getattr(spec, f"{role}_marker")
        c.model[f"{role}_marker"] = tokenizer.token(marker) if marker >= 0 else ""
    c.adapt = {"prompt": {"queries": queries, "documents": documents}}
    return c


def student(config, model, seed=None):
    """The student of a config; with a seed, its prompt vectors are random numbers."""
    made = build_student.student(config, lambda reference: model)
    spec, params = made.spec, made.params([])
    if seed is not None:
        rng = np.random.default_rng(seed)
        for tower in filter(None, towers_of(params)):
            word = tower["encoder"]["embeddings"]["word"]
            table = np.array(word["embedding"])
            ids = list(spec.prompt_ids)
            table[ids] = rng.normal(0, table.std(), (len(ids), table.shape[1]))
            word["embedding"] = table
    return dataclasses.replace(
        model, spec=spec, params=params, tokenizer=made.tokenizer, name="student"
    )
