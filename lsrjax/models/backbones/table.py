"""The families of encoders; a family of your own goes by its dotted name.

To add one: a file beside this one with a `Backbone`, a line here, and one in
`model_types` if its config.json has a `model_type`.
"""

from collections.abc import Mapping
from typing import Any

from lsrjax.lookup import known_entry
from lsrjax.models.backbones import (
    bert,
    deberta,
    modern,
    norbert3,
    norbert4,
    xlm_roberta_xl,
    xmod,
)
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.model_types import MODEL_TYPES

BACKBONES: dict[str, Backbone] = {
    "bert": bert.BERT,
    "distilbert": bert.DISTILBERT,
    "xlm-roberta": bert.XLM_ROBERTA,
    "deberta-v2": deberta.DEBERTA,
    "xlm-roberta-xl": xlm_roberta_xl.XLM_ROBERTA_XL,
    "xmod": xmod.XMOD,
    "modernbert": modern.MODERNBERT,
    "norbert3": norbert3.NORBERT3,
    "norbert4": norbert4.NORBERT4,
}


def backbone(family: str) -> Backbone:
    """The family of a name in the table, or of a dotted name that the user has given.

    Raises:
      InputError: another name; a model's files cannot name code.
    """
    own = "name it in config.model.family, or in --family of encode and convert"
    return known_entry(BACKBONES, family, "encoder family", own)


def read_config(raw: Mapping[str, Any]) -> EncoderConfig:
    """The encoder of a Hugging Face config.json.

    RoBERTa and CamemBERT count as XLM-RoBERTa, whose computation they share.

    Raises:
      ValueError: another type of model, a feature that is not implemented, or keys
        that are missing or wrong.
    """
    model_type = raw.get("model_type")
    family = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if model_type is None:
        family = _by_class(raw)
    if family is None:
        raise ValueError(
            f"model_type is {model_type!r}, but only"
            f" {', '.join(MODEL_TYPES)} are implemented; choose a checkpoint"
            " of one of these."
        )
    return BACKBONES[family].config.from_hf(family, raw)


def _by_class(raw: Mapping[str, Any]) -> str | None:
    """The family of a config.json without `model_type`, by its classes' names."""
    classes = raw.get("architectures")
    named = [str(one) for one in classes] if isinstance(classes, list) else []
    if isinstance(code := raw.get("auto_map"), dict):
        named += [str(one).rpartition(".")[2] for one in code.values()]
    for family, entry in BACKBONES.items():
        if entry.architectures and any(
            name.startswith(entry.architectures) for name in named
        ):
            return family
    return None


def config_from(values: Mapping[str, Any]) -> EncoderConfig:
    """The config with these fields, as `dataclasses.asdict` and JSON give them."""
    kind = backbone(values["family"]).config
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    return kind(**fields)
