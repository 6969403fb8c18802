"""Models so small that a test trains them in a second."""

import dataclasses

import numpy as np

from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone

_OWN = {
    "bert": {"type_vocab_size": 2},
    "distilbert": {"type_vocab_size": 0},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    # Distances from 3 on are in buckets, and the convolution is in the first layer.
    "deberta-v2": {
        "num_layers": 2,
        "position_buckets": 5,
        "norm_rel_ebd": True,
        "conv_kernel_size": 3,
    },
    "xlm-roberta-xl": {"pad_token_id": 1},
    "xmod": {
        "pad_token_id": 1,
        "languages": ("en_XX", "de_DE", "sw_KE"),
        "default_language": "de_DE",
        "adapter_layer_norm": True,
        "pre_norm": True,
    },
    # A token sees one to either side in the second layer.
    "modernbert": {"local_attention": 3, "num_layers": 2},
    "gte": {"type_vocab_size": 1},
    "jina_embeddings_v3": {"type_vocab_size": 1, "pad_token_id": 1},
    "nomic_bert": {"type_vocab_size": 2},
    "electra": {"type_vocab_size": 2},
    "ernie": {"type_vocab_size": 2},
    "mpnet": {"type_vocab_size": 0, "pad_token_id": 1},
    "norbert3": {"position_buckets": 4, "silent_terms": 3},
    "norbert4": {
        "query_key_size": 6,
        "value_size": 5,
        "ratio": 2,
        "local_window": 1,
        "global_window": 3,
        "num_layers": 2,
        "bos_token_id": 1,
    },
    # Two heads, of keys one. In local layers a token sees itself and one more.
    "qwen3": {
        "num_key_heads": 1,
        "head_size": 4,
        "sliding_window": 2,
        "pattern": (True, False),
        "num_layers": 2,
    },
    "llama": {"num_key_heads": 1},
    "mistral": {"sliding_window": 3, "pattern": (False,), "causal": False},
    "eurobert": {},
    "gemma": {"num_key_heads": 1},
    "gemma2": {"sliding_window": 2, "num_layers": 2, "num_key_heads": 1},
    "gemma3_text": {
        "sliding_window": 2,
        "pattern": (False, True),
        "num_layers": 2,
        "causal": False,
    },
}


def encoder(family: str = "bert", **changes) -> EncoderConfig:
    """The config of an encoder whose sizes cannot be mistaken for one another.

    Of `changes`, the fields that the family has.
    """
    values = {
        "vocab_size": 23,
        "hidden_size": 12,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 17,
        "max_positions": 16,
        "pad_token_id": 0,
    }
    config = backbone(family).config
    fields = {field.name for field in dataclasses.fields(config)}
    changes = {name: value for name, value in changes.items() if name in fields}
    return config(family, **(values | _OWN[family] | changes))


def ranked_batch(ids_BL):
    """A step's batch of three queries and three documents, both with these tokens."""
    part = {
        "ids": np.tile(ids_BL, (2, 1)),
        "mask": np.tile(np.asarray(ids_BL) != 0, (2, 1)).astype("i4"),
        "query": np.arange(6) < 3,
        "number": np.arange(6, dtype="i4"),
    }
    place = {"query": np.arange(3, dtype="i4"), "document": np.arange(3, 6, dtype="i4")}
    keys = np.arange(12, dtype=np.int32).reshape(6, 2)
    targets = {"query_key": keys[:3], "document_key": keys[3:, None]}
    return {"student": {"parts": (part,), "place": place}, "targets": targets}
