"""How a family says what other programs call its parameters.

`lsrjax.convert.names` applies it. Paths are ours, with layers apart: `{i}` is the
number of a layer, `{language}` the language of an adapter.
"""

import dataclasses
from collections.abc import Mapping

WORD = "embeddings/word/embedding"
# Products that are one parameter of ours -> their names where they are tensors of their
# own, in the order of the parameter's axis.
PRODUCTS = {
    "attention/qkv": ("attention/query", "attention/key", "attention/value"),
    "glu": ("glu/up", "glu/gate"),
}


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of a family's tensors in transformers.

    Attributes:
      prefixes: of the encoder; the first one if there is a head, the last one if the
        encoder is alone.
      encoder: path below `encoder/` -> name after the prefix.
      masked_lm: path -> name of the masked-LM head.
      classifier: path -> name of a cross-encoder's head.
      bias_copy: second name of the masked-LM bias, if any. It takes precedence: where
        the two differ, programs use its values.
      aliases: other names of the masked-LM head's tensors -> those above, under which
        they go out again.
      may_lack: regex of paths that some configs of the family do not have.
      first_apart: the first layer is not like the others, and is `encoder/first`.
      other_prefix: what some checkpoints have in place of the first of `prefixes`.
      zeros: regex of names that checkpoints may lack, which are zeros then.
      unused: regex of names that are read over, and why, beside `layouts.DROPPED`.
    """

    prefixes: tuple[str, ...]
    encoder: Mapping[str, str]
    masked_lm: Mapping[str, str]
    classifier: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bias_copy: str | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    may_lack: str = ""
    first_apart: bool = False
    other_prefix: str = ""
    zeros: str = ""
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def apart(self) -> dict[str, tuple[str, ...]]:
        """Of `PRODUCTS`, those that are tensors of their own there."""
        return {
            whole: parts
            for whole, parts in PRODUCTS.items()
            if all(f"layers/{{i}}/{part}/kernel" in self.encoder for part in parts)
        }


def of_layers(layers: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Names of the layers' parameters, from ours to theirs within a layer."""
    return {
        f"layers/{{i}}/{ours}": f"{layers}.{{i}}.{theirs}"
        for ours, theirs in parts.items()
    }


def masked_lm(transform: str, norm: str, decoder: str, bias: str) -> dict[str, str]:
    """Names of a masked-LM head, by its dense layer, norm, decoder and bias."""
    return {
        "head/mlm/transform/dense/kernel": f"{transform}.weight",
        "head/mlm/transform/dense/bias": f"{transform}.bias",
        "head/mlm/transform/norm/scale": f"{norm}.weight",
        "head/mlm/transform/norm/bias": f"{norm}.bias",
        "head/mlm/decoder": f"{decoder}.weight",
        "head/mlm/bias": f"{bias}.bias",
    }


def classifier(dense: str, out: str) -> dict[str, str]:
    """Names of the head `classifiers.FirstToken`, by its two modules."""
    return {
        "classifier/dense/kernel": f"{dense}.weight",
        "classifier/dense/bias": f"{dense}.bias",
        "classifier/out/kernel": f"{out}.weight",
        "classifier/out/bias": f"{out}.bias",
    }
