"""A tiny checkpoint of any family, as other programs write it."""

import json
import pathlib
import shutil

import jax
import numpy as np
from programs import tiny

from lsrjax.convert.names import export_state
from lsrjax.convert.write.folder import write_weights
from lsrjax.models import retriever
from lsrjax.models.backbones.table import backbone
from lsrjax.models.retriever import RetrieverSpec

TOKENIZER = pathlib.Path(__file__).parents[1] / "golden" / "xlmr"
VOCABULARY, PAD = 401, 1  # of that tokenizer


def spec_of(family: str, **changes) -> RetrieverSpec:
    """A SPLADE over a tiny encoder for texts of that tokenizer."""
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "max_positions": 24}
    encoder = tiny.encoder(family, **(sizes | changes))
    return RetrieverSpec.of("splade", encoder, tied=False)


def random_params(spec: RetrieverSpec, seed: int = 3) -> dict:
    """Parameters with all norms and biases moved."""
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        moved = 0.2 * rng.standard_normal(leaf.shape).astype(np.float32)
        start = np.asarray(leaf)
        return moved + (start if start.ndim < 2 or _constant(start) else 0)

    params = retriever.init_params(spec, seed)
    return jax.tree_util.tree_map_with_path(drawn, params)


def _constant(values: np.ndarray) -> bool:
    """Whether it begins as the same numbers in each layer: scales, biases, shares."""
    return bool((values == values[:1]).all())


def write(folder: pathlib.Path, family: str, **changes) -> pathlib.Path:
    """Writes a masked LM with a tokenizer; returns the folder."""
    spec = spec_of(family, **changes)
    folder.mkdir(parents=True)
    for path in TOKENIZER.glob("*token*.json"):
        shutil.copy(path, folder)
    name = backbone(family).transformers
    raw = spec.encoder.to_hf() | {"tie_word_embeddings": False}
    if name:
        raw["architectures"] = [f"{name}ForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(raw))
    write_weights(folder, export_state(random_params(spec), family))
    return folder
