"""XLM-RoBERTa XL and XXL: XLM-RoBERTa, normalized ahead of each block.

The computation is that of `XLMRobertaXLModel` in Hugging Face transformers (Goyal et
al., 2021, arXiv:2105.00572), without the pooler.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from lsrjax.models.backbones import bert, names
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.bert import BertConfig


@dataclasses.dataclass(frozen=True)
class XLMRobertaXLConfig(BertConfig):
    """Of `BertEncoder`, with XLM-R's positions, whose embeddings are not normalized."""

    # The defaults are those of transformers' XLMRobertaXLConfig.
    type_vocab_size: int = 1
    pad_token_id: int = 1
    layer_norm_eps: float = 1e-5

    @property
    def counts_from_padding(self) -> bool:
        """Whether positions are counted from the row after the padding's id."""
        return True

    @property
    def norms_ahead(self) -> bool:
        """Whether each block's input is normalized."""
        return True

    @property
    def norms_embeddings(self) -> bool:
        """Whether the embeddings are normalized."""
        return False

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """None: all fields have keys, and their own defaults."""
        return {}

    @classmethod
    def fresh(cls, family: str, pad_token_id: int, positions: int, **sizes) -> Self:
        """The config of an encoder with random weights for texts of some length."""
        rows = positions + pad_token_id + 1
        return cls(family, pad_token_id=pad_token_id, max_positions=rows, **sizes)


_NAMES = bert.encoder_names(
    "encoder.layer.{i}",
    {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/out": "attention.output.dense",
        "attention_norm": "attention.self_attn_layer_norm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "LayerNorm",
    },
    word="word_embeddings",
    position="position_embeddings",
    token_type="token_type_embeddings",
)

XLM_ROBERTA_XL = Backbone(
    XLMRobertaXLConfig,
    bert.BertEncoder,
    names.Names(
        prefixes=("roberta.", ""),
        encoder={
            path: name
            for path, name in _NAMES.items()
            if not path.startswith("embeddings/norm")
        }
        | {
            "final_norm/scale": "encoder.LayerNorm.weight",
            "final_norm/bias": "encoder.LayerNorm.bias",
        },
        masked_lm=bert.XLM_ROBERTA.names.masked_lm,
        classifier=bert.XLM_ROBERTA.names.classifier,
        bias_copy=bert.XLM_ROBERTA.names.bias_copy,
        may_lack=r"encoder/embeddings/token_type/.*",
    ),
    transformers="XLMRobertaXL",
    pooler=True,
)
