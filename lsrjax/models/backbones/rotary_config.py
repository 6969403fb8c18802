"""Configs of GTE, Jina v3 and Nomic, in the words of transformers or the authors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.backbones.encoder_config import EncoderConfig, unlike
from lsrjax.models.backbones.rope_settings import check_pairs, kind_of, read_rope


@dataclasses.dataclass(frozen=True)
class RotaryConfig(EncoderConfig):
    """Of `rotary_bert.RotaryEncoder`; each family has a subclass.

    Attributes:
      type_vocab_size: rows of the token type table, see `BertConfig`; 0: no table.
      theta: RoPE's base.
      stretch: what RoPE's angles are divided by.
    """

    KEYS: ClassVar[Mapping[str, str]] = BertConfig.KEYS
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
        check_pairs(self)

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
        theta, numbers = read_rope(config, cls.DEFAULTS["theta"])
        if len(numbers) > 1:
            raise ValueError(
                f"RoPE is {kind_of(numbers)!r}, which is not implemented for {family};"
                " choose a checkpoint with another."
            )
        width = _head_width(config)
        if width and config.get("head_dim") not in (None, width):
            raise ValueError(
                f"head_dim is {config['head_dim']!r}, but only heads that divide"
                " hidden_size are implemented; choose a checkpoint with them."
            )
        return {**cls.DEFAULTS, "theta": theta, "stretch": (*numbers, 1.0)[0]}

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.theta}
        if self.stretch != 1.0:
            rope |= {"rope_type": "linear", "factor": self.stretch}
        return {**super().to_hf(), "rope_parameters": rope}


def _head_width(config: Mapping[str, Any]) -> int:
    """Of attention heads; 0 if a size is bad, which is refused by its own name."""
    size: Any = config.get("hidden_size")
    heads: Any = config.get("num_attention_heads")
    if unlike("hidden_size", size) or unlike("num_heads", heads):
        return 0
    return size // heads


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

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Also the fixed `ntk` of the authors' code.

        It scales the base, and divides the angles so that the slowest turns `factor`
        times as slowly (https://kexue.fm/archives/9706, equation 6).
        """
        scaling = config.get("rope_scaling")
        if not isinstance(scaling, dict) or scaling.get("type") != "ntk":
            return super().defaults(family, config)
        if scaling.get("mixed_b") is not None:
            raise ValueError(
                f"rope_scaling is {scaling!r}, whose mixed_b is not implemented; choose"
                " a checkpoint without it."
            )
        linear = {"type": "linear", "factor": scaling.get("factor", 1.0)}
        found = super().defaults(family, {**config, "rope_scaling": linear})
        if width := _head_width(config):
            factor = found["stretch"]
            found["theta"] *= factor
            found["stretch"] = factor ** (2 / width)
        return found


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
