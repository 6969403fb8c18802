"""Models so small that a test trains them in a second."""

from lsrjax.models.backbones.bert import BertConfig

_TYPES = {"bert": 2, "distilbert": 0, "xlm-roberta": 1}


def encoder(family: str = "bert", **changes) -> BertConfig:
    """The config of an encoder whose sizes cannot be mistaken for one another."""
    values = {
        "vocab_size": 23,
        "hidden_size": 12,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 17,
        "max_positions": 16,
        "type_vocab_size": _TYPES[family],
        "pad_token_id": int(family == "xlm-roberta"),
    }
    return BertConfig(family, **(values | changes))
