"""How a family says what other programs call its parameters.

`lsrjax.convert.names` applies it. Paths are ours, with layers apart: `{i}` is the
number of a layer, `{language}` the language of an adapter.
"""

import dataclasses
from collections.abc import Mapping

WORD = "embeddings/word/embedding"


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of a family's tensors in transformers.

    Attributes:
      prefixes: of the encoder; the first one if there is a head, the last one if the
        encoder is alone.
      encoder: path below `encoder/` -> name after the prefix.
      masked_lm: path -> name of the masked-LM head.
      classifier: path -> name of a cross-encoder's head; empty: there is none.
      bias_copy: second name of the masked-LM bias, if any. It takes precedence: where
        the two differ, programs use its values.
      aliases: other names of the masked-LM head's tensors -> those above, under which
        they go out again.
      may_lack: regex of paths that some configs of the family do not have.
      first_apart: the first layer is not like the others, and is `encoder/first`.
    """

    prefixes: tuple[str, ...]
    encoder: Mapping[str, str]
    masked_lm: Mapping[str, str]
    classifier: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bias_copy: str | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    may_lack: str = ""
    first_apart: bool = False

    @property
    def splits_qkv(self) -> bool:
        """Whether queries, keys and values are three tensors there."""
        return "layers/{i}/attention/query/kernel" in self.encoder


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
    """Names of a cross-encoder's head, by its two modules."""
    return {
        "classifier/dense/kernel": f"{dense}.weight",
        "classifier/dense/bias": f"{dense}.bias",
        "classifier/out/kernel": f"{out}.weight",
        "classifier/out/bias": f"{out}.bias",
    }
