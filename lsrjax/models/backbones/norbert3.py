"""NorBERT3 and LTG-BERT: norms around each block, relative positions in buckets.

The computation is that of the hub code of `ltg/norbert3-base` (Samuel et al., 2023,
arXiv:2305.03880; LTG-BERT: arXiv:2303.09859), without running it: transformers has no
such model. Most norms have no parameters. Attention adds to each product of query and
key those with projections of their distance's bucket (He et al., 2021,
arXiv:2006.03654), read in the order of heads of that code. In array names P is the
buckets, A the heads of the positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.distributed.sharding import Rule
from lsrjax.errors import InputError
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.attention import attend_to_distances, log_buckets
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.layers import (
    DType,
    LayerNorm,
    Products,
    dropout,
    gelu,
    linear,
    normalized,
    subkeys,
)


@dataclasses.dataclass(frozen=True)
class Norbert3Config(EncoderConfig):
    """Of `Norbert3Encoder`.

    Attributes:
      position_buckets: size of the buckets of distances, whose number is twice it
        less one.
      silent_terms: the first ids, which the masked-LM head never predicts.
    """

    KEYS: ClassVar[Mapping[str, str]] = {
        "attention_dropout": "attention_probs_dropout_prob",
        "hidden_dropout": "hidden_dropout_prob",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "layer_norm_eps": "layer_norm_eps",
        "max_positions": "max_position_embeddings",
        "num_heads": "num_attention_heads",
        "num_layers": "num_hidden_layers",
        "pad_token_id": "pad_token_id",
        "position_buckets": "position_bucket_size",
        "silent_terms": "silent_terms",
        "vocab_size": "vocab_size",
    }

    pad_token_id: int = 3
    layer_norm_eps: float = 1e-7
    position_buckets: int = 32
    # [UNK], [CLS], … and [MASK_0] to [MASK_99] of the authors' tokenizer.
    silent_terms: int = 107  # type: ignore[assignment]  # a property of others

    def __post_init__(self):
        super().__post_init__()
        if type(self.position_buckets) is not int or self.position_buckets < 2:
            raise InputError(
                f"position_bucket_size is {self.position_buckets!r}, which has to be a"
                " whole number from 2 on. Take the config.json of the weights."
            )

    @property
    def layer_products(self) -> int:
        """Multiplications of a token with the kernels of a layer."""
        return 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size

    @classmethod
    def fresh(
        cls, family: str, pad_token_id: int, positions: int, **sizes
    ) -> "Norbert3Config":
        """The config of an encoder with random weights, of any tokenizer."""
        return super().fresh(family, pad_token_id, positions, silent_terms=0, **sizes)

    def to_hf(self) -> dict[str, Any]:
        """The content of the hub's config.json, without `architectures`."""
        values = super().to_hf()
        del values["model_type"]
        return {"auto_map": _AUTO_MAP, **values}


_CODE = "ltg/norbert3-base--modeling_norbert"
_AUTO_MAP = {
    "AutoConfig": "ltg/norbert3-base--configuration_norbert.NorbertConfig",
    "AutoModel": f"{_CODE}.NorbertModel",
    "AutoModelForMaskedLM": f"{_CODE}.NorbertForMaskedLM",
}


def buckets(length: int, config: Norbert3Config) -> np.ndarray:
    """The bucket of each query and key, [L, L], from 0 on."""
    size, far = config.position_buckets, config.max_positions
    return log_buckets(length, size, far, most=far - 1) + size - 1


class Embeddings(nnx.Module):
    """Normalized word embeddings, and those of distances."""

    def __init__(self, config: Norbert3Config, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        normal = nnx.initializers.normal(config.initializer_range)
        self.word = encoder.table(config, rngs, config.vocab_size)
        shape = (2 * config.position_buckets - 1, config.hidden_size)
        self.relative = nnx.Param(normal(rngs.params(), shape))
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, ids_T: jax.Array, keys_T: jax.Array | None) -> jax.Array:
        """Embeds token ids; returns [T, D]."""
        embedded_TD = sharding.constrain(self.word(ids_T), sharding.DATA, None)
        embedded_TD = normalized(embedded_TD, self.config.layer_norm_eps)
        return dropout(
            embedded_TD.astype(self.dtype), self.config.hidden_dropout, keys_T
        )

    def distances(self) -> jax.Array:
        """The embeddings of the buckets, [P, D]."""
        return self.norm(self.relative[...]).astype(self.dtype)


class Attention(nnx.Module):
    """Attention to keys and to distances, and a norm after it."""

    def __init__(self, config: Norbert3Config, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, spread = config.hidden_size, config.initializer_range
        self.qk = Products(
            2, size, size, initializer_range=spread, dtype=dtype, rngs=rngs
        )
        self.v = linear(size, size, initializer_range=spread, dtype=dtype, rngs=rngs)
        self.out = linear(size, size, initializer_range=spread, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, hidden_TD, batch: encoder.Batch, relative_PD, keys_T):
        """Mixes the hidden states of each text; returns [T, D]."""
        config = self.config
        texts, rate = batch.texts, config.attention_dropout
        states_TD = normalized(hidden_TD, config.layer_norm_eps)
        qkv = [*self.qk(states_TD), self.v(states_TD)]
        query_PAC, key_PAC = self._positions(relative_PD)
        mixed_TD = attend_to_distances(
            qkv,
            texts,
            batch.seen,
            key_PAC=key_PAC,
            query_PAC=query_PAC,
            index_of=lambda length: buckets(length, config),
            rate=rate,
            keys_T=subkeys(keys_T, 0),
        )
        mixed_TD = self.norm(self.out(mixed_TD))
        return dropout(mixed_TD, config.hidden_dropout, subkeys(keys_T, 1))

    def _positions(self, relative_PD: jax.Array) -> list[jax.Array]:
        """The queries and keys of the buckets, [P, A, C] each."""
        # Read head by head, each with its query and its key, unlike those of tokens.
        both_PD = jnp.concatenate(self.qk(relative_PD), axis=-1)
        heads = (len(relative_PD), self.config.num_heads, 2, -1)
        both_PA2C = both_PD.reshape(heads)
        return [both_PA2C[:, :, 0], both_PA2C[:, :, 1]]


class Layer(nnx.Module):
    """Attention and a gated block, each normalized ahead and added to its input."""

    def __init__(self, config: Norbert3Config, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.glu = Products(
            2,
            size,
            inner,
            initializer_range=config.initializer_range,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.down = linear(
            inner,
            size,
            initializer_range=config.initializer_range,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, hidden_TD, batch, relative_PD, keys_T) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        eps = self.config.layer_norm_eps
        hidden_TD += self.attention(hidden_TD, batch, relative_PD, subkeys(keys_T, 0))
        value_TI, gate_TI = self.glu(normalized(hidden_TD, eps))
        fed_TI = normalized(value_TI * jax.nn.gelu(gate_TI, approximate=True), eps)
        fed_TD = self.down(fed_TI)
        return hidden_TD + dropout(
            fed_TD, self.config.hidden_dropout, subkeys(keys_T, 1)
        )


class Norbert3Encoder(encoder.Encoder):
    """NorBERT3.

    Parameter tree: `embeddings/word/embedding`, `embeddings/relative` [P, D],
    `embeddings/norm/{scale,bias}` of the latter and, with a leading axis over the
    layers, `layers/attention/{qk,v,out}/{kernel,bias}` (`qk`: [D, 2, D], [2, D]),
    `layers/attention/norm/{scale,bias}`, `layers/glu/kernel` [D, 2, I],
    `layers/down/kernel`.
    """

    config: Norbert3Config
    rules = (
        Rule("embeddings/relative", (None, None)),
        Rule("attention/qk/kernel", (None, None, sharding.MODEL), heads=True),
        Rule("attention/qk/bias", (None, sharding.MODEL), heads=True),
        Rule("attention/v/kernel", (None, sharding.MODEL), heads=True),
        Rule("attention/v/bias", (sharding.MODEL,), heads=True),
    )
    fused_attention = False  # cuDNN takes no products with distances

    def __init__(
        self, config: Norbert3Config, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.layers = encoder.stack(
            lambda: Layer(config, dtype=dtype, rngs=rngs), config.num_layers
        )

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        return self.embeddings(texts.join(texts.ids), keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, which nothing normalizes, [T, D]."""
        relative_PD = self.embeddings.distances()

        def call(layer, hidden_TD, index, place):
            keys_T = subkeys(batch.keys_T, index + 1)
            return layer(hidden_TD, batch, relative_PD, keys_T)

        return self.run_layers(call, self.layers, hidden_TD, batch)


class Transform(nnx.Module):
    """The masked-LM head without its decoder: norm, dense, exact GELU, norm."""

    def __init__(self, config: Norbert3Config, *, dtype: DType, rngs: nnx.Rngs):
        self.eps = config.layer_norm_eps
        self.dense = linear(
            config.hidden_size, config.hidden_size, dtype=dtype, rngs=rngs
        )

    def __call__(self, hidden_TD: jax.Array) -> jax.Array:
        """Maps hidden states [T, D] to the decoder's input [T, D]."""
        states_TD = self.dense(normalized(hidden_TD, self.eps))
        return normalized(gelu(states_TD), self.eps)


_PARTS = {
    "attention/qk/kernel": "attention.in_proj_qk.weight",
    "attention/qk/bias": "attention.in_proj_qk.bias",
    "attention/v/kernel": "attention.in_proj_v.weight",
    "attention/v/bias": "attention.in_proj_v.bias",
    "attention/out/kernel": "attention.out_proj.weight",
    "attention/out/bias": "attention.out_proj.bias",
    "attention/norm/scale": "attention.post_layer_norm.weight",
    "attention/norm/bias": "attention.post_layer_norm.bias",
    "glu/kernel": "mlp.mlp.1.weight",
    "down/kernel": "mlp.mlp.4.weight",
}

NORBERT3 = Backbone(
    Norbert3Config,
    Norbert3Encoder,
    names.Names(
        prefixes=("",),
        encoder={
            names.WORD: "embedding.word_embedding.weight",
            "embeddings/relative": "embedding.relative_embedding",
            "embeddings/norm/scale": "embedding.relative_layer_norm.weight",
            "embeddings/norm/bias": "embedding.relative_layer_norm.bias",
            **names.of_layers("transformer.layers", _PARTS),
        },
        masked_lm={
            "head/mlm/transform/dense/kernel": "classifier.nonlinearity.1.weight",
            "head/mlm/transform/dense/bias": "classifier.nonlinearity.1.bias",
            "head/mlm/decoder": "classifier.nonlinearity.5.weight",
            "head/mlm/bias": "classifier.nonlinearity.5.bias",
        },
    ),
    transformers="Norbert",
    code="norbert",
    architectures="Norbert",
    transform=Transform,
)
