"""ELECTRA and ERNIE: BERT's encoder under other names.

`ElectraModel` (Clark et al., 2020, arXiv:2003.10555) and `ErnieModel` (Sun et al.,
2019, arXiv:1904.09223) in Hugging Face transformers. ELECTRA's discriminator was not
trained to predict tokens and has no masked-LM head; its generator has one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lsrjax.models.backbones import names
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.bert import BERT, BertConfig, BertEncoder
from lsrjax.models.backbones.classifiers import FirstToken
from lsrjax.models.layers import gelu


@dataclasses.dataclass(frozen=True)
class OtherBertConfig(BertConfig):
    """Of `BertEncoder` by another name."""

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The padding's id and the rows of types, as BERT's."""
        return {"type_vocab_size": 2, "pad_token_id": 0}

    @classmethod
    def fresh(
        cls, family: str, pad_token_id: int, positions: int, **sizes
    ) -> "OtherBertConfig":
        """The config of an encoder with random weights for texts of some length."""
        return cls(
            family,
            pad_token_id=pad_token_id,
            max_positions=positions,
            type_vocab_size=2,
            **sizes,
        )


@dataclasses.dataclass(frozen=True)
class ElectraConfig(OtherBertConfig):
    """Of ELECTRA."""

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses embeddings of another size, as ELECTRA-small has them."""
        super().refuse(config)
        sizes = config.get("embedding_size", 128), config.get("hidden_size")
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"embedding_size is {sizes[0]!r} and hidden_size {sizes[1]!r}, but only"
                " equal ones are implemented; choose a checkpoint of another size, such"
                " as ELECTRA-base."
            )

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        return super().to_hf() | {"embedding_size": self.hidden_size}


@dataclasses.dataclass(frozen=True)
class ErnieConfig(OtherBertConfig):
    """Of ERNIE."""

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses embeddings of tasks, as ERNIE 2 and 3 have them."""
        super().refuse(config)
        if config.get("use_task_id"):
            raise ValueError(
                "use_task_id is true, but embeddings of tasks are not implemented;"
                " choose a checkpoint without them."
            )


class ElectraClassifier(FirstToken):
    """As in `ElectraForSequenceClassification` of Hugging Face transformers."""

    activation = staticmethod(gelu)


ELECTRA = Backbone(
    ElectraConfig,
    BertEncoder,
    names.Names(
        prefixes=("electra.", ""),
        encoder=BERT.names.encoder,
        masked_lm=names.masked_lm(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head",
            "generator_lm_head",
        ),
        classifier=names.classifier("classifier.dense", "classifier.out_proj"),
        unused={r"discriminator_predictions\..*": "head that finds replaced tokens"},
    ),
    transformers="Electra",
    classifier=ElectraClassifier,
    pairs_have_types=True,
)
ERNIE = dataclasses.replace(
    BERT,
    config=ErnieConfig,
    names=dataclasses.replace(
        BERT.names,
        prefixes=("ernie.", ""),
        classifier=names.classifier("ernie.pooler.dense", "classifier"),
    ),
    transformers="Ernie",
)
