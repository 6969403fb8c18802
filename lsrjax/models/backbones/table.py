"""The families of encoders; a family of your own goes by its dotted name.

To add one: a file beside this one with a `Backbone`, a line here, and one in
`model_types` if its config.json has a `model_type`.
"""

from collections.abc import Mapping
from typing import Any

from lsrjax.errors import InputError
from lsrjax.lookup import imported, known_entry
from lsrjax.models.backbones import (
    bert,
    deberta,
    gemma,
    llama,
    modern,
    mpnet,
    norbert3,
    norbert4,
    other_berts,
    rotary_bert,
    xlm_roberta_xl,
    xmod,
)
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.model_types import MODEL_TYPES
from lsrjax.options import Chosen, resolve

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
    "qwen3": llama.QWEN3,
    "llama": llama.LLAMA,
    "mistral": llama.MISTRAL,
    "eurobert": llama.EUROBERT,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
    "gte": rotary_bert.GTE,
    "jina_embeddings_v3": rotary_bert.JINA_V3,
    "nomic_bert": rotary_bert.NOMIC,
    "electra": other_berts.ELECTRA,
    "ernie": other_berts.ERNIE,
    "mpnet": mpnet.MPNET,
}


def backbone(family: str) -> Backbone:
    """The family of a name in the table, or of a dotted name that the user has given.

    Raises:
      InputError: another name; a model's files cannot name code.
    """
    own = "name it in config.model.family, or in --family of encode and convert"
    return _checked(known_entry(BACKBONES, family, "encoder family", own), family)


def chosen(node: Any, field: str = "config.model.family") -> Chosen:
    """The family that the user's own config or flag names, with its options.

    Raises:
      InputError: an unknown family or option.
    """
    found = resolve(BACKBONES, node, field)
    _checked(found.entry, found.name, field)
    return found


def _checked(found: Any, name: str, field: str = "The encoder family") -> Backbone:
    if not isinstance(found, Backbone):
        raise InputError(
            f"{field} is {name!r}, which is no Backbone of"
            " lsrjax/models/backbones/backbone.py."
        )
    return found


def read_config(raw: Mapping[str, Any]) -> EncoderConfig:
    """The encoder of a Hugging Face config.json.

    RoBERTa and CamemBERT count as XLM-RoBERTa, whose computation they share.

    Raises:
      ValueError: another type of model, a feature that is not implemented, or keys
        that are missing or wrong.
    """
    # Code of a model's own may keep the `model_type` of what it derives from.
    family, model_type = _by_class(raw, BACKBONES), raw.get("model_type")
    if family is None and isinstance(model_type, str):
        family = MODEL_TYPES.get(model_type)
    if family is None:
        family = _by_class(raw, imported(Backbone))
    if family is None:
        raise ValueError(
            f"model_type is {model_type!r}, but only"
            f" {', '.join(MODEL_TYPES)} are implemented; choose a checkpoint"
            " of one of these."
        )
    return backbone(family).config.from_hf(family, raw)


def _by_class(raw: Mapping[str, Any], families: Mapping[str, Backbone]) -> str | None:
    """The family whose classes a config.json names, in its own code or without."""
    classes = raw.get("architectures")
    named = [str(one) for one in classes] if isinstance(classes, list) else []
    if isinstance(code := raw.get("auto_map"), dict):
        named += [str(one).rpartition(".")[2] for one in code.values()]
    for family, entry in families.items():
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
