"""Encodes texts with an exported ColBERT, in PyLate or in its authors' program.

    python colbert_elsewhere.py pylate|colbert FOLDER TEXTS.json OUT.npz

TEXTS.json is a list. Of this package, nothing is imported. OUT has, for queries and
documents, the embeddings of all tokens and where each text's start.
"""

import json
import sys

import numpy as np


def pylate(folder, texts):
    from pylate import models

    model = models.ColBERT(model_name_or_path=folder, device="cpu")
    return {
        role: model.encode(texts, is_query=role == "query", batch_size=4)
        for role in ("query", "document")
    }


def colbert(folder, texts):
    from colbert.infra import ColBERTConfig
    from colbert.modeling.checkpoint import Checkpoint

    model = Checkpoint(folder, ColBERTConfig())
    if not hasattr(model, "skiplist"):
        # Release 0.2.22 looks for it where punctuation is kept, too.
        model.skiplist = {}
    tokens, lengths = model.docFromText(texts, bsize=4, keep_dims="flatten")
    ends = np.cumsum([int(length) for length in lengths])
    return {
        "query": list(model.queryFromText(texts).numpy()),
        "document": np.split(tokens.numpy(), ends[:-1]),
    }


if __name__ == "__main__":
    program, folder, texts, out = sys.argv[1:]
    with open(texts, encoding="utf-8") as file:
        texts = json.load(file)
    encode, found = {"pylate": pylate, "colbert": colbert}[program], {}
    for role, rows in encode(folder, texts).items():
        rows = [np.asarray(row, np.float32) for row in rows]
        found[f"{role}_tokens"] = np.concatenate(rows)
        found[f"{role}_starts"] = np.cumsum([0, *map(len, rows)])
    np.savez(out, **found)
