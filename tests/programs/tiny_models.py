"""Retrievers of random weights, saved as the only stage of a run."""

import json

from programs import tiny

from lsrjax.checkpoint import saved_model
from lsrjax.convert.open_model import tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec


def save(path, head, seed=3, **values):
    """Saves a model with a head in the folder of a stage; returns the folder."""
    path.mkdir(parents=True)
    tokenizer = tokenizer_folder("embedded:multilingual")
    english = tokenizer_folder("embedded:english") if head == "milco" else None
    encoder = tiny.encoder(
        "xlm-roberta",
        vocab_size=TextTokenizer(tokenizer).vocab_size,
        hidden_size=8,
        max_positions=70,
    )
    if english:
        vocabulary = TextTokenizer(english).vocab_size
        values |= {"pivot_vocab_size": vocabulary, "pivot_hidden_size": 8}
    spec = RetrieverSpec.of(head, encoder, **values)
    params = retriever.init_params(spec, seed)
    model = saved_model.SavedModel(spec, params, tokenizer, english, "random")
    saved_model.save_model(path, model)
    data = {"query_length": 16, "document_length": 60}
    config = {"stages": {path.name: {"data": data}}}
    (path.parent / "config.json").write_text(json.dumps(config))
    return path
