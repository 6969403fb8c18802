"""Tables of other programs' names for the parameters of encoders and heads.

`lsrjax.convert.names` applies them.
"""

import dataclasses
from collections.abc import Mapping


def _encoder(layer: str, parts: Mapping[str, str], **tables: str) -> dict[str, str]:
    """Path below `encoder/` -> name after the encoder's prefix; {i} is the layer.

    `parts` maps our module of a layer to theirs, `tables` our embedding tables.
    """
    names = {
        f"embeddings/{ours}/embedding": f"embeddings.{theirs}.weight"
        for ours, theirs in tables.items()
    }
    names["embeddings/norm/scale"] = "embeddings.LayerNorm.weight"
    names["embeddings/norm/bias"] = "embeddings.LayerNorm.bias"
    for ours, theirs in parts.items():
        weight = "scale" if ours.endswith("norm") else "kernel"
        names[f"layers/{{i}}/{ours}/{weight}"] = f"{layer}.{theirs}.weight"
        names[f"layers/{{i}}/{ours}/bias"] = f"{layer}.{theirs}.bias"
    return names


_BERT = _encoder(
    "encoder.layer.{i}",
    {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    word="word_embeddings",
    position="position_embeddings",
    token_type="token_type_embeddings",
)
_DISTILBERT = _encoder(
    "transformer.layer.{i}",
    {
        "attention/query": "attention.q_lin",
        "attention/key": "attention.k_lin",
        "attention/value": "attention.v_lin",
        "attention/out": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
    word="word_embeddings",
    position="position_embeddings",
)
WORDS = _BERT["embeddings/word/embedding"]  # the same in all


def _mlm(transform: str, norm: str, decoder: str, bias: str) -> dict[str, str]:
    return {
        "head/mlm/transform/dense/kernel": f"{transform}.weight",
        "head/mlm/transform/dense/bias": f"{transform}.bias",
        "head/mlm/transform/norm/scale": f"{norm}.weight",
        "head/mlm/transform/norm/bias": f"{norm}.bias",
        "head/mlm/decoder": f"{decoder}.weight",
        "head/mlm/bias": f"{bias}.bias",
    }


def _bert_mlm(head: str) -> dict[str, str]:
    transform = f"{head}.transform"
    return _mlm(f"{transform}.dense", f"{transform}.LayerNorm", f"{head}.decoder", head)


def _classifier(dense: str, out: str) -> dict[str, str]:
    return {
        "classifier/dense/kernel": f"{dense}.weight",
        "classifier/dense/bias": f"{dense}.bias",
        "classifier/out/kernel": f"{out}.weight",
        "classifier/out/bias": f"{out}.bias",
    }


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of one program.

    Attributes:
      prefixes: of the encoder; the first one if there is a masked-LM head, the last one
        if the encoder is alone.
      heads: path -> name of everything but the encoder.
      required: parts of the tree that every model of this layout has.
      optional: single paths that a model may lack.
      bias_copy: second name of the masked-LM bias, if any. It takes precedence: where
        the two differ, programs use its values.
      encoder: path below `encoder/` -> name after the prefix.
    """

    prefixes: tuple[str, ...]
    heads: dict[str, str]
    required: frozenset[str]
    optional: frozenset[str]
    bias_copy: str | None
    encoder: Mapping[str, str] = dataclasses.field(default_factory=lambda: _BERT)


_MILCO = Layout(
    prefixes=("m_model.",),
    heads={
        "head/connector/kernel": "projector.weight",
        "head/connector/bias": "projector.bias",
        **_bert_mlm("mlm_head.predictions"),
        "head/echo/kernel": "echo.weight",
        "head/echo/bias": "echo.bias",
        "head/echo/scale": "scale",
    },
    required=frozenset({"encoder", "head/connector", "head/mlm"}),
    optional=frozenset(),
    bias_copy="mlm_head.predictions.decoder.bias",
)
# By the encoder's family.
MILCO = {"bert": "milco", "xlm-roberta": "milco", "distilbert": "milco-distilbert"}

LAYOUTS = {
    "bert": Layout(
        prefixes=("bert.", ""),
        heads=_bert_mlm("cls.predictions"),
        required=frozenset({"encoder"}),
        optional=frozenset({"head/mlm/decoder"}),
        bias_copy="cls.predictions.decoder.bias",
    ),
    "xlm-roberta": Layout(
        prefixes=("roberta.", ""),
        heads=_mlm("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head"),
        required=frozenset({"encoder"}),
        optional=frozenset({"head/mlm/decoder"}),
        bias_copy="lm_head.decoder.bias",
    ),
    "distilbert": Layout(
        prefixes=("distilbert.", ""),
        heads=_mlm(
            "vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector"
        ),
        required=frozenset({"encoder"}),
        optional=frozenset({"head/mlm/decoder"}),
        bias_copy=None,
        encoder=_DISTILBERT,
    ),
    "bert-classifier": Layout(
        prefixes=("bert.",),
        heads=_classifier("bert.pooler.dense", "classifier"),
        required=frozenset({"encoder", "classifier"}),
        optional=frozenset(),
        bias_copy=None,
    ),
    "xlm-roberta-classifier": Layout(
        prefixes=("roberta.",),
        heads=_classifier("classifier.dense", "classifier.out_proj"),
        required=frozenset({"encoder", "classifier"}),
        optional=frozenset(),
        bias_copy=None,
    ),
    "milco": _MILCO,
    "milco-distilbert": dataclasses.replace(_MILCO, encoder=_DISTILBERT),
}

# Tensors of other programs that no model here uses, and why; a layout that names one
# takes precedence.
DROPPED = {
    r"((bert|roberta|m_model)\.)?pooler\..*": "sentence-pair head of pre-training",
    r"((bert|roberta|distilbert|m_model)\.)?embeddings\.position_ids": (
        "0, 1, 2, ... as a buffer"
    ),
    r"cls\.seq_relationship\..*": "next-sentence head of pre-training",
    r"en_lsr\..*": "frozen teacher that the MILCO reference saves with its student",
}
