"""GTE, Jina v3 and Nomic: post-norm like BERT, with RoPE in place of a position table.

The computation is that of `GteModel` (Zhang et al., 2024, arXiv:2407.19669),
`JinaEmbeddingsV3Model` (Sturua et al., 2024, arXiv:2409.10173) and `NomicBertModel`
(Nussbaum et al., 2024, arXiv:2402.01613) in Hugging Face transformers. They differ in
the feed-forward block and in what has a bias: GTE's is gated with GELU, Jina's is
BERT's, Nomic's is gated with SiLU and nothing but the norms has a bias.

Published checkpoints are of the authors' own code; their config.json and names of
tensors are read as well, and tensors go out under these names, as transformers writes
them.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.attention import Attention, Rotary, rotary_tables
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.classifiers import FirstToken
from lsrjax.models.backbones.encoder_config import EncoderConfig, unlike
from lsrjax.models.layers import (
    ACTIVATIONS,
    DType,
    LayerNorm,
    MLMTransform,
    Products,
    dropout,
    linear,
    subkeys,
)
from lsrjax.models.texts import Texts


@dataclasses.dataclass(frozen=True)
class RotaryConfig(EncoderConfig):
    """Of `RotaryEncoder`; each family has a subclass.

    Attributes:
      type_vocab_size: rows of the token type table, see `BertConfig`; 0: no table.
      theta: RoPE's base.
      stretch: what RoPE's angles are divided by.
    """

    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "type_vocab_size": "type_vocab_size",
        "pad_token_id": "pad_token_id",
        "layer_norm_eps": "layer_norm_eps",
        "hidden_act": "hidden_act",
        "hidden_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "initializer_range": "initializer_range",
    }
    # Values of fields that a config.json may leave out, as in transformers.
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    # Keys of the authors' code, and the only values that are implemented.
    ONLY: ClassVar[Mapping[str, Any]] = {}
    # The feed-forward block: gated; with dropout between its products; with biases.
    gated: ClassVar[bool] = True
    drops_inside: ClassVar[bool] = False
    up_bias: ClassVar[bool] = False
    down_bias: ClassVar[bool] = True
    attention_bias: ClassVar[bool] = True

    type_vocab_size: int = 1
    theta: float = 10_000.0
    stretch: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size // self.num_heads % 2:
            raise InputError(
                f"hidden_size {self.hidden_size} over num_heads {self.num_heads} is"
                " odd, and RoPE turns pairs; correct one of them in the config."
            )

    @property
    def layer_products(self) -> int:
        """Multiplications of a token with the kernels of a layer."""
        inner = (3 if self.gated else 2) * self.intermediate_size
        return 4 * self.hidden_size**2 + inner * self.hidden_size

    @classmethod
    def fresh(cls, family: str, pad_token_id: int, positions: int, **sizes) -> Self:
        """The config of an encoder with random weights for texts of some length."""
        usual = {k: v for k, v in cls.DEFAULTS.items() if k != "pad_token_id"}
        return super().fresh(family, pad_token_id, positions, **{**usual, **sizes})

    @classmethod
    def from_hf(cls, family: str, config: Mapping[str, Any]) -> Self:
        """Reads a config.json in the words of transformers or of the authors."""
        for key, wanted in cls.ONLY.items():
            if (found := config.get(key)) is not None and found != wanted:
                raise ValueError(
                    f"{key} is {found!r}, but only {wanted!r} is implemented for"
                    f" {family}; choose a checkpoint trained with it."
                )
        return super().from_hf(family, cls.in_stock_words(config))

    @classmethod
    def in_stock_words(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The content of a config.json with the keys of transformers."""
        return config

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """What transformers fills in, and RoPE's base and stretch."""
        theta, stretch = _rope(config, cls.DEFAULTS["theta"])
        heads = config.get("num_attention_heads")
        if heads and config.get("head_dim") not in (
            None,
            config.get("hidden_size", 0) // heads,
        ):
            raise ValueError(
                f"head_dim is {config['head_dim']!r}, but only heads that divide"
                " hidden_size are implemented; choose a checkpoint with them."
            )
        return {**cls.DEFAULTS, "theta": theta, "stretch": stretch}

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.theta}
        if self.stretch != 1.0:
            rope |= {"rope_type": "linear", "factor": self.stretch}
        return {**super().to_hf(), "rope_parameters": rope}


def _rope(config: Mapping[str, Any], default: float) -> tuple[float, float]:
    """RoPE's base and stretch, in the words of either release of transformers."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise ValueError(f"RoPE's parameters are {found!r}, which is not an object.")
    kind = found.get("rope_type", found.get("type", "default"))
    factor = found.get("factor", 1.0) if kind != "default" else 1.0
    theta = found.get("rope_theta", config.get("rope_theta"))
    theta = default if theta is None else theta
    known = {"rope_type", "type", "factor", "rope_theta"}
    # `mixed_b` of GTE's code is null, or another formula.
    more = {k: v for k, v in found.items() if k not in known and v is not None}
    if more or kind not in ("default", "linear", "ntk"):
        raise ValueError(
            f"RoPE is of the type {kind!r} with {found!r}; 'default', 'linear' and the"
            " fixed 'ntk' of GTE's code are implemented. Choose a checkpoint with one"
            " of them."
        )
    for field, value in (("theta", theta), ("stretch", factor)):
        if wanted := unlike(field, value):
            raise ValueError(
                f"RoPE's {'rope_theta' if field == 'theta' else 'factor'} is"
                f" {value!r}, which has to be {wanted}."
            )
    if kind != "ntk":
        return float(theta), float(factor)
    # GTE's code scales the base, and divides the angles so that the slowest turns
    # `factor` times as slowly (https://kexue.fm/archives/9706, equation 6).
    width = config["hidden_size"] // config["num_attention_heads"]
    return float(theta) * factor, factor ** (2 / width)


@dataclasses.dataclass(frozen=True)
class GteConfig(RotaryConfig):
    """Of GTE."""

    ONLY: ClassVar[Mapping[str, Any]] = {
        "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
    }
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "attention_dropout": 0.0,
        "theta": 160_000.0,
    }
    drops_inside: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class JinaConfig(RotaryConfig):
    """Of Jina v3."""

    ONLY: ClassVar[Mapping[str, Any]] = {"position_embedding_type": "rotary"}
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "theta": 20_000.0,
    }
    gated: ClassVar[bool] = False
    up_bias: ClassVar[bool] = True

    @classmethod
    def in_stock_words(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The content of a config.json with the keys of transformers."""
        return {"rope_theta": config.get("rotary_emb_base"), **config}


# Nomic's code has GPT-2's words.
_NOMIC_WORDS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
    "rotary_emb_base": "rope_theta",
}


@dataclasses.dataclass(frozen=True)
class NomicConfig(RotaryConfig):
    """Of Nomic's v1 and v1.5; v2 has experts."""

    ACTIVATION: ClassVar[str] = "silu"
    ONLY: ClassVar[Mapping[str, Any]] = {
        "num_experts": 0,
        "moe_every_n_layers": 0,
        "activation_function": "swiglu",
        "prenorm": False,
        "parallel_block": False,
        "causal": False,
        "use_rms_norm": False,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": 0,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
    }
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "theta": 1_000.0,
    }
    attention_bias: ClassVar[bool] = False
    down_bias: ClassVar[bool] = False
    hidden_act: str = "silu"

    @classmethod
    def in_stock_words(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The content of a config.json with the keys of transformers."""
        old = {new: config[key] for key, new in _NOMIC_WORDS.items() if key in config}
        found = {**old, **config}
        if config.get("rotary_scaling_factor"):
            # It changes the angles of a batch with a longer text, and only then.
            trained = config.get("max_trained_positions") or 2048
            most = found.get("max_position_embeddings") or trained
            found["max_position_embeddings"] = min(most, trained)
        return found


class Embeddings(nnx.Module):
    """Sum of word and token type embeddings, normalized."""

    def __init__(self, config: RotaryConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.word = encoder.table(config, rngs, config.vocab_size)
        if config.type_vocab_size:
            self.token_type = encoder.table(config, rngs, config.type_vocab_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        texts: Texts,
        types: tuple[jax.Array, ...] | None,
        keys_T: jax.Array | None,
    ) -> jax.Array:
        """Embeds token ids, of type 0 if `types` is None; returns [T, D]."""
        embedded_TD = self.word(texts.join(texts.ids))
        if self.config.type_vocab_size:
            if types is not None:
                embedded_TD += self.token_type(texts.join(types))
            else:
                embedded_TD += self.token_type.embedding[...][0][None]
        embedded_TD = sharding.constrain(embedded_TD, sharding.DATA, None)
        embedded_TD = self.norm(embedded_TD).astype(self.dtype)
        return dropout(embedded_TD, self.config.hidden_dropout, keys_T)


class Layer(nnx.Module):
    """Attention and feed-forward block, each normalized after its residual sum."""

    def __init__(self, config: RotaryConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        made: dict[str, Any] = {
            "initializer_range": config.initializer_range,
            "dtype": dtype,
            "rngs": rngs,
        }
        norm = partial(LayerNorm, size, config.layer_norm_eps, rngs=rngs)
        self.attention = Attention(
            config, use_bias=config.attention_bias, dtype=dtype, rngs=rngs
        )
        self.attention_norm = norm()
        if config.gated:
            self.glu = Products(2, size, inner, use_bias=config.up_bias, **made)
        else:
            self.up = linear(size, inner, use_bias=config.up_bias, **made)
        self.down = linear(inner, size, use_bias=config.down_bias, **made)
        self.output_norm = norm()

    def __call__(
        self,
        hidden_TD: jax.Array,
        batch: encoder.Batch,
        rotary: list[Rotary],
        keys_T: jax.Array | None,
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        rate = self.config.hidden_dropout
        mixed_TD = self.attention(
            hidden_TD,
            batch.texts,
            batch.seen,
            rotary=rotary,
            keys_T=subkeys(keys_T, 0),
        )
        mixed_TD = dropout(mixed_TD, rate, subkeys(keys_T, 1))
        hidden_TD = self.attention_norm(hidden_TD + mixed_TD)
        fed_TI = self._inner(hidden_TD)
        if self.config.drops_inside:
            fed_TI = dropout(fed_TI, rate, subkeys(keys_T, 2))
        fed_TD = dropout(self.down(fed_TI), rate, subkeys(keys_T, 3))
        return self.output_norm(hidden_TD + fed_TD)

    def _inner(self, hidden_TD: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.config.hidden_act]
        if not self.config.gated:
            return activation(self.up(hidden_TD))
        up_TI, gate_TI = self.glu(hidden_TD)
        return activation(gate_TI) * up_TI


class RotaryEncoder(encoder.Encoder):
    """GTE, Jina v3 or Nomic.

    Parameter tree: `embeddings/{word,token_type}/embedding`,
    `embeddings/norm/{scale,bias}` and, with a leading axis over the layers,
    `layers/attention/qkv/kernel` [D, 3, D], `layers/attention/out/kernel`,
    `layers/{attention_norm,output_norm}/{scale,bias}`, `layers/glu/kernel` [D, 2, I],
    up and gate, or in Jina's `layers/up/kernel`, `layers/down/kernel`; and a `bias`
    beside each kernel, where the family has it.
    """

    token_types = True
    config: RotaryConfig

    def __init__(
        self, config: RotaryConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.layers = encoder.stack(
            lambda: Layer(config, dtype=dtype, rngs=rngs), config.num_layers
        )

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        return self.embeddings(texts, types, keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""
        config = self.config
        width = config.hidden_size // config.num_heads
        rotary = [
            rotary_tables(ids_BL.shape[1], width, config.theta, config.stretch)
            for ids_BL in batch.texts.ids
        ]

        def call(layer, hidden_TD, index, place):
            return layer(hidden_TD, batch, rotary, subkeys(batch.keys_T, index + 1))

        return self.run_layers(call, self.layers, hidden_TD, batch.remat)


def _transform(config: RotaryConfig, *, dtype: DType, rngs: nnx.Rngs) -> MLMTransform:
    return MLMTransform(
        config.hidden_size,
        config.layer_norm_eps,
        activation=config.hidden_act,
        dtype=dtype,
        rngs=rngs,
    )


def _names(layers: str, norm: str, parts: Mapping[str, str], biases: str = ""):
    """Of an encoder's tensors.

    Args:
      norm: the name of the embeddings' norm.
      parts: from our module of a layer to theirs.
      biases: our modules that have one; norms have.
    """
    found = {
        names.WORD: "embeddings.word_embeddings.weight",
        "embeddings/token_type/embedding": "embeddings.token_type_embeddings.weight",
        "embeddings/norm/scale": f"{norm}.weight",
        "embeddings/norm/bias": f"{norm}.bias",
    }
    of_layer = {}
    for ours, theirs in parts.items():
        is_norm = ours.endswith("norm")
        of_layer[f"{ours}/{'scale' if is_norm else 'kernel'}"] = f"{theirs}.weight"
        if is_norm or ours in biases.split():
            of_layer[f"{ours}/bias"] = f"{theirs}.bias"
    return found | names.of_layers(layers, of_layer)


# gte-base-en-v1.5 has no table of types.
_NO_TYPES = "encoder/embeddings/token_type/embedding"

GTE = Backbone(
    GteConfig,
    RotaryEncoder,
    names.Names(
        prefixes=("gte.", ""),
        other_prefix="new.",
        encoder=_names(
            "encoder.layer",
            "embeddings.LayerNorm",
            {
                "attention/qkv": "attention.qkv_proj",
                "attention/out": "attention.o_proj",
                "attention_norm": "attn_ln",
                "glu": "mlp.up_gate_proj",
                "down": "mlp.down_proj",
                "output_norm": "mlp_ln",
            },
            biases="attention/qkv attention/out down",
        ),
        masked_lm=names.masked_lm(
            "lm_head.dense", "lm_head.norm", "lm_head.decoder", "lm_head.decoder"
        ),
        classifier=names.classifier("gte.pooler.dense", "classifier"),
        may_lack=_NO_TYPES,
        unused={r"classifier\.(weight|bias)": "weights of tokens, as bge-m3 has them"},
    ),
    transformers="Gte",
    classifier=FirstToken,
)
JINA_V3 = Backbone(
    JinaConfig,
    RotaryEncoder,
    names.Names(
        prefixes=("roberta.", ""),
        encoder=_names(
            "encoder.layers",
            "emb_ln",
            {
                "attention/qkv": "mixer.Wqkv",
                "attention/out": "mixer.out_proj",
                "attention_norm": "norm1",
                "up": "mlp.fc1",
                "down": "mlp.fc2",
                "output_norm": "norm2",
            },
            biases="attention/qkv attention/out up down",
        ),
        masked_lm=names.masked_lm(
            "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head"
        ),
        classifier=names.classifier("classifier.dense", "classifier.out_proj"),
        bias_copy="lm_head.decoder.bias",
    ),
    transformers="JinaEmbeddingsV3",
    classifier=FirstToken,
    architectures="XLMRobertaFlash",
    pooler=True,
)
NOMIC = Backbone(
    NomicConfig,
    RotaryEncoder,
    names.Names(
        prefixes=("nomic_bert.", ""),
        other_prefix="bert.",
        encoder=_names(
            "encoder.layers",
            "emb_ln",
            {
                "attention/qkv": "attn.Wqkv",
                "attention/out": "attn.out_proj",
                "attention_norm": "norm1",
                "glu/up": "mlp.fc11",
                "glu/gate": "mlp.fc12",
                "down": "mlp.fc2",
                "output_norm": "norm2",
            },
        ),
        masked_lm=names.masked_lm(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.layer_norm",
            "cls.predictions.decoder",
            "cls.predictions",
        ),
        classifier=names.classifier("nomic_bert.pooler.dense", "classifier"),
        bias_copy="cls.predictions.decoder.bias",
        # The head of Nomic's own code has none.
        zeros=r"cls\.predictions\.(transform\.dense\.)?bias",
    ),
    transformers="NomicBert",
    classifier=FirstToken,
    transform=_transform,
    pairs_have_types=True,
)
