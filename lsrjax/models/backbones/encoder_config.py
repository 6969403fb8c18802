"""Shape and constants of an encoder, and their names in Hugging Face's config.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lsrjax.errors import InputError

# RoBERTa and CamemBERT differ from XLM-RoBERTa in vocabulary only.
_FAMILIES = {
    "bert": "bert",
    "distilbert": "distilbert",
    "xlm-roberta": "xlm-roberta",
    "roberta": "xlm-roberta",
    "camembert": "xlm-roberta",
}
_PAD_TOKEN_IDS = {"bert": 0, "distilbert": 0, "xlm-roberta": 1}

# Our field -> key of config.json. A key without a default is required; the defaults
# are those of transformers' BertConfig and XLMRobertaConfig.
_HF_KEYS = {
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
_DISTILBERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "pad_token_id": "pad_token_id",
    "hidden_act": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
_MOST = 2**31 - 1  # array indices are int32
# Field -> least and largest value, and the words for it.
_WHOLE = {
    "num_layers": (1, math.inf, "a whole number above 0"),
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "num_heads", "intermediate_size"),
        (1, _MOST, "a whole number above 0 that fits in 31 bits"),
    ),
    **dict.fromkeys(
        ("max_positions", "type_vocab_size", "pad_token_id"),
        (0, _MOST, "a whole number from 0 on that fits in 31 bits"),
    ),
}
_REAL = {
    "layer_norm_eps": (lambda x: x > 0, "a number above 0"),
    "hidden_dropout": (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "attention_dropout": (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "initializer_range": (lambda x: x >= 0, "a number from 0 on"),
}


def _hf_keys(family: str) -> Mapping[str, str]:
    return _DISTILBERT_KEYS if family == "distilbert" else _HF_KEYS


def _unlike(field: str, value: Any) -> str:
    """The constraint that a field's value violates; empty if none."""
    if field in _WHOLE:
        least, most, wanted = _WHOLE[field]
        return "" if type(value) is int and least <= value <= most else wanted
    if field in _REAL:
        holds, wanted = _REAL[field]
        number = type(value) in (int, float) and math.isfinite(value)
        return "" if number and holds(value) else wanted
    return ""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and constants of an encoder.

    Attributes:
      family: 'bert', 'distilbert' or 'xlm-roberta'; decides how positions are numbered.
      num_heads: attention heads; divides hidden_size.
      intermediate_size: width inside the feed-forward blocks.
      max_positions: rows of the position table, see max_length.
      type_vocab_size: rows of the token type table: row 0 for texts, row 1 for the
        second texts of pairs; 0: no table (DistilBERT).
      pad_token_id: id of the padding token; XLM-R counts positions from it.
      hidden_dropout: dropout rate after the embeddings and after every block.
      initializer_range: standard deviation of newly drawn tables and kernels.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self):
        if self.family not in _PAD_TOKEN_IDS:
            raise ValueError(
                f"Unknown encoder family {self.family!r}; known: "
                f"{', '.join(_PAD_TOKEN_IDS)}."
            )
        if self.hidden_act != "gelu":
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, but only the exact 'gelu' is "
                "implemented; choose a checkpoint trained with it."
            )
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads "
                f"{self.num_heads}; correct one of them in the config."
            )
        if self.max_length < 1:
            raise ValueError(
                f"A position table of {self.max_positions} rows leaves no position for "
                f"a token (pad_token_id {self.pad_token_id}, family {self.family!r}); "
                "correct max_positions or pad_token_id in the config."
            )

    @property
    def max_length(self) -> int:
        """The most tokens of a text, special tokens included."""
        if self.family == "xlm-roberta":
            # Rows 0..pad_token_id are never used by tokens.
            return self.max_positions - (self.pad_token_id + 1)
        return self.max_positions

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "EncoderConfig":
        """Reads the content of a Hugging Face config.json.

        RoBERTa and CamemBERT count as XLM-RoBERTa, whose computation they share.

        Raises:
          ValueError: another type of model, a feature that is not implemented, or
            missing keys.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in _FAMILIES:
            raise ValueError(
                f"model_type is {model_type!r}, but only {', '.join(_FAMILIES)} are "
                "implemented; choose a checkpoint of one of these."
            )
        family = _FAMILIES[model_type]
        positions = config.get("position_embedding_type") or "absolute"
        if positions != "absolute":
            raise ValueError(
                f"position_embedding_type is {positions!r}, but only 'absolute' is "
                "implemented; choose a checkpoint trained with it."
            )
        for key in ("is_decoder", "add_cross_attention"):
            if config.get(key):
                raise ValueError(
                    f"{key} is true, but this is an encoder with attention in both "
                    "directions; choose a checkpoint trained as an encoder."
                )
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(cls)
            if field.default is not dataclasses.MISSING
        }
        defaults |= {"type_vocab_size": 2, "pad_token_id": _PAD_TOKEN_IDS[family]}
        values: dict[str, Any] = (
            {"type_vocab_size": 0} if family == "distilbert" else {}
        )
        missing = []
        for field, key in _hf_keys(family).items():
            # Some programs write null for a missing value.
            value = config.get(key)
            value = defaults.get(field) if value is None else value
            if value is None:
                missing.append(key)
            values[field] = value
        if missing:
            raise ValueError(
                f"A config of model_type {model_type!r} needs {', '.join(missing)}; "
                f"found only {', '.join(sorted(config))}. Complete the config.json."
            )
        for field, key in _hf_keys(family).items():
            if wanted := _unlike(field, values[field]):
                raise ValueError(
                    f"{key} is {values[field]!r}, which has to be {wanted}. Take the"
                    " config.json of the weights."
                )
        return cls(family=family, **values)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        keys = _hf_keys(self.family)
        values = {key: getattr(self, field) for field, key in keys.items()}
        if self.family != "distilbert":
            values = {"position_embedding_type": "absolute", **values}
        return {"model_type": self.family, **values}
