"""ModernBERT, mmBERT and Ettin: pre-norm, RoPE, gated blocks, local and full attention.

The computation is that of `ModernBertModel` (Warner et al., 2024, arXiv:2412.13663) in
Hugging Face transformers. Norms have no bias, and mostly nothing else has. A full layer
sees all of a text, a local one `local_attention // 2` tokens to either side; each kind
has its own RoPE base. The first layer's attention has no norm of its own.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.attention import Attention, rotary_tables
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.classifiers import mean_of_tokens
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.rope_settings import (
    FULL,
    LOCAL,
    check_pairs,
    read_pattern,
    read_rope,
)
from lsrjax.models.layers import (
    DType,
    LayerNorm,
    MLMTransform,
    Products,
    dropout,
    gelu,
    linear,
    subkeys,
)
from lsrjax.options import Options, option

# The base of RoPE by the kind of a layer, and its key before transformers 5.
_THETAS = {
    "theta": (FULL, "global_rope_theta", 160_000.0),
    "local_theta": (LOCAL, "local_rope_theta", 10_000.0),
}


@dataclasses.dataclass(frozen=True)
class ModernConfig(EncoderConfig):
    """Of `ModernEncoder`.

    Attributes:
      local_attention: tokens that a local layer's token sees, itself and half of them
        to either side.
      pattern: whether a layer is full, for one period; layer i is like i modulo its
        length.
      theta: RoPE's base in full layers.
      local_theta: in local ones.
      classifier_pooling: what a cross-encoder scores, the state of the first token
        ("cls") or the "mean" of all.
      embedding_dropout: dropout rate of the embeddings; `hidden_dropout` is that inside
        the feed-forward blocks.
    """

    # The defaults are those of transformers' ModernBertConfig.
    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "pad_token_id": "pad_token_id",
        "layer_norm_eps": "norm_eps",
        "hidden_act": "hidden_activation",
        "hidden_dropout": "mlp_dropout",
        "embedding_dropout": "embedding_dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
        "local_attention": "local_attention",
        "norm_bias": "norm_bias",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "head_bias": "classifier_bias",
        "classifier_pooling": "classifier_pooling",
    }

    layer_norm_eps: float = 1e-5
    hidden_dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    local_attention: int = 128
    pattern: tuple[bool, ...] = (True, False, False)
    theta: float = 160_000.0
    local_theta: float = 10_000.0
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    classifier_pooling: str = "cls"

    def __post_init__(self):
        super().__post_init__()
        check_pairs(self)

    @property
    def layer_products(self) -> int:
        """Multiplications of a token with the kernels of a layer."""
        return 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size

    def with_dropout(self, rate: float) -> "ModernConfig":
        """The config with this rate for every kind of dropout."""
        return dataclasses.replace(super().with_dropout(rate), embedding_dropout=rate)

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses what would change the mathematics."""
        super().refuse(config)
        for key, wanted in (("decoder_bias", True), ("classifier_activation", "gelu")):
            if config.get(key, wanted) != wanted:
                raise ValueError(
                    f"{key} is {config[key]!r}, but only {wanted!r} is implemented;"
                    " choose a checkpoint trained with it."
                )
        if config.get("rope_scaling"):
            raise ValueError(
                f"rope_scaling is {config['rope_scaling']!r}, which is not implemented;"
                " choose a checkpoint without it."
            )
        pooling = config.get("classifier_pooling", "cls")
        if pooling not in ("cls", "mean"):
            raise ValueError(
                f"classifier_pooling is {pooling!r}, but only 'cls' and 'mean' are"
                " implemented; choose a checkpoint trained with one of them."
            )

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """RoPE's bases and the pattern of layers, in the words of either release."""
        found: dict[str, Any] = {"pattern": _pattern(config), "pad_token_id": 50_283}
        for field, (kind, old, default) in _THETAS.items():
            found[field], changed = read_rope(config, default, kind, old)
            if changed:
                raise ValueError(
                    f"The RoPE of {kind} is rescaled by {changed}, which is not"
                    " implemented; choose a checkpoint without it."
                )
        return found

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        kinds = [
            FULL if self.pattern[i % len(self.pattern)] else LOCAL
            for i in range(self.num_layers)
        ]
        thetas = {FULL: self.theta, LOCAL: self.local_theta}
        values = {
            "layer_types": kinds,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": theta}
                for kind, theta in thetas.items()
            },
            # Before transformers 5.
            "global_rope_theta": self.theta,
            "local_rope_theta": self.local_theta,
        }
        if not any(self.pattern[1:]) and self.pattern[0]:
            values["global_attn_every_n_layers"] = len(self.pattern)
        return super().to_hf() | values


@dataclasses.dataclass(frozen=True)
class ModernOptions(Options):
    """Of an encoder with random weights, see `ModernConfig`."""

    local_attention: int = option(
        128, "tokens that a local layer's token sees, half to either side", above=0
    )
    theta: float = option(160_000.0, "RoPE's base in layers that see all", above=0)
    local_theta: float = option(
        10_000.0, "RoPE's base in local layers (mmBERT: 160,000)", above=0
    )


def _pattern(config: Mapping[str, Any]) -> tuple[bool, ...]:
    every = config.get("global_attn_every_n_layers", 3)
    if type(every) is not int or every < 1:
        raise ValueError(
            f"global_attn_every_n_layers is {every!r}, which has to be a whole number"
            " above 0. Take the config.json of the weights."
        )
    return read_pattern(config, [FULL] + [LOCAL] * (every - 1))


class Embeddings(nnx.Module):
    """Word embeddings, normalized."""

    def __init__(self, config: ModernConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.word = encoder.table(config, rngs, config.vocab_size)
        self.norm = _norm(config, rngs)

    def __call__(self, ids_T: jax.Array, keys_T: jax.Array | None) -> jax.Array:
        """Embeds token ids; returns [T, D]."""
        embedded_TD = sharding.constrain(self.word(ids_T), sharding.DATA, None)
        embedded_TD = self.norm(embedded_TD).astype(self.dtype)
        return dropout(embedded_TD, self.config.embedding_dropout, keys_T)


class Layer(nnx.Module):
    """Attention and a gated block, each normalized ahead and added to its input."""

    def __init__(
        self, config: ModernConfig, *, first: bool = False, dtype: DType, rngs: nnx.Rngs
    ):
        self.config = config
        out_range = config.initializer_range / (2 * config.num_layers) ** 0.5
        self.attention_norm = None if first else _norm(config, rngs)
        self.attention = Attention(
            config,
            use_bias=config.attention_bias,
            out_range=out_range,
            dtype=dtype,
            rngs=rngs,
        )
        self.output_norm = _norm(config, rngs)
        self.glu = Products(
            2,
            config.hidden_size,
            config.intermediate_size,
            initializer_range=config.initializer_range,
            use_bias=config.mlp_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.down = linear(
            config.intermediate_size,
            config.hidden_size,
            initializer_range=out_range,
            use_bias=config.mlp_bias,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, hidden_TD, batch: encoder.Batch, *, full: bool, rotary, keys_T
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        config = self.config
        states_TD = hidden_TD
        if self.attention_norm is not None:
            states_TD = self.attention_norm(hidden_TD)
        mixed_TD = self.attention(
            states_TD,
            batch.texts,
            batch.seen,
            rotary=rotary,
            window=None if full else config.local_attention // 2,
            keys_T=subkeys(keys_T, 0),
        )
        hidden_TD += dropout(mixed_TD, config.attention_dropout, subkeys(keys_T, 1))
        input_TI, gate_TI = self.glu(self.output_norm(hidden_TD))
        fed_TI = gelu(input_TI) * gate_TI
        fed_TI = dropout(fed_TI, config.hidden_dropout, subkeys(keys_T, 2))
        return hidden_TD + self.down(fed_TI)


class Classifier(nnx.Module):
    """The masked-LM transform and a linear layer, of the first token or the mean.

    As `ModernBertForSequenceClassification` of Hugging Face transformers with one
    label. Parameters: `transform/{dense,norm}/...`, `out/{kernel,bias}`.
    """

    def __init__(
        self, config: ModernConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        self.mean = config.classifier_pooling == "mean"
        self.transform = _transform(config, dtype=dtype, rngs=rngs)
        self.out = linear(config.hidden_size, 1, dtype=dtype, rngs=rngs)

    def __call__(self, hidden_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """The scores [B], float32."""
        pooled_BD = (
            mean_of_tokens(hidden_BLD, mask_BL) if self.mean else hidden_BLD[:, 0]
        )
        return self.out(self.transform(pooled_BD))[:, 0].astype(jnp.float32)


class ModernEncoder(encoder.Encoder):
    """ModernBERT.

    Parameter tree: `embeddings/word/embedding`, `embeddings/norm/scale`,
    `first/...` and, with a leading axis over the other layers, `layers/...`:
    `attention_norm/scale` (not in `first`), `attention/qkv/kernel` [D, 3, D],
    `attention/out/kernel`, `output_norm/scale`, `glu/kernel` [D, 2, I], `down/kernel`;
    `final_norm/scale`; and a `bias` beside each, where the config has them.
    """

    config: ModernConfig

    def __init__(
        self, config: ModernConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        make = partial(Layer, config, dtype=dtype, rngs=rngs)
        self.first = make(first=True)
        more = config.num_layers - 1
        self.layers = encoder.stack(make, more) if more else None
        self.final_norm = _norm(config, rngs)

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        return self.embeddings(texts.join(texts.ids), keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The normalized states after the last layer, [T, D]."""
        config = self.config
        width = config.hidden_size // config.num_heads
        lengths = [ids_BL.shape[1] for ids_BL in batch.texts.ids]
        rotary = {
            full: [rotary_tables(length, width, theta) for length in lengths]
            for full, theta in ((True, config.theta), (False, config.local_theta))
        }

        def call(layer, hidden_TD, index, place):
            full = config.pattern[place]
            keys_T = subkeys(batch.keys_T, index + 1)
            return layer(
                hidden_TD, batch, full=full, rotary=rotary[full], keys_T=keys_T
            )

        hidden_TD = self.run_layer(call, self.first, hidden_TD, batch)
        if self.layers is not None:
            period = len(config.pattern)
            hidden_TD = self.run_layers(
                call, self.layers, hidden_TD, batch, first=1, period=period
            )
        return self.final_norm(hidden_TD)


def _norm(config: ModernConfig, rngs: nnx.Rngs) -> LayerNorm:
    return LayerNorm(
        config.hidden_size,
        config.layer_norm_eps,
        use_bias=config.norm_bias,
        rngs=rngs,
    )


def _transform(config: ModernConfig, *, dtype: DType, rngs: nnx.Rngs) -> MLMTransform:
    return MLMTransform(
        config.hidden_size,
        config.layer_norm_eps,
        dense_bias=config.head_bias,
        norm_bias=config.norm_bias,
        dtype=dtype,
        rngs=rngs,
    )


_PARTS = {
    "attention_norm/scale": "attn_norm.weight",
    "attention_norm/bias": "attn_norm.bias",
    "attention/qkv/kernel": "attn.Wqkv.weight",
    "attention/qkv/bias": "attn.Wqkv.bias",
    "attention/out/kernel": "attn.Wo.weight",
    "attention/out/bias": "attn.Wo.bias",
    "output_norm/scale": "mlp_norm.weight",
    "output_norm/bias": "mlp_norm.bias",
    "glu/kernel": "mlp.Wi.weight",
    "glu/bias": "mlp.Wi.bias",
    "down/kernel": "mlp.Wo.weight",
    "down/bias": "mlp.Wo.bias",
}

MODERNBERT = Backbone(
    ModernConfig,
    ModernEncoder,
    names.Names(
        prefixes=("model.", ""),
        encoder={
            names.WORD: "embeddings.tok_embeddings.weight",
            "embeddings/norm/scale": "embeddings.norm.weight",
            "embeddings/norm/bias": "embeddings.norm.bias",
            **names.of_layers("layers", _PARTS),
            "final_norm/scale": "final_norm.weight",
            "final_norm/bias": "final_norm.bias",
        },
        masked_lm=names.masked_lm("head.dense", "head.norm", "decoder", "decoder"),
        classifier={
            "classifier/transform/dense/kernel": "head.dense.weight",
            "classifier/transform/dense/bias": "head.dense.bias",
            "classifier/transform/norm/scale": "head.norm.weight",
            "classifier/transform/norm/bias": "head.norm.bias",
            "classifier/out/kernel": "classifier.weight",
            "classifier/out/bias": "classifier.bias",
        },
        may_lack=r"(encoder|head/mlm/transform|classifier/transform)/.*bias|encoder/layers/0/attention_norm/.*",
        first_apart=True,
    ),
    transformers="ModernBert",
    transform=_transform,
    classifier=Classifier,
    Options=ModernOptions,
)
