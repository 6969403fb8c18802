"""Shapes of well-known checkpoints, to plan runs without their files."""

from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.modern import ModernConfig
from lsrjax.models.backbones.norbert3 import Norbert3Config
from lsrjax.models.backbones.norbert4 import Norbert4Config
from lsrjax.models.backbones.rotary_bert import (
    GteConfig,
    JinaConfig,
    NomicConfig,
    RotaryConfig,
)


def _bert(vocab_size: int, size: str = "base") -> EncoderConfig:
    return _sized("bert", vocab_size, size, 512, 2, 0, 1e-12)


def _xlmr(size: str, max_positions: int = 514) -> EncoderConfig:
    return _sized("xlm-roberta", 250_002, size, max_positions, 1, 1, 1e-5)


# hidden size, layers, heads, intermediate size
_SIZES = {
    "small": (384, 12, 12, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}


def _sized(family, vocab_size, size, max_positions, types, pad, eps) -> EncoderConfig:
    hidden, layers, heads, intermediate = _SIZES[size]
    return BertConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=intermediate,
        max_positions=max_positions,
        type_vocab_size=types,
        pad_token_id=pad,
        layer_norm_eps=eps,
    )


def _modern(
    hidden: int, layers: int, heads: int, inner: int, *, multilingual: bool = False
) -> EncoderConfig:
    return ModernConfig(
        "modernbert",
        vocab_size=256_000 if multilingual else 50_368,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=inner,
        max_positions=8192,
        pad_token_id=0 if multilingual else 50_283,
        local_theta=160_000.0 if multilingual else 10_000.0,
    )


def _norbert3(hidden: int, layers: int, heads: int, inner: int) -> EncoderConfig:
    return Norbert3Config(
        "norbert3",
        vocab_size=50_000,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=inner,
        max_positions=512,
    )


_NORBERT4 = Norbert4Config(
    "norbert4",
    vocab_size=51_200,
    hidden_size=640,
    num_layers=24,
    num_heads=10,
    intermediate_size=1664,
    max_positions=16_384,
)


def _rotary(
    kind: type[RotaryConfig], family: str, vocab_size: int, size: str, positions: int
) -> EncoderConfig:
    hidden, layers, heads, intermediate = _SIZES[size]
    return kind.fresh(
        family,
        kind.DEFAULTS["pad_token_id"],
        positions,
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=intermediate,
    )


_GTE = _rotary(GteConfig, "gte", 250_048, "base", 8192)
_NOMIC = _rotary(NomicConfig, "nomic_bert", 30_528, "base", 2048)

# Hub id -> encoder, and whether the checkpoint has a masked-LM head (all are tied).
PRESETS: dict[str, tuple[EncoderConfig, bool]] = {
    "naver/splade-v3": (_bert(30_522), True),
    "naver/splade-cocondenser-ensembledistil": (_bert(30_522), True),
    "google-bert/bert-base-uncased": (_bert(30_522), True),
    "google-bert/bert-base-multilingual-cased": (_bert(119_547), True),
    "FacebookAI/xlm-roberta-base": (_xlmr("base"), True),
    "FacebookAI/xlm-roberta-large": (_xlmr("large"), True),
    "BAAI/bge-m3": (_xlmr("large", 8194), False),
    "BAAI/bge-m3-unsupervised": (_xlmr("large", 8194), False),
    "answerdotai/ModernBERT-base": (_modern(768, 22, 12, 1152), True),
    "answerdotai/ModernBERT-large": (_modern(1024, 28, 16, 2624), True),
    "jhu-clsp/mmBERT-small": (_modern(384, 22, 6, 1152, multilingual=True), True),
    "jhu-clsp/mmBERT-base": (_modern(768, 22, 12, 1152, multilingual=True), True),
    "ltg/norbert3-xs": (_norbert3(192, 12, 3, 512), True),
    "ltg/norbert3-small": (_norbert3(384, 12, 6, 1024), True),
    "ltg/norbert3-base": (_norbert3(768, 12, 12, 2048), True),
    "ltg/norbert3-large": (_norbert3(1024, 24, 16, 2730), True),
    "ltg/norbert4-base": (_NORBERT4, True),
    "Alibaba-NLP/gte-multilingual-base": (_GTE, False),
    "Alibaba-NLP/gte-multilingual-mlm-base": (_GTE, True),
    "Snowflake/snowflake-arctic-embed-m-v2.0": (_GTE, False),
    "jinaai/jina-embeddings-v3": (
        _rotary(JinaConfig, "jina_embeddings_v3", 250_002, "large", 8194),
        False,
    ),
    "nomic-ai/nomic-bert-2048": (_NOMIC, True),
    "nomic-ai/nomic-embed-text-v1.5": (_NOMIC, False),
    "intfloat/multilingual-e5-small": (_bert(250_037, "small"), False),
    "intfloat/multilingual-e5-base": (_xlmr("base"), False),
    "intfloat/multilingual-e5-large": (_xlmr("large"), False),
}
