"""Configs of Llama-shaped encoders."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import EncoderConfig, unlike
from lsrjax.models.backbones.rope_settings import (
    FULL,
    LOCAL,
    RESCALED,
    kind_of,
    read_pattern,
    read_rope,
    rescaled,
)


@dataclasses.dataclass(frozen=True)
class LlamaConfig(EncoderConfig):
    """Of `lsrjax.models.backbones.llama.LlamaEncoder`.

    Attributes:
      qk_norm: queries and keys are normalized, head by head.
      block_norms: what attention and the feed-forward block add is normalized too.
      centered: norms multiply by 1 + their scale.
      scales_embeddings: embeddings are multiplied by the root of their size.
      num_key_heads: heads of keys and values, which divides num_heads; 0: num_heads.
      head_size: width of a head; 0: hidden_size over num_heads.
      theta: RoPE's base.
      rope_scaling: of `RESCALED`, the numbers of a kind; (): RoPE as it is.
      attention_bias: of queries, keys, values and the output.
      mlp_bias: of the feed-forward block.
      causal: a token sees those before it only.
      sliding_window: as in config.json: tokens that a token of a causal local layer
        sees, or that one of a local layer in both directions sees to either side; 0:
        there are no local layers.
      pattern: whether a layer sees all, for one period; layer i is like i modulo its
        length.
      local_theta: RoPE's base in local layers, if they have their own.
      query_scalar: products of queries and keys are divided by its root; 0: head_size.
      attention_cap: c, where these products x become c tanh(x / c); 0: they stay.
      logit_cap: the same of the logits.
    """

    KEYS: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_key_heads": "num_key_value_heads",
        "head_size": "head_dim",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "layer_norm_eps": "rms_norm_eps",
        "hidden_act": "hidden_act",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
    }
    ACTIVATION: ClassVar[str] = "silu"
    heads_share_width: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    block_norms: ClassVar[bool] = False
    centered: ClassVar[bool] = False
    scales_embeddings: ClassVar[bool] = False
    # Of transformers, where config.json does not say; 0: by the other sizes.
    theta_unsaid: ClassVar[float] = 10_000.0
    key_heads_unsaid: ClassVar[int] = 0
    head_size_unsaid: ClassVar[int] = 0

    pad_token_id: int = -1
    layer_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    num_key_heads: int = 0
    head_size: int = 0
    theta: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()
    attention_bias: bool = False
    mlp_bias: bool = False
    causal: bool = True
    sliding_window: int = 0
    pattern: tuple[bool, ...] = (True,)
    local_theta: float = 0.0
    query_scalar: float = 0.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not self.num_key_heads:
            object.__setattr__(self, "num_key_heads", self.num_heads)
        if not self.head_size:
            if self.hidden_size % self.num_heads:
                raise InputError(
                    f"hidden_size {self.hidden_size} is not divisible by num_heads"
                    f" {self.num_heads}; correct one of them in the config."
                )
            object.__setattr__(self, "head_size", self.hidden_size // self.num_heads)
        if self.head_size % 2:
            raise InputError(
                f"head_dim {self.head_size} is odd, and RoPE turns pairs; correct the"
                " sizes in the config."
            )
        if self.num_heads % self.num_key_heads:
            raise InputError(
                f"num_attention_heads {self.num_heads} is not divisible by"
                f" num_key_value_heads {self.num_key_heads}; correct one of them in the"
                " config."
            )

    @property
    def key_heads(self) -> int:
        """Attention heads of keys and values."""
        return self.num_key_heads

    @property
    def head_width(self) -> int:
        """Of a head's queries and keys."""
        return self.head_size

    @property
    def head_products(self) -> int:
        """There is nothing ahead of the decoder."""
        return 0

    @property
    def layer_products(self) -> int:
        """Multiplications of a token with the kernels of a layer."""
        heads = 2 * (self.num_heads + self.num_key_heads) * self.head_size
        return self.hidden_size * (heads + 3 * self.intermediate_size)

    def window(self, *, full: bool) -> tuple[int, int] | None:
        """How far a token of a layer sees to the left and right; None: all."""
        if full or not self.sliding_window:
            return (self.max_positions, 0) if self.causal else None
        size = self.sliding_window
        return (size - 1, 0) if self.causal else (size, size)

    def rescaled(self, *, full: bool) -> Callable[[np.ndarray], np.ndarray] | None:
        """How RoPE's speeds change in a layer; None: they do not."""
        own = full or not self.local_theta
        if not self.rope_scaling or not own:
            return None
        return lambda speeds: rescaled(speeds, *self.rope_scaling)

    def seeing(self, attention: str) -> Self:
        """The config with attention "causal" or "both" ways."""
        return dataclasses.replace(self, causal=attention == "causal")

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses what would change the mathematics."""
        super().refuse(config)
        if both := config.get("use_bidirectional_attention"):
            raise ValueError(
                f"use_bidirectional_attention is {both!r}, which this family's code"
                ' does not read; "is_causal": false makes attention go both ways.'
            )
        if type(config.get("is_causal", True)) is not bool:
            raise ValueError(
                f"is_causal is {config['is_causal']!r}, not true or false."
            )

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """What has no key, or has several."""
        found: dict[str, Any] = {"causal": config.get("is_causal", True)}
        pad = config.get("pad_token_id")
        found["pad_token_id"] = -1 if pad is None else pad
        found["theta"], found["rope_scaling"] = read_rope(config, cls.theta_unsaid)
        found["sliding_window"] = cls.local(config)
        found["pattern"] = read_pattern(config, cls.kinds(config))
        for field in found.keys() - ({"pad_token_id"} if pad is None else set()):
            if wanted := unlike(field, found[field]):
                raise ValueError(f"{field} is {found[field]!r}, not {wanted}.")
        if not found["sliding_window"] and not all(found["pattern"]):
            raise ValueError(
                f"layer_types has {LOCAL}, and sliding_window is"
                f" {config.get('sliding_window')!r}. Take the config.json of the"
                " weights."
            )
        return found | cls.heads(config)

    @classmethod
    def heads(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The sizes of heads that have no key."""
        size, count = config.get("hidden_size"), config.get("num_attention_heads")
        if type(size) is not int or type(count) is not int or count < 1:
            return {}  # refused by its own name
        keys = count if "num_key_value_heads" in config else cls.key_heads_unsaid
        return {
            "num_key_heads": keys or count,
            "head_size": cls.head_size_unsaid or size // count,
        }

    @classmethod
    def local(cls, config: Mapping[str, Any]) -> int:
        """The `sliding_window` that local layers use; 0: there are none."""
        return 0

    @classmethod
    def kinds(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The kinds of the first layers, which repeat, without `layer_types`."""
        return (FULL,)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        values = super().to_hf()
        kind = kind_of(self.rope_scaling)
        numbers = dict(zip(RESCALED[kind], self.rope_scaling, strict=True))
        rope = {"rope_type": kind, **numbers}
        values |= {
            "pad_token_id": self.pad_token_id if self.pad_token_id >= 0 else None,
            "rope_parameters": {"rope_theta": self.theta, **rope},
            # Before transformers 5.
            "rope_theta": self.theta,
        }
        if numbers:
            values["rope_scaling"] = rope
        if not self.causal:
            values["is_causal"] = False
        return values

    def layer_types(self) -> list[str]:
        """The kind of each layer."""
        return [
            FULL if self.pattern[i % len(self.pattern)] else LOCAL
            for i in range(self.num_layers)
        ]


@dataclasses.dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """Of Mistral, whose layers are all local or all full."""

    KEYS: ClassVar[Mapping[str, str]] = {
        field: key
        for field, key in LlamaConfig.KEYS.items()
        if field not in ("attention_bias", "mlp_bias")
    }
    key_heads_unsaid: ClassVar[int] = 8

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Also refuses layers of several kinds, which its code does not read."""
        super().refuse(config)
        if config.get("layer_types"):
            raise ValueError(
                f"layer_types is {config['layer_types']!r}, which Mistral does not"
                " have; choose a checkpoint without it."
            )

    @classmethod
    def local(cls, config: Mapping[str, Any]) -> int:
        """That of all layers."""
        return config.get("sliding_window", 4096) or 0

    @classmethod
    def kinds(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """One for all layers."""
        return (LOCAL if cls.local(config) else FULL,)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        return super().to_hf() | {"sliding_window": self.sliding_window or None}


@dataclasses.dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """Of Qwen3, whose queries and keys are normalized."""

    KEYS: ClassVar[Mapping[str, str]] = {
        field: key for field, key in LlamaConfig.KEYS.items() if field != "mlp_bias"
    }
    qk_norm: ClassVar[bool] = True
    key_heads_unsaid: ClassVar[int] = 32
    head_size_unsaid: ClassVar[int] = 128

    @classmethod
    def local(cls, config: Mapping[str, Any]) -> int:
        """Used only if the config says so."""
        used = config.get("use_sliding_window", False)
        return (config.get("sliding_window", 4096) or 0) if used else 0

    @classmethod
    def kinds(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """Layers from `max_window_layers` on are local."""
        count = config.get("num_hidden_layers")
        if not cls.local(config) or type(count) is not int:
            return (FULL,)
        first = config.get("max_window_layers", 28)
        return [LOCAL if i >= first else FULL for i in range(count)]

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        kinds = self.layer_types()
        return super().to_hf() | {
            "use_sliding_window": bool(self.sliding_window),
            "sliding_window": self.sliding_window or None,
            "max_window_layers": kinds.index(LOCAL) if LOCAL in kinds else len(kinds),
            "layer_types": kinds,
        }


@dataclasses.dataclass(frozen=True)
class EuroBertConfig(LlamaConfig):
    """Of EuroBERT, a Llama that reads both ways."""

    layer_norm_eps: float = 1e-5
    causal: bool = False

    def seeing(self, attention: str) -> Self:
        """The config as it is.

        Raises:
          InputError: attention is "causal".
        """
        if attention == "causal":
            raise InputError(
                "config.model.attention is 'causal', and EuroBERT reads both ways."
                " Leave it out."
            )
        return self

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """What has no key; attention always goes both ways."""
        return super().defaults(family, config) | {"causal": False}

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        values = super().to_hf()
        del values["is_causal"]  # its code does not read it
        return values
