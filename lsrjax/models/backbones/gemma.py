"""Gemma 1 and 2 and the texts of Gemma 3: Llama's module with the family's norms.

The computation is that of `GemmaModel`, `Gemma2Model` and `Gemma3TextModel` in Hugging
Face transformers (Gemma Team, 2024, arXiv:2403.08295, arXiv:2408.00118; 2025,
arXiv:2503.19786). Norms multiply by 1 + their scale, embeddings are scaled. From Gemma
2 on a layer has four norms, and local layers alternate with full ones. Gemma 2 caps
products and logits; Gemma 3 normalizes queries and keys and has a RoPE base for each
kind of layers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from lsrjax.models.backbones.encoder_config import unlike
from lsrjax.models.backbones.llama import family
from lsrjax.models.backbones.llama_config import LlamaConfig
from lsrjax.models.backbones.rope_settings import FULL, LOCAL, read_rope


@dataclasses.dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """Of Gemma 1."""

    KEYS: ClassVar[Mapping[str, str]] = {
        field: key for field, key in LlamaConfig.KEYS.items() if field != "mlp_bias"
    }
    ACTIVATION: ClassVar[str] = "gelu_pytorch_tanh"
    centered: ClassVar[bool] = True
    scales_embeddings: ClassVar[bool] = True
    key_heads_unsaid: ClassVar[int] = 16
    head_size_unsaid: ClassVar[int] = 256

    hidden_act: str = "gelu_pytorch_tanh"
    pad_token_id: int = 0

    @classmethod
    def from_hf(cls, family: str, config: Mapping[str, Any]) -> Self:
        """Reads the content of a Hugging Face config.json of this family.

        In Gemma 1's `hidden_act` the tanh approximation is also called "gelu", while
        `hidden_activation` takes its names literally.
        """
        act = config.get("hidden_act")
        act = cls.ACTIVATION if act == "gelu" else act
        act = config.get("hidden_activation") or act
        return super().from_hf(family, {**config, "hidden_act": act})


@dataclasses.dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    """Of Gemma 2."""

    KEYS: ClassVar[Mapping[str, str]] = {
        **GemmaConfig.KEYS,
        "hidden_act": "hidden_activation",
        "query_scalar": "query_pre_attn_scalar",
    }
    block_norms: ClassVar[bool] = True
    key_heads_unsaid: ClassVar[int] = 4
    # Of transformers, where config.json does not say.
    caps: ClassVar[tuple[float | None, float | None]] = (50.0, 30.0)

    query_scalar: float = 256
    attention_cap: float = 50.0
    logit_cap: float = 30.0
    sliding_window: int = 4096
    pattern: tuple[bool, ...] = (False, True)

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Also the caps, whose null is a value."""
        found = super().defaults(family, config)
        keys = ("attn_logit_softcapping", "final_logit_softcapping")
        for field, key, unsaid in zip(
            ("attention_cap", "logit_cap"), keys, cls.caps, strict=True
        ):
            found[field] = config.get(key, unsaid)
            found[field] = 0.0 if found[field] is None else found[field]
            if wanted := unlike(field, found[field]):
                raise ValueError(f"{key} is {found[field]!r}, not {wanted}.")
        return found

    @classmethod
    def local(cls, config: Mapping[str, Any]) -> int:
        """That of the local layers."""
        return config.get("sliding_window", 4096) or 0

    @classmethod
    def kinds(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """Every second layer is full."""
        return (LOCAL, FULL)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        return super().to_hf() | {
            "attn_logit_softcapping": self.attention_cap or None,
            "final_logit_softcapping": self.logit_cap or None,
            "sliding_window": self.sliding_window or None,
            "layer_types": self.layer_types(),
        }


@dataclasses.dataclass(frozen=True)
class Gemma3Config(Gemma2Config):
    """Of the texts of Gemma 3."""

    qk_norm: ClassVar[bool] = True
    theta_unsaid: ClassVar[float] = 1_000_000.0
    caps: ClassVar[tuple[float | None, float | None]] = (None, None)

    theta: float = 1_000_000.0
    local_theta: float = 10_000.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    pattern: tuple[bool, ...] = (False,) * 5 + (True,)

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses what would change the mathematics."""
        both = config.get("use_bidirectional_attention")
        if both not in (None, True, False):
            raise ValueError(
                f"use_bidirectional_attention is {both!r}, not true or false."
            )
        if both and "is_causal" in config:
            raise ValueError(
                "use_bidirectional_attention and is_causal are both given, and their"
                " windows differ. Take the config.json of the weights."
            )
        if (cap := config.get("attn_logit_softcapping")) is not None:
            raise ValueError(
                f"attn_logit_softcapping is {cap!r}, which Gemma 3's code does not"
                " read; choose a checkpoint without it."
            )
        super().refuse({**config, "use_bidirectional_attention": None})

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Also a RoPE for each kind of layers, and attention both ways."""
        plain = {
            key: value
            for key, value in config.items()
            if key not in ("rope_parameters", "rope_scaling")
        }
        found = super().defaults(family, plain)
        theta, numbers = read_rope(config, cls.theta_unsaid, FULL)
        local, changed = read_rope(config, 10_000.0, LOCAL, "rope_local_base_freq")
        if changed:
            raise ValueError(
                f"The RoPE of {LOCAL} is rescaled by {changed}, which is not"
                " implemented; choose a checkpoint without it."
            )
        found |= {"theta": theta, "rope_scaling": numbers, "local_theta": local}
        if config.get("use_bidirectional_attention"):
            # The key's words for a window: half of it to either side.
            found["causal"] = False
            found["sliding_window"] //= 2
        return found

    @classmethod
    def kinds(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """Every sixth layer is full, or as the config says."""
        every = config.get("sliding_window_pattern", 6)
        if type(every) is not int or every < 1:
            raise ValueError(
                f"sliding_window_pattern is {every!r}, which has to be a whole number"
                " above 0. Take the config.json of the weights."
            )
        return (LOCAL,) * (every - 1) + (FULL,)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        values = super().to_hf()
        own = {"rope_type": "default", "rope_theta": self.local_theta}
        values["rope_parameters"] = {FULL: values["rope_parameters"], LOCAL: own}
        values["rope_local_base_freq"] = self.local_theta
        if not self.causal:
            del values["is_causal"]
            values["use_bidirectional_attention"] = True
            values["sliding_window"] = 2 * self.sliding_window
        return values


GEMMA = family(GemmaConfig, "Gemma", tied=True)
GEMMA2 = family(Gemma2Config, "Gemma2", tied=True)
GEMMA3 = family(Gemma3Config, "Gemma3", alone="TextModel", tied=True)
