"""Encodes texts with an exported BGE-M3 in FlagEmbedding, and saves the model anew.

    python flag_embedding_elsewhere.py FOLDER ASKED.json OUT.npz AGAIN

ASKED.json has `arguments` of the class, `texts`, and the `weights` of the three scores.
Of this package, nothing is imported. OUT has, for queries and documents, dense vectors,
weights of tokens as a matrix, the embeddings of all tokens and where each text's start;
and the three scores of each text as a query with the next one as a document. AGAIN is
the folder that the program writes after training.
"""

import json
import sys

import numpy as np
from FlagEmbedding import BGEM3FlagModel


def encoded(model, encode, texts):
    found = encode(
        texts, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )
    terms = np.zeros((len(texts), model.model.vocab_size), np.float32)
    for row, weights in zip(terms, found["lexical_weights"], strict=True):
        for token, weight in weights.items():
            row[int(token)] = weight
    tokens = [np.asarray(rows, np.float32) for rows in found["colbert_vecs"]]
    return {
        "dense": found["dense_vecs"],
        "terms": terms,
        "tokens": np.concatenate(tokens),
        "starts": np.cumsum([0, *map(len, tokens)]),
    }


if __name__ == "__main__":
    folder, asked, out, again = sys.argv[1:]
    with open(asked, encoding="utf-8") as file:
        asked = json.load(file)
    model = BGEM3FlagModel(folder, devices=["cpu"], batch_size=4, **asked["arguments"])
    texts = asked["texts"]
    made = {
        f"{role}_{name}": values
        for role, encode in (
            ("query", model.encode_queries),
            ("document", model.encode_corpus),
        )
        for name, values in encoded(model, encode, texts).items()
    }
    # One pair at a time: of a padded document, its padding takes part in the maximum.
    pairs = zip(texts, texts[1:] + texts[:1], strict=True)
    scores = [
        model.compute_score(pair, weights_for_different_modes=asked["weights"])
        for pair in pairs
    ]
    made |= {f"score_{kind}": [one[kind] for one in scores] for kind in scores[0]}
    np.savez(out, **made)
    model.model.save(again)
    model.tokenizer.save_pretrained(again)
