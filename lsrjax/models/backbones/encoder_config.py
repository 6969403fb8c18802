"""What every encoder's config has, and how it is read from a config.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from lsrjax.errors import InputError

STATED = "stated"  # in place of a language: each text's own, as its data state it
_MOST = 2**31 - 1  # array indices are int32
# Field -> least and largest value, and the words for it.
_WHOLE = {
    "num_layers": (1, math.inf, "a whole number above 0"),
    **dict.fromkeys(
        (
            *("vocab_size", "hidden_size", "num_heads", "intermediate_size"),
            *("num_key_heads", "head_size"),
        ),
        (1, _MOST, "a whole number above 0 that fits in 31 bits"),
    ),
    **dict.fromkeys(
        (
            "max_positions",
            "type_vocab_size",
            "pad_token_id",
            "window",
            "sliding_window",
        ),
        (0, _MOST, "a whole number from 0 on that fits in 31 bits"),
    ),
}
_REAL = {
    **dict.fromkeys(
        ("layer_norm_eps", "theta", "local_theta", "stretch", "query_scalar"),
        (lambda x: x > 0, "a number above 0"),
    ),
    **dict.fromkeys(
        ("hidden_dropout", "attention_dropout"),
        (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    ),
    **dict.fromkeys(
        ("attention_cap", "logit_cap"), (lambda x: x >= 0, "a number above 0, or null")
    ),
    "initializer_range": (lambda x: x >= 0, "a number from 0 on"),
}


def unlike(field: str, value: Any, kind: Any = None) -> str:
    """The constraint that a field's value violates; empty if none."""
    if field in _WHOLE:
        least, most, wanted = _WHOLE[field]
        return "" if type(value) is int and least <= value <= most else wanted
    if field in _REAL:
        holds, wanted = _REAL[field]
        number = type(value) in (int, float) and math.isfinite(value)
        return "" if number and holds(value) else wanted
    if kind is bool:
        return "" if type(value) is bool else "true or false"
    return ""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and constants of an encoder; each family has a subclass.

    Attributes:
      family: a name in `lsrjax.models.backbones.table.BACKBONES`, or a dotted one.
      num_heads: attention heads; divides hidden_size.
      intermediate_size: width inside the feed-forward blocks.
      max_positions: positions, see max_length.
      hidden_dropout: dropout rate after the embeddings and after every block.
      initializer_range: standard deviation of newly drawn tables and kernels.
    """

    # Field -> key of config.json, by subclass. A key without a default is required.
    KEYS: ClassVar[Mapping[str, str]] = {}
    # The activation of the feed-forward blocks, in transformers' words.
    ACTIVATION: ClassVar[str] = "gelu"
    # Whether heads divide hidden_size, or have a width of their own.
    heads_share_width: ClassVar[bool] = True

    family: str
    _: dataclasses.KW_ONLY
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    pad_token_id: int
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self):
        if self.hidden_act != self.ACTIVATION:
            exact = "the exact " * (self.ACTIVATION == "gelu")
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, but only {exact}"
                f"{self.ACTIVATION!r} is implemented; choose a checkpoint trained with"
                " it."
            )
        if self.heads_share_width and self.hidden_size % self.num_heads:
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
        return self.max_positions

    @property
    def silent_terms(self) -> int:
        """The first ids, special tokens, that the masked-LM head never predicts."""
        return 0

    @property
    def key_heads(self) -> int:
        """Attention heads of keys and values."""
        return self.num_heads

    @property
    def head_width(self) -> int:
        """Of a head's queries and keys."""
        return self.hidden_size // self.num_heads

    @property
    def head_products(self) -> int:
        """Multiplications of a token in the masked-LM head ahead of its decoder."""
        return self.hidden_size**2

    @property
    def layer_products(self) -> int:
        """Multiplications of a token with the kernels of a layer."""
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size

    def with_dropout(self, rate: float) -> Self:
        """The config with this rate for every kind of dropout."""
        return dataclasses.replace(self, hidden_dropout=rate, attention_dropout=rate)

    def seeing(self, attention: str) -> Self:
        """The config with attention "causal" or "both" ways.

        Raises:
          InputError: the family has only one.
        """
        raise InputError(
            f"config.model.attention is {attention!r}, but {self.family} encoders have"
            " one way to read a text. Leave it out."
        )

    def language_number(self, language: str) -> int:
        """A language's place in those that the encoder knows, see `Texts.language`.

        Raises:
          InputError: the family computes the same for all, or does not know this one.
        """
        raise InputError(
            f"The language {language!r} is named, but a {self.family} encoder computes"
            " the same for all of them. Leave it out."
        )

    def with_language(self, language: str) -> Self:
        """The config whose texts are in a language; some families compute by it.

        `STATED` leaves the config's own: each text comes with its number.

        Raises:
          InputError: as of `language_number`.
        """
        self.language_number(language)
        return self

    @classmethod
    def fresh(cls, family: str, pad_token_id: int, positions: int, **sizes) -> Self:
        """The config of an encoder with random weights for texts of some length."""
        return cls(family, pad_token_id=pad_token_id, max_positions=positions, **sizes)

    @classmethod
    def from_hf(cls, family: str, config: Mapping[str, Any]) -> Self:
        """Reads the content of a Hugging Face config.json of this family.

        Raises:
          ValueError: a feature that is not implemented, missing keys or bad values.
        """
        cls.refuse(config)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        found = cls.defaults(family, config)
        values: dict[str, Any] = {}
        missing = []
        for name, key in cls.keys(family).items():
            # Some programs write null for a missing value.
            value = config.get(key)
            if value is None:
                value = found.get(name, fields[name].default)
            if value is dataclasses.MISSING:
                missing.append(key)
            values[name] = value
        if missing:
            raise ValueError(
                f"A config of model_type {config.get('model_type')!r} needs"
                f" {', '.join(missing)}; found only {', '.join(sorted(config))}."
                " Complete the config.json."
            )
        for name, key in cls.keys(family).items():
            if wanted := unlike(name, values[name], fields[name].type):
                raise ValueError(
                    f"{key} is {values[name]!r}, which has to be {wanted}. Take the"
                    " config.json of the weights."
                )
        return cls(family, **{**found, **values})

    @classmethod
    def keys(cls, family: str) -> Mapping[str, str]:
        """Field -> key of config.json."""
        return cls.KEYS

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Values of fields without a key, or whose key is missing."""
        return {}

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Raises a ValueError about a key that would change the mathematics."""
        for key in ("is_decoder", "add_cross_attention"):
            if config.get(key):
                raise ValueError(
                    f"{key} is true, but this is an encoder with attention in both "
                    "directions; choose a checkpoint trained as an encoder."
                )

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        keys = self.keys(self.family)
        values = {key: getattr(self, field) for field, key in keys.items()}
        return {"model_type": self.family, **values}
