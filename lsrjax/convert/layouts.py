"""Names of whole models in other programs: an encoder's family, and what is around it.

`lsrjax.convert.names` applies them. A layout is named after the family: 'bert' is a
Hugging Face encoder, alone or with its masked-LM head, 'bert-classifier' one with the
head of a sequence classifier, and 'milco-bert' the reference implementation of MILCO
over such an encoder.
"""

import dataclasses
from collections.abc import Mapping

from lsrjax.models.backbones.bert import bert_masked_lm
from lsrjax.models.backbones.names import Names
from lsrjax.models.backbones.table import backbone

_CLASSIFIER, _MILCO = "-classifier", "milco-"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of one program.

    Attributes:
      prefixes: of the encoder; the first one if there is a head, the last one if the
        encoder is alone.
      heads: path -> name of everything but the encoder.
      required: parts of the tree that every model of this layout has.
      may_lack: regex of single paths that a model may lack.
      bias_copy: second name of the masked-LM bias, if any. It takes precedence: where
        the two differ, programs use its values.
      tied: the decoder may be the word table.
      names: of the encoder, after the prefix.
    """

    prefixes: tuple[str, ...]
    heads: Mapping[str, str]
    required: frozenset[str]
    may_lack: str
    bias_copy: str | None
    tied: bool
    names: Names


def layout_of(name: str) -> Layout:
    """The layout of a name.

    Raises:
      InputError: the family is unknown.
    """
    if name.startswith(_MILCO):
        names = backbone(name.removeprefix(_MILCO)).names
        return Layout(
            prefixes=("m_model.",),
            heads=_MILCO_HEADS,
            required=frozenset({"encoder", "head/connector", "head/mlm"}),
            may_lack=names.may_lack,
            bias_copy="mlm_head.predictions.decoder.bias",
            tied=False,
            names=names,
        )
    names = backbone(name.removesuffix(_CLASSIFIER)).names
    if name.endswith(_CLASSIFIER):
        return Layout(
            prefixes=names.prefixes,
            heads=names.classifier,
            required=frozenset({"encoder", "classifier"}),
            may_lack=names.may_lack,
            bias_copy=None,
            tied=False,
            names=names,
        )
    return Layout(
        prefixes=names.prefixes,
        heads=names.masked_lm,
        required=frozenset({"encoder"}),
        may_lack=f"head/mlm/decoder|{names.may_lack}",
        bias_copy=names.bias_copy,
        tied=True,
        names=names,
    )


def milco(family: str) -> str:
    """The name of MILCO's layout over a family."""
    return f"{_MILCO}{family}"


def classifier(family: str) -> str:
    """The name of the layout of a family's cross-encoders."""
    return f"{family}{_CLASSIFIER}"


_MILCO_HEADS = {
    "head/connector/kernel": "projector.weight",
    "head/connector/bias": "projector.bias",
    **bert_masked_lm("mlm_head.predictions"),
    "head/echo/kernel": "echo.weight",
    "head/echo/bias": "echo.bias",
    "head/echo/scale": "scale",
    # Of lsrjax alone.
    "head/dictionary/terms": "dictionary.terms",
    "head/dictionary/weights": "dictionary.weights",
    "head/stems/characters": "stems.characters",
    "head/stems/terms": "stems.terms",
    "head/stems/weights": "stems.weights",
    "head/ngrams/characters": "ngrams.characters",
    "head/ngrams/weights": "ngrams.weights",
}

# Tensors of other programs that no model here uses, and why; a layout that names one
# takes precedence.
DROPPED = {
    r"(\w+\.)?pooler\..*": "sentence-pair head of pre-training",
    r"(\w+\.)?embeddings\.position_ids": "0, 1, 2, ... as a buffer",
    r"transformer\.layers\.\d+\.attention\.position_indices": "buckets as a buffer",
    r"cls\.seq_relationship\..*": "next-sentence head of pre-training",
    r"en_lsr\..*": "frozen teacher that the MILCO reference saves with its student",
}
