"""NorBERT4: GPT-BERT with RoPE, every layer a mixture of its input and the embeddings.

The computation is that of the hub code of `ltg/norbert4-base` (Charpentier and Samuel,
2024, arXiv:2410.24159), without running it: transformers has no such model. Norms have
no parameters, every projection scales its input first, and every layer mixes in the
word embeddings and the first layer's values. Every `ratio`-th layer sees far, the
others near; each kind has its own RoPE base.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.distributed.sharding import Rule
from lsrjax.errors import InputError
from lsrjax.models.backbones import encoder, local_attention, names
from lsrjax.models.backbones.attention import (
    products,
    rotary_tables,
    sees_some,
    turned,
    weighed,
)
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.layers import DType, dropout, linear, normalized, subkeys

_THETA, _LOCAL_THETA = 160_000.0, 10_000.0  # the config's rope_theta is not read
_SIZES = ("query_key_size", "value_size", "ratio", "global_window", "local_window")


@dataclasses.dataclass(frozen=True)
class Norbert4Config(EncoderConfig):
    """Of `Norbert4Encoder`.

    Attributes:
      query_key_size: width of a head's queries and keys.
      value_size: width of its values.
      ratio: every ratio-th layer is global.
      global_window: how far such a layer sees to either side.
      local_window: how far the others do.
      bos_token_id: the token that hub logits begin with.
    """

    KEYS: ClassVar[Mapping[str, str]] = {
        "attention_dropout": "attention_dropout",
        "bos_token_id": "bos_token_id",
        "embedding_dropout": "embedding_dropout",
        "global_window": "global_window_length",
        "hidden_dropout": "hidden_dropout",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "layer_norm_eps": "layer_norm_eps",
        "ratio": "local_global_ratio",
        "local_window": "local_window_length",
        "max_positions": "max_sequence_length",
        "num_heads": "num_attention_heads",
        "num_layers": "num_layers",
        "pad_token_id": "pad_token_id",
        "query_key_size": "query_key_head_size",
        "value_size": "value_head_size",
        "vocab_size": "vocab_size",
    }
    heads_share_width: ClassVar[bool] = False

    pad_token_id: int = 3
    bos_token_id: int = 1
    layer_norm_eps: float = 1e-7
    hidden_dropout: float = 0.0
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.0
    query_key_size: int = 64
    value_size: int = 64
    ratio: int = 4
    global_window: int = 8192
    local_window: int = 256

    def __post_init__(self):
        super().__post_init__()
        for field in _SIZES:
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise InputError(
                    f"{self.KEYS[field]} is {value!r}, which has to be a whole number"
                    " above 0. Take the config.json of the weights."
                )
        if self.query_key_size % 2:
            raise InputError(
                f"query_key_head_size is {self.query_key_size}, and RoPE turns pairs;"
                " it has to be even. Take the config.json of the weights."
            )

    @property
    def layer_products(self) -> int:
        """Multiplications of a token with the kernels of a layer."""
        heads = 2 * self.num_heads * (self.query_key_size + self.value_size)
        return self.hidden_size * (heads + 3 * self.intermediate_size)

    def with_dropout(self, rate: float) -> "Norbert4Config":
        """The config with this rate for every kind of dropout."""
        return dataclasses.replace(super().with_dropout(rate), embedding_dropout=rate)

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The number of positions, which later revisions call otherwise."""
        other = config.get("max_position_embeddings")
        return {} if other is None else {"max_positions": other}

    def to_hf(self) -> dict[str, Any]:
        """The content of the hub's config.json, without `architectures`."""
        values = super().to_hf()
        del values["model_type"]
        values["max_position_embeddings"] = self.max_positions
        return {"auto_map": _AUTO_MAP, "model": "norbert4", **values}


_CODE = "ltg/norbert4-base--modeling_gptbert"
_AUTO_MAP = {
    "AutoConfig": "ltg/norbert4-base--configuration_gptbert.GptBertConfig",
    "AutoModel": f"{_CODE}.GptBertModel",
    "AutoModelForMaskedLM": f"{_CODE}.GptBertForMaskedLM",
}


class Embeddings(nnx.Module):
    """Word embeddings, normalized and scaled."""

    def __init__(self, config: Norbert4Config, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.word = encoder.table(config, rngs, config.vocab_size)
        self.scale = nnx.Param(jnp.zeros(config.hidden_size))

    def __call__(self, ids_T: jax.Array, keys_T: jax.Array | None) -> jax.Array:
        """Embeds token ids; returns [T, D]."""
        embedded_TD = sharding.constrain(self.word(ids_T), sharding.DATA, None)
        embedded_TD = normalized(embedded_TD, self.config.layer_norm_eps)
        embedded_TD = _scaled(embedded_TD, self.scale).astype(self.dtype)
        return dropout(embedded_TD, self.config.embedding_dropout, keys_T)


def _scaled(x_TD: jax.Array, scale: nnx.Param) -> jax.Array:
    return x_TD * (1 + scale[...]).astype(x_TD.dtype)[None]


class Attention(nnx.Module):
    """Attention within a window; parameters as in `Norbert4Encoder`."""

    def __init__(self, config: Norbert4Config, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        heads, size = config.num_heads, config.hidden_size
        keys, values = heads * config.query_key_size, heads * config.value_size

        dense = partial(
            linear,
            initializer_range=config.initializer_range,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.q, self.k = dense(size, keys), dense(size, keys)
        self.v, self.out = dense(size, values), dense(values, size)
        self.qk_scale = nnx.Param(jnp.zeros(size))
        self.v_scale = nnx.Param(jnp.zeros(size))
        self.out_scale = nnx.Param(jnp.zeros(values))
        per_head = (heads, config.query_key_size)
        self.q_norm = nnx.Param(jnp.zeros(per_head))
        self.k_norm = nnx.Param(jnp.zeros(per_head))
        self.mix = nnx.Param(jnp.zeros(1))

    def values(self, states_TD: jax.Array) -> jax.Array:
        """The values of all heads, [T, A E]."""
        return self.v(_scaled(states_TD, self.v_scale))

    def __call__(
        self, queried_TD, valued_TD, first_TE, batch: encoder.Batch, *, full, keys_T
    ) -> jax.Array:
        """Mixes the states of each text; returns [T, D].

        Args:
          queried_TD: what queries and keys are made of.
          valued_TD: what values are made of.
          first_TE: the values of the first layer.
          full: whether the layer is global.
        """
        config, texts = self.config, batch.texts
        share = self.mix[...].astype(first_TE.dtype)
        value_TE = (1 - share) * self.values(valued_TD) + share * first_TE
        scaled_TD = _scaled(queried_TD, self.qk_scale)
        rate = config.attention_dropout
        keys: list[jax.Array | None] = [None] * len(texts.ids)
        weight_keys_T = subkeys(keys_T, 0)
        if weight_keys_T is not None and rate > 0.0:
            keys = [*texts.split(weight_keys_T)]
        window = config.global_window if full else config.local_window
        theta = _THETA if full else _LOCAL_THETA
        three = (self.q(scaled_TD), self.k(scaled_TD), value_TE)
        parts = []
        for *qkv, mask_BM, keys_BL in zip(
            *map(texts.split, three), batch.seen, keys, strict=True
        ):
            B, L = mask_BM.shape
            q_BLHC, k_BMHC, v_BMHE = (
                x.reshape(B, L, config.num_heads, -1) for x in qkv
            )
            turn = rotary_tables(L, config.query_key_size, theta)
            q_BLHC = turned(self._normed(q_BLHC, self.q_norm), turn)
            k_BMHC = turned(self._normed(k_BMHC, self.k_norm), turn)
            near = window if window < L - 1 else None
            sides = None if near is None else (near, near)
            if sides and keys_BL is None and local_attention.pays(L, sides):
                mixed_BLHE = local_attention.local_attention(
                    q_BLHC, k_BMHC, v_BMHE, mask_BM, sides
                )
            else:
                logits_BHLM = products(q_BLHC, k_BMHC) / config.query_key_size**0.5
                mixed_BLHE = weighed(logits_BHLM, v_BMHE, mask_BM, rate, keys_BL, near)
            if near is not None:
                alone_BL = ~sees_some(mask_BM, L, near)
                mixed_BLHE = jnp.where(alone_BL[..., None, None], 0, mixed_BLHE)
            parts.append(mixed_BLHE.reshape(B, L, -1))
        mixed_TE = normalized(texts.join(parts), config.layer_norm_eps)
        return self.out(_scaled(mixed_TE, self.out_scale))

    def _normed(self, x_BLHC: jax.Array, scale: nnx.Param) -> jax.Array:
        flat = x_BLHC.reshape(-1, x_BLHC.shape[-1])
        normed = normalized(flat, self.config.layer_norm_eps).reshape(x_BLHC.shape)
        return normed * (1 + scale[...]).astype(x_BLHC.dtype)[None, None]


class Layer(nnx.Module):
    """Attention and a gated block over mixtures of the input and the embeddings."""

    def __init__(self, config: Norbert4Config, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        self.attention = Attention(config, dtype=dtype, rngs=rngs)

        dense = partial(
            linear,
            initializer_range=config.initializer_range,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.up, self.gate = dense(size, inner), dense(size, inner)
        self.down = dense(inner, size)
        self.up_scale = nnx.Param(jnp.zeros(size))
        self.down_scale = nnx.Param(jnp.zeros(inner))
        # softplus(.5413) is 1: the layer's input is kept as it is.
        self.lambdas = nnx.Param(jnp.array([0.0, 0.0, 0.5413, 0.0, 0.5413, 0.0]))

    def mixture(self, hidden_TD, embedded_TD, place: int) -> jax.Array:
        """The input and the embeddings, by the share at a place of `lambdas`."""
        share = self.lambdas[...][place].astype(hidden_TD.dtype)
        return (1 - share) * hidden_TD + share * embedded_TD

    def valued(self, hidden_TD, embedded_TD) -> jax.Array:
        """What values are made of, [T, D]."""
        return normalized(
            self.mixture(hidden_TD, embedded_TD, 0), self.config.layer_norm_eps
        )

    def __call__(
        self, hidden_TD, embedded_TD, first_TE, batch: encoder.Batch, *, full, keys_T
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        config, eps = self.config, self.config.layer_norm_eps
        rate = config.hidden_dropout
        sizes = jax.nn.softplus(self.lambdas[...]).astype(hidden_TD.dtype)

        def mixture(place: int) -> jax.Array:
            return self.mixture(hidden_TD, embedded_TD, place)

        mixed_TD = self.attention(
            normalized(mixture(1), eps),
            self.valued(hidden_TD, embedded_TD),
            first_TE,
            batch,
            full=full,
            keys_T=subkeys(keys_T, 0),
        )
        mixed_TD = dropout(mixed_TD, rate, subkeys(keys_T, 1))
        states_TD = normalized(sizes[2] * mixture(3) + mixed_TD, eps)
        states_TD = _scaled(states_TD, self.up_scale)
        gate_TI = jax.nn.gelu(self.gate(states_TD), approximate=True)
        fed_TI = normalized(self.up(states_TD) * gate_TI, eps)
        fed_TD = self.down(_scaled(fed_TI, self.down_scale))
        fed_TD = dropout(fed_TD, rate, subkeys(keys_T, 2))
        return sizes[4] * mixture(5) + mixed_TD + fed_TD


class Norbert4Encoder(encoder.Encoder):
    """NorBERT4.

    Parameter tree: `embeddings/word/embedding`, `embeddings/scale` [D] and, with a
    leading axis over the layers, `layers/lambdas` [6],
    `layers/attention/{q,k,v,out}/kernel`, `layers/attention/{qk,v,out}_scale`,
    `layers/attention/{q,k}_norm` [A, C], `layers/attention/mix` [1],
    `layers/{up,gate,down}/kernel`, `layers/{up,down}_scale`.
    """

    config: Norbert4Config
    rules = (
        Rule("embeddings/scale", (None,)),
        Rule("attention/(q|k|v)/kernel", (None, sharding.MODEL), heads=True),
        Rule("attention/(qk|v|out)_scale", (None,)),
        Rule("attention/(q|k)_norm", (None, None)),
        Rule("attention/mix", (None,)),
        Rule("gate/kernel", (None, sharding.MODEL)),
        Rule("(up|down)_scale", (None,)),
        Rule("lambdas", (None,)),
        Rule("transform/scale", (None,)),
    )
    fused_attention = False  # cuDNN wants values as wide as keys

    def __init__(
        self, config: Norbert4Config, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
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
        embedded_TD, ratio = hidden_TD, self.config.ratio
        graphdef, params = nnx.split(self.layers, nnx.Param)
        first = jax.tree.map(lambda x: x[0], nnx.to_pure_dict(params))
        first = nnx.merge(graphdef, first)
        assert isinstance(first, Layer)
        first_TE = first.attention.values(first.valued(embedded_TD, embedded_TD))

        def call(layer, hidden_TD, index, place):
            return layer(
                hidden_TD,
                embedded_TD,
                first_TE,
                batch,
                full=place == ratio - 1,
                keys_T=subkeys(batch.keys_T, index + 1),
            )

        return self.run_layers(call, self.layers, hidden_TD, batch, period=ratio)


class Transform(nnx.Module):
    """The masked-LM head without its decoder: norm, dense, GELU by tanh, norm, scales.

    Parameters: `dense/kernel` and the scales of its and of the decoder's input.
    """

    def __init__(self, config: Norbert4Config, *, dtype: DType, rngs: nnx.Rngs):
        size = config.hidden_size
        self.eps = config.layer_norm_eps
        self.scale = nnx.Param(jnp.zeros(size))
        self.dense = linear(size, size, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = _Scale(size)

    def __call__(self, hidden_TD: jax.Array) -> jax.Array:
        """Maps hidden states [T, D] to the decoder's input [T, D]."""
        states_TD = _scaled(normalized(hidden_TD, self.eps), self.scale)
        states_TD = jax.nn.gelu(self.dense(states_TD), approximate=True)
        return _scaled(normalized(states_TD, self.eps), self.norm.scale)


class _Scale(nnx.Module):
    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.zeros(size))


_PARTS = {
    "lambdas": "lambdas",
    "attention/q/kernel": "attention.qk_proj.weights.0",
    "attention/k/kernel": "attention.qk_proj.weights.1",
    "attention/qk_scale": "attention.qk_proj.scale",
    "attention/v/kernel": "attention.v_proj.weight",
    "attention/v_scale": "attention.v_proj.scale",
    "attention/out/kernel": "attention.out_proj.weight",
    "attention/out_scale": "attention.out_proj.scale",
    "attention/q_norm": "attention.q_scale",
    "attention/k_norm": "attention.k_scale",
    "attention/mix": "attention.lambdas",
    "up/kernel": "mlp.up_proj.weights.0",
    "gate/kernel": "mlp.up_proj.weights.1",
    "up_scale": "mlp.up_proj.scale",
    "down/kernel": "mlp.down_proj.weight",
    "down_scale": "mlp.down_proj.scale",
}

NORBERT4 = Backbone(
    Norbert4Config,
    Norbert4Encoder,
    names.Names(
        prefixes=("",),
        encoder={
            names.WORD: "embedding.word_embedding.weight",
            "embeddings/scale": "embedding.word_scale",
            **names.of_layers("encoder.layers", _PARTS),
        },
        masked_lm={
            "head/mlm/transform/scale": "classifier.projection.scale",
            "head/mlm/transform/dense/kernel": "classifier.projection.weight",
            "head/mlm/transform/norm/scale": "classifier.emb2vocab.scale",
            "head/mlm/decoder": "classifier.emb2vocab.weight",
            "head/mlm/bias": "classifier.emb2vocab.bias",
        },
    ),
    transformers="GptBert",
    code="gptbert",
    architectures="GptBert",
    transform=Transform,
)
