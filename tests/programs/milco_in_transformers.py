"""Encodes texts with an exported MILCO, in whatever transformers runs this.

    python milco_in_transformers.py FOLDER TEXTS.json OUT.npz [FOLDER …]

TEXTS.json has "texts", which are encoded in all ways, and "documents". Of this package,
nothing is imported. OUT has matrices as rows, columns, values and shape.
"""

import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer


def load(folder, **options):
    """The model, which takes all that is in the file."""
    model, info = AutoModel.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    left = {name: list(value) for name, value in info.items() if value}
    assert not left, left
    assert not model.training
    return model


def entries(vectors):
    """Rows, columns and values of a sparse tensor, and its shape."""
    vectors = vectors.coalesce()
    assert vectors.dtype == torch.float32
    rows, columns = vectors.indices().numpy()
    return {
        "rows": rows,
        "columns": columns,
        "values": vectors.values().numpy(),
        "shape": np.array(vectors.shape),
    }


def encode(folder, texts, documents=()):
    """Vectors of texts as documents, as queries, as they are, and in bfloat16."""
    model = load(folder)
    half = load(folder, dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16
    eager = load(folder, attn_implementation="eager")
    assert eager.m_model.config._attn_implementation == "eager"
    found = {
        "document": model.encode_document(texts, batch_size=16),
        "query": model.encode_query(texts, batch_size=7),
        "text": model.encode_text(texts[:8]),
        "short": model.encode_document(texts, max_length=16),
        "eager": eager.encode_document(texts),
        "half": half.encode_document(texts),
        "nothing": model.encode_document([]),
        "documents": model.encode_document(documents, batch_size=64),
    }
    return {
        f"{name}/{part}": value
        for name, vectors in found.items()
        for part, value in entries(vectors).items()
    }


def ids(folder, texts):
    """Token ids by the tokenizers at the root and of the pivot."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    return {
        name: AutoTokenizer.from_pretrained(folder, subfolder=name)(texts)["input_ids"]
        for name in ("", config.pivot_tokenizer)
    }


if __name__ == "__main__":
    version = np.array(transformers.__version__)
    for number in range(1, len(sys.argv), 3):
        folder, given, out = sys.argv[number : number + 3]
        with open(given, encoding="utf-8") as file:
            given = json.load(file)
        token_ids = np.array(json.dumps(ids(folder, given["texts"])))
        np.savez(out, version=version, ids=token_ids, **encode(folder, **given))
