"""MPNet: BERT with XLM-R's positions, and a bias of attention for each distance.

The computation is that of `MPNetModel` (Song et al., 2020, arXiv:2004.09297) in Hugging
Face transformers, without the pooler. All layers share the biases, which are learned
for 32 buckets of distances (Raffel et al., 2020, arXiv:1910.10683).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.models.backbones import bert, encoder, names
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.backbones.classifiers import FirstToken
from lsrjax.models.layers import DType, subkeys

_BUCKETS, _FARTHEST = 32, 128
_PAD = 1  # positions are counted from it, whatever the config says


@dataclasses.dataclass(frozen=True)
class MPNetConfig(BertConfig):
    """Of `MPNetEncoder`, which has no token types."""

    KEYS: ClassVar[Mapping[str, str]] = {
        field: key
        for field, key in BertConfig.KEYS.items()
        if field != "type_vocab_size"
    }

    @property
    def counts_from_padding(self) -> bool:
        """Whether positions are counted from the row after the padding's id."""
        return True

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses other buckets and another padding than the code counts with."""
        super().refuse(config)
        for key, only in (
            ("relative_attention_num_buckets", _BUCKETS),
            ("pad_token_id", _PAD),
        ):
            if config.get(key, only) != only:
                raise ValueError(
                    f"{key} is {config[key]!r}, but only {only} is implemented; choose"
                    " a checkpoint trained with it."
                )

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The padding's id, and no rows of types."""
        return {"type_vocab_size": 0, "pad_token_id": _PAD}

    @classmethod
    def fresh(
        cls, family: str, pad_token_id: int, positions: int, **sizes
    ) -> "MPNetConfig":
        """The config of an encoder with random weights for texts of some length."""
        return cls(
            family,
            pad_token_id=pad_token_id,
            max_positions=positions + pad_token_id + 1,
            type_vocab_size=0,
            **sizes,
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        values = super().to_hf() | {"relative_attention_num_buckets": _BUCKETS}
        del values["position_embedding_type"]
        return values


def buckets(length: int) -> np.ndarray:
    """The bucket of the distance from each query to each key, [L, L].

    Half of the buckets are for keys behind the query. Of each half, the first are for
    one distance each, the others for a range that grows with the logarithm; computed in
    float32 as in PyTorch.
    """
    places = np.arange(length)
    ahead = places[:, None] - places[None]
    distance = np.abs(ahead)
    half, exact = _BUCKETS // 2, _BUCKETS // 4
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    spread = np.log(ratio) / np.float32(math.log(_FARTHEST / exact))
    far = exact + (spread * np.float32(half - exact)).astype(np.int64)
    own = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return own + half * (ahead < 0)


class MPNetEncoder(bert.BertEncoder):
    """MPNet.

    Parameter tree: that of `BertEncoder` without token types, and
    `relative/embedding` [buckets, H], the biases of attention.
    """

    config: MPNetConfig
    token_types = False
    rules = (Rule("relative/embedding", (None, None)),)
    fused_attention = False  # cuDNN's takes no biases here

    def __init__(
        self, config: MPNetConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.relative = nnx.Embed(
            _BUCKETS,
            config.num_heads,
            embedding_init=nnx.initializers.normal(config.initializer_range),
            param_dtype=jnp.float32,
            rngs=rngs,
        )

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""
        table_PH = self.relative.embedding[...]
        biases = [
            table_PH[buckets(ids_BL.shape[1])].transpose(2, 0, 1)
            for ids_BL in batch.texts.ids
        ]

        def call(layer, hidden_TD, index, place):
            keys_T = subkeys(batch.keys_T, index + 1)
            return layer(hidden_TD, batch, keys_T=keys_T, biases=biases)

        return self.run_layers(call, self.layers, hidden_TD, batch)


_PARTS = {
    "attention/query": "attention.attn.q",
    "attention/key": "attention.attn.k",
    "attention/value": "attention.attn.v",
    "attention/out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}

MPNET = Backbone(
    MPNetConfig,
    MPNetEncoder,
    names.Names(
        prefixes=("mpnet.", ""),
        encoder=bert.encoder_names(
            "encoder.layer.{i}",
            _PARTS,
            word="word_embeddings",
            position="position_embeddings",
        )
        | {"relative/embedding": "encoder.relative_attention_bias.weight"},
        masked_lm=bert.XLM_ROBERTA.names.masked_lm,
        classifier=bert.XLM_ROBERTA.names.classifier,
        bias_copy=bert.XLM_ROBERTA.names.bias_copy,
    ),
    transformers="MPNet",
    classifier=FirstToken,
    pooler=True,
)
