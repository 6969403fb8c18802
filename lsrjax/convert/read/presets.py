"""Shapes of well-known checkpoints, to plan runs without their files."""

from typing import Any

from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.backbones.deberta import DebertaConfig
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.gemma import Gemma2Config, Gemma3Config, GemmaConfig
from lsrjax.models.backbones.llama_config import (
    EuroBertConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from lsrjax.models.backbones.modern import ModernConfig
from lsrjax.models.backbones.mpnet import MPNetConfig
from lsrjax.models.backbones.norbert3 import Norbert3Config
from lsrjax.models.backbones.norbert4 import Norbert4Config
from lsrjax.models.backbones.other_berts import ElectraConfig
from lsrjax.models.backbones.rotary_config import (
    GteConfig,
    JinaConfig,
    NomicConfig,
)
from lsrjax.models.backbones.xlm_roberta_xl import XLMRobertaXLConfig
from lsrjax.models.backbones.xmod import XmodConfig

# RoBERTa's layers are of the same family.
_XLMR = "xlm-roberta"


def _bert(vocab_size: int, size: str = "base") -> EncoderConfig:
    return _sized("bert", vocab_size, size, 512, 2, 0, 1e-12)


def _xlmr(size: str, max_positions: int = 514) -> EncoderConfig:
    return _sized(_XLMR, 250_002, size, max_positions, 1, 1, 1e-5)


# hidden size, layers, heads, intermediate size
_SIZES = {
    "small": (384, 12, 12, 1536),
    "distil": (768, 6, 12, 3072),
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


def _deberta(
    hidden: int, layers: int, heads: int, inner: int, *, vocab_size: int = 128_100, **v2
) -> EncoderConfig:
    return DebertaConfig(
        "deberta-v2",
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=inner,
        max_positions=512,
        position_biased_input=False,
        position_buckets=256,
        share_att_key=True,
        norm_rel_ebd=True,
        **v2,
    )


def _xlmr_xl(hidden: int, layers: int, inner: int) -> EncoderConfig:
    return XLMRobertaXLConfig(
        "xlm-roberta-xl",
        vocab_size=250_880,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=32,
        intermediate_size=inner,
        max_positions=514,
    )


def _xmod(languages: int) -> EncoderConfig:
    """For a plan, where languages need no names but the first."""
    codes = ("en_XX", *(f"language_{n}" for n in range(1, languages)))
    return XmodConfig(
        "xmod",
        vocab_size=250_002,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        intermediate_size=3072,
        max_positions=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        languages=codes,
        default_language="en_XX",
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


# A decoder's kind, family, and constants of all of its sizes.
_DECODERS: dict[str, tuple[type[LlamaConfig], dict[str, Any]]] = {
    "qwen3": (
        Qwen3Config,
        {
            "vocab_size": 151_936,
            "head_size": 128,
            "max_positions": 40_960,
            "theta": 1e6,
        },
    ),
    "llama": (
        LlamaConfig,
        {
            "vocab_size": 128_256,
            "max_positions": 131_072,
            "layer_norm_eps": 1e-5,
            "theta": 5e5,
            "rope_scaling": (32.0, 1.0, 4.0, 8192),
        },
    ),
    "mistral": (
        MistralConfig,
        {"vocab_size": 32_000, "max_positions": 32_768, "layer_norm_eps": 1e-5},
    ),
    "eurobert": (
        EuroBertConfig,
        {
            "vocab_size": 128_256,
            "max_positions": 8192,
            "theta": 250_000.0,
            "pad_token_id": 128_001,
        },
    ),
    "gemma": (
        GemmaConfig,
        {"vocab_size": 256_000, "max_positions": 8192, "head_size": 256},
    ),
    "gemma2": (
        Gemma2Config,
        {"vocab_size": 256_000, "max_positions": 8192, "head_size": 256},
    ),
    "gemma3_text": (
        Gemma3Config,
        {"vocab_size": 262_144, "max_positions": 32_768, "head_size": 256},
    ),
}


def _decoder(
    family: str,
    hidden: int,
    layers: int,
    heads: tuple[int, int],
    inner: int,
    **more: Any,
) -> EncoderConfig:
    """One of these sizes; `heads` are those of queries, and those of keys."""
    kind, values = _DECODERS[family]
    return kind(
        family,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads[0],
        num_key_heads=heads[1],
        intermediate_size=inner,
        **(values | more),
    )


def _fresh(
    config: type[EncoderConfig],
    family: str,
    vocab_size: int,
    pad: int,
    positions: int = 512,
    size: str = "base",
) -> EncoderConfig:
    hidden, layers, heads, intermediate = _SIZES[size]
    return config.fresh(
        family,
        pad,
        positions,
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=intermediate,
    )


_ELECTRA = _fresh(ElectraConfig, "electra", 30_522, 0)
_MPNET = _fresh(MPNetConfig, "mpnet", 30_527, 1)
_GTE = _fresh(GteConfig, "gte", 250_048, 1, 8192)
_NOMIC = _fresh(NomicConfig, "nomic_bert", 30_528, 0, 2048)

# Checkpoints whose decoder is not the word table.
UNTIED = {
    "Qwen/Qwen3-8B",
    "mistralai/Mistral-7B-v0.1",
    "EuroBERT/EuroBERT-210m",
    "EuroBERT/EuroBERT-610m",
    "EuroBERT/EuroBERT-2.1B",
}
# Whole retrievers: hub id -> head, and its options.
WHOLE: dict[str, tuple[str, dict]] = {"BAAI/bge-m3": ("m3", {"token_bias": True})}
# Hub id -> encoder, and whether the checkpoint has a (masked) language model's head.
PRESETS: dict[str, tuple[EncoderConfig, bool]] = {
    "naver/splade-v3": (_bert(30_522), True),
    "naver/splade-cocondenser-ensembledistil": (_bert(30_522), True),
    "google-bert/bert-base-uncased": (_bert(30_522), True),
    "google-bert/bert-base-multilingual-cased": (_bert(119_547), True),
    "distilbert/distilbert-base-uncased": (
        _sized("distilbert", 30_522, "distil", 512, 0, 0, 1e-12),
        True,
    ),
    "FacebookAI/roberta-base": (_sized(_XLMR, 50_265, "base", 514, 1, 1, 1e-5), True),
    "FacebookAI/xlm-roberta-base": (_xlmr("base"), True),
    "FacebookAI/xlm-roberta-large": (_xlmr("large"), True),
    "BAAI/bge-m3": (_xlmr("large", 8194), False),
    "BAAI/bge-m3-unsupervised": (_xlmr("large", 8194), False),
    "answerdotai/ModernBERT-base": (_modern(768, 22, 12, 1152), True),
    "answerdotai/ModernBERT-large": (_modern(1024, 28, 16, 2624), True),
    "jhu-clsp/mmBERT-small": (_modern(384, 22, 6, 1152, multilingual=True), True),
    "jhu-clsp/mmBERT-base": (_modern(768, 22, 12, 1152, multilingual=True), True),
    "microsoft/mdeberta-v3-base": (
        _deberta(768, 12, 12, 3072, vocab_size=251_000),
        True,
    ),
    "microsoft/deberta-v3-xsmall": (_deberta(384, 12, 6, 1536), True),
    "microsoft/deberta-v3-small": (_deberta(768, 6, 12, 3072), True),
    "microsoft/deberta-v3-base": (_deberta(768, 12, 12, 3072), True),
    "microsoft/deberta-v3-large": (_deberta(1024, 24, 16, 4096), True),
    "microsoft/deberta-v2-xlarge": (
        _deberta(1536, 24, 24, 6144, conv_kernel_size=3, conv_act="gelu"),
        True,
    ),
    "facebook/xlm-roberta-xl": (_xlmr_xl(2560, 36, 10_240), True),
    "facebook/xlm-roberta-xxl": (_xlmr_xl(4096, 48, 16_384), True),
    "facebook/xmod-base": (_xmod(81), True),
    "ltg/norbert3-xs": (_norbert3(192, 12, 3, 512), True),
    "ltg/norbert3-small": (_norbert3(384, 12, 6, 1024), True),
    "ltg/norbert3-base": (_norbert3(768, 12, 12, 2048), True),
    "ltg/norbert3-large": (_norbert3(1024, 24, 16, 2730), True),
    "ltg/norbert4-base": (_NORBERT4, True),
    "Qwen/Qwen3-0.6B": (_decoder("qwen3", 1024, 28, (16, 8), 3072), True),
    "Qwen/Qwen3-1.7B": (_decoder("qwen3", 2048, 28, (16, 8), 6144), True),
    "Qwen/Qwen3-4B": (_decoder("qwen3", 2560, 36, (32, 8), 9728), True),
    "Qwen/Qwen3-8B": (_decoder("qwen3", 4096, 36, (32, 8), 12_288), True),
    "meta-llama/Llama-3.2-1B": (_decoder("llama", 2048, 16, (32, 8), 8192), True),
    "meta-llama/Llama-3.2-3B": (_decoder("llama", 3072, 28, (24, 8), 8192), True),
    "mistralai/Mistral-7B-v0.1": (
        _decoder(
            *("mistral", 4096, 32, (32, 8), 14_336),
            sliding_window=4096,
            pattern=(False,),
        ),
        True,
    ),
    "EuroBERT/EuroBERT-210m": (_decoder("eurobert", 768, 12, (12, 12), 3072), True),
    "EuroBERT/EuroBERT-610m": (_decoder("eurobert", 1152, 26, (18, 6), 4096), True),
    "EuroBERT/EuroBERT-2.1B": (_decoder("eurobert", 2304, 32, (18, 6), 6144), True),
    "google/gemma-2b": (_decoder("gemma", 2048, 18, (8, 1), 16_384), True),
    "BAAI/bge-reranker-v2-gemma": (
        _decoder("gemma", 2048, 18, (8, 1), 16_384),
        True,
    ),
    "google/gemma-2-2b": (_decoder("gemma2", 2304, 26, (8, 4), 9216), True),
    "google/gemma-3-270m": (
        _decoder("gemma3_text", 640, 18, (4, 1), 2048, sliding_window=512),
        True,
    ),
    "google/gemma-3-1b-pt": (
        _decoder("gemma3_text", 1152, 26, (4, 1), 6912, sliding_window=512),
        True,
    ),
    "Alibaba-NLP/gte-multilingual-base": (_GTE, False),
    "Alibaba-NLP/gte-multilingual-mlm-base": (_GTE, True),
    "Snowflake/snowflake-arctic-embed-m-v2.0": (_GTE, False),
    "jinaai/jina-embeddings-v3": (
        _fresh(JinaConfig, "jina_embeddings_v3", 250_002, 1, 8194, "large"),
        False,
    ),
    "nomic-ai/nomic-bert-2048": (_NOMIC, True),
    "nomic-ai/nomic-embed-text-v1.5": (_NOMIC, False),
    "google/electra-base-discriminator": (_ELECTRA, False),
    "microsoft/mpnet-base": (_MPNET, True),
    "sentence-transformers/all-mpnet-base-v2": (_MPNET, False),
    "intfloat/multilingual-e5-small": (_bert(250_037, "small"), False),
    "intfloat/multilingual-e5-base": (_xlmr("base"), False),
    "intfloat/multilingual-e5-large": (_xlmr("large"), False),
}
