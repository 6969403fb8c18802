"""Reads models by the ids of repositories, and by the folders they were made of.

    python from_hub.py FOLDER OWNER

The folder has a folder for each repository of that owner. Prints a line of JSON: what
each was found to be, and its vectors in the programs that it is made for, as they are
by id and by folder. The hub is HF_ENDPOINT.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from transformers import AutoModel

from lsrjax.cli import doctor_checks
from lsrjax.convert import open_model
from lsrjax.data.tokenization import TextTokenizer

# Formats that nothing else reads that is installed here.
READ_HERE = ("lsrjax", "milco-reference")
TEXTS = ["Free software", "свободное программное обеспечение", ""]


def read(reference: str) -> tuple[dict[str, np.ndarray], tuple]:
    """The weights of a model, and what else it is."""
    model = open_model.open_portable(reference)
    ids = TextTokenizer(model.tokenizer).ids(TEXTS, 20)
    if model.pivot_tokenizer is not None:
        ids += TextTokenizer(model.pivot_tokenizer).ids(TEXTS, 20)
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return named, (model.spec, ids, model.query_length, model.document_length)


def same_model(found: str, wanted: str) -> bool:
    (params, about), (expected, wanted_about) = read(found), read(wanted)
    if about != wanted_about or params.keys() != expected.keys():
        return False
    return all(np.array_equal(params[name], expected[name]) for name in params)


def encoded(program: str, reference: str) -> list[np.ndarray]:
    """The vectors of the texts, in the program that a folder is for."""
    if program == "milco-hf":
        model = AutoModel.from_pretrained(reference, trust_remote_code=True)
        found = model.encode_document(TEXTS)
        return [found.to_dense().numpy()]
    if program in ("multi-vector", "colbert"):
        model = MultiVectorEncoder(reference, device="cpu")
        found = model.encode_document(TEXTS, convert_to_numpy=True)
        return [np.asarray(one) for one in found]
    model = SparseEncoder(reference, device="cpu", trust_remote_code=True)
    return [model.encode_document(TEXTS).to_dense().numpy()]


def same_vectors(program: str, found: str, wanted: str) -> bool:
    pairs = zip(encoded(program, found), encoded(program, wanted), strict=True)
    return all(np.array_equal(a, b) and np.any(b) for a, b in pairs)


def main(folder: pathlib.Path, owner: str) -> None:
    said = {}
    light = open_model.stages_folder(f"{owner}/lsrjax", weights=False)
    assert (light / "model.json").is_file() and not (light / "checkpoints").exists()
    for path in sorted(folder.iterdir()):
        name = f"{owner}/{path.name}"
        doctor_checks._ask("model", name)
        said[path.name] = {"model": same_model(name, str(path))}
        if path.name not in READ_HERE:
            said[path.name]["vectors"] = same_vectors(path.name, name, str(path))
    for name in ("gated", "unknown"):
        try:
            open_model.open_model(f"{owner}/{name}", folder)
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(said))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
