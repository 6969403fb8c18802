"""MPNet: BERT with XLM-R's positions, and a bias of attention for each distance.

The computation is that of `MPNetModel` (Song et al., 2020, arXiv:2004.09297) in Hugging
Face transformers, without the pooler. All layers share the biases, which are learned
for 32 buckets of distances (Raffel et al., 2020, arXiv:1910.10683).
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.attention import Attention
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.bert import BertConfig, Embeddings
from lsrjax.models.backbones.classifiers import FirstToken
from lsrjax.models.layers import DType, LayerNorm, dropout, gelu, linear, subkeys

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


class Layer(nnx.Module):
    """Attention and feed-forward block, each normalized after its residual sum."""

    def __init__(self, config: MPNetConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        dense = partial(
            linear, initializer_range=config.initializer_range, dtype=dtype, rngs=rngs
        )
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)
        self.up = dense(size, inner)
        self.down = dense(inner, size)
        self.output_norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        hidden_TD: jax.Array,
        batch: encoder.Batch,
        biases: list[jax.Array],
        keys_T: jax.Array | None,
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        rate = self.config.hidden_dropout
        mixed_TD = self.attention(
            hidden_TD,
            batch.texts,
            batch.seen,
            biases=biases,
            keys_T=subkeys(keys_T, 0),
        )
        mixed_TD = dropout(mixed_TD, rate, subkeys(keys_T, 1))
        hidden_TD = self.attention_norm(hidden_TD + mixed_TD)
        fed_TD = self.down(gelu(self.up(hidden_TD)))
        fed_TD = dropout(fed_TD, rate, subkeys(keys_T, 2))
        return self.output_norm(hidden_TD + fed_TD)


class MPNetEncoder(encoder.Encoder):
    """MPNet.

    Parameter tree: that of `BertEncoder` without token types, and
    `relative/embedding` [buckets, H], the biases of attention.
    """

    config: MPNetConfig
    rules = (Rule("relative/embedding", (None, None)),)
    fused_attention = False  # cuDNN's takes no biases here

    def __init__(
        self, config: MPNetConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.relative = nnx.Embed(
            _BUCKETS,
            config.num_heads,
            embedding_init=nnx.initializers.normal(config.initializer_range),
            param_dtype=jnp.float32,
            rngs=rngs,
        )
        self.layers = encoder.stack(
            lambda: Layer(config, dtype=dtype, rngs=rngs), config.num_layers
        )

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        return self.embeddings(texts, keys_T=keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""
        table_PH = self.relative.embedding[...]
        biases = [
            table_PH[buckets(ids_BL.shape[1])].transpose(2, 0, 1)
            for ids_BL in batch.texts.ids
        ]

        def call(layer, hidden_TD, index, place):
            return layer(hidden_TD, batch, biases, subkeys(batch.keys_T, index + 1))

        return self.run_layers(call, self.layers, hidden_TD, batch.remat)


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
        encoder={
            names.WORD: "embeddings.word_embeddings.weight",
            "embeddings/position/embedding": "embeddings.position_embeddings.weight",
            "embeddings/norm/scale": "embeddings.LayerNorm.weight",
            "embeddings/norm/bias": "embeddings.LayerNorm.bias",
            "relative/embedding": "encoder.relative_attention_bias.weight",
            **names.of_layers(
                "encoder.layer",
                {
                    f"{ours}/{one}": f"{theirs}.{other}"
                    for ours, theirs in _PARTS.items()
                    for one, other in (
                        ("scale" if "norm" in ours else "kernel", "weight"),
                        ("bias", "bias"),
                    )
                },
            ),
        },
        masked_lm=names.masked_lm(
            "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head"
        ),
        classifier=names.classifier("classifier.dense", "classifier.out_proj"),
        bias_copy="lm_head.decoder.bias",
    ),
    transformers="MPNet",
    classifier=FirstToken,
    pooler=True,
)
