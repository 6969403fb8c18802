"""DeBERTa v2 and v3: BERT's blocks, whose attention also looks at distances.

The computation is that of `DebertaV2Model` in Hugging Face transformers (He et al.,
2021, arXiv:2006.03654 and arXiv:2111.09543). v2's larger sizes add a convolution to the
first layer's output. In array names P is the rows of the table of distances. Unlike
there, embeddings of distances have no dropout: a draw would be one for all texts.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.distributed.sharding import MODEL, Rule
from lsrjax.errors import InputError
from lsrjax.models.backbones import bert, encoder, names
from lsrjax.models.backbones.attention import (
    Attention,
    attend_to_distances,
    log_buckets,
)
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.backbones.classifiers import FirstToken
from lsrjax.models.layers import DType, LayerNorm, dropout, gelu, linear, subkeys
from lsrjax.models.texts import Texts

_TERMS = ("c2p", "p2c")
_ACTIVATIONS: dict[str, Callable] = {"tanh": jnp.tanh, "gelu": gelu}


@dataclasses.dataclass(frozen=True)
class DebertaConfig(BertConfig):
    """Of `DebertaEncoder`.

    Attributes:
      position_biased_input: there is a table of positions.
      position_buckets: buckets of distances to one side; below 1: each distance has its
        own.
      max_relative_positions: the distance from which on all are alike; with buckets,
        the first one beyond the last bucket. Below 1: max_positions.
      pos_att_type: what meets distances: queries ("c2p"), keys ("p2c").
      share_att_key: distances take the kernels of queries and keys.
      norm_rel_ebd: the embeddings of distances are normalized.
      conv_kernel_size: tokens of the convolution, an odd number; 0: none.
      conv_act: its activation.
    """

    KEYS: ClassVar[Mapping[str, str]] = {
        **BertConfig.KEYS,
        "position_biased_input": "position_biased_input",
        "position_buckets": "position_buckets",
        "max_relative_positions": "max_relative_positions",
        "share_att_key": "share_att_key",
        "conv_kernel_size": "conv_kernel_size",
        "conv_act": "conv_act",
    }

    # The defaults are those of transformers' DebertaV2Config.
    type_vocab_size: int = 0
    pad_token_id: int = 0
    layer_norm_eps: float = 1e-7
    position_biased_input: bool = True
    position_buckets: int = -1
    max_relative_positions: int = -1
    pos_att_type: tuple[str, ...] = _TERMS
    share_att_key: bool = False
    norm_rel_ebd: bool = False
    conv_kernel_size: int = 0
    conv_act: str = "tanh"

    def __post_init__(self):
        super().__post_init__()
        buckets, far, conv = (
            self.position_buckets,
            self.max_relative_positions,
            self.conv_kernel_size,
        )
        if not all(type(number) is int for number in (buckets, far, conv)) or not (
            conv == 0 or (conv > 0 and conv % 2)
        ):
            raise InputError(
                f"position_buckets is {buckets!r}, max_relative_positions {far!r} and"
                f" conv_kernel_size {conv!r}. They have to be whole numbers, the last"
                " one 0 or odd. Take the config.json of the weights."
            )
        if buckets == 1 or (buckets > 1 and self.farthest < buckets // 2 + 2):
            raise InputError(
                f"position_buckets is {buckets}, which leaves no distance below"
                f" {self.farthest} (max_relative_positions) for the far ones. Take the"
                " config.json of the weights."
            )
        if self.conv_act not in _ACTIVATIONS:
            raise InputError(
                f"conv_act is {self.conv_act!r}; only {' and '.join(_ACTIVATIONS)} are"
                " implemented. Choose a checkpoint trained with one of them."
            )

    @property
    def has_positions(self) -> bool:
        """Whether there is a table of positions."""
        return self.position_biased_input

    @property
    def farthest(self) -> int:
        """See `max_relative_positions`."""
        far = self.max_relative_positions
        return far if far > 0 else self.max_positions

    @property
    def span(self) -> int:
        """Rows of the table of distances to one side."""
        return self.position_buckets if self.position_buckets > 0 else self.farthest

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """What config.json says in other types than the fields have."""
        return {
            "pos_att_type": _words(config, "pos_att_type"),
            "norm_rel_ebd": _words(config, "norm_rel_ebd") == ("layer_norm",),
        }

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses what would change the mathematics."""
        super().refuse(config)
        size, heads = config.get("hidden_size"), config.get("num_attention_heads")
        width = size // heads if type(size) is type(heads) is int and heads else None
        for key, value, wanted in (
            ("relative_attention", config.get("relative_attention", False), True),
            ("conv_groups", config.get("conv_groups", 1), 1),
            ("embedding_size", config.get("embedding_size", size), size),
            ("attention_head_size", config.get("attention_head_size", width), width),
            ("pooler_hidden_size", config.get("pooler_hidden_size", size), size),
            ("pooler_hidden_act", config.get("pooler_hidden_act", "gelu"), "gelu"),
        ):
            if value != wanted:
                raise ValueError(
                    f"{key} is {value!r}, but only {wanted!r} is implemented; choose a"
                    " checkpoint trained with it."
                )
        terms, norms = _words(config, "pos_att_type"), _words(config, "norm_rel_ebd")
        if not terms or not set(terms) <= set(_TERMS):
            raise ValueError(
                f"pos_att_type is {config.get('pos_att_type')!r}, but only c2p, p2c or"
                " both are implemented; choose a checkpoint trained with them."
            )
        if norms not in ((), ("none",), ("layer_norm",)):
            raise ValueError(
                f"norm_rel_ebd is {config['norm_rel_ebd']!r}, but only 'none' and"
                " 'layer_norm' are implemented; choose a checkpoint trained with one."
            )

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        return super().to_hf() | {
            # The masked-LM head with BERT's names, whose decoder need not be tied.
            "legacy": True,
            "relative_attention": True,
            "pos_att_type": list(self.pos_att_type),
            "norm_rel_ebd": "layer_norm" if self.norm_rel_ebd else "none",
        }

    @classmethod
    def fresh(cls, family: str, pad_token_id: int, positions: int, **sizes) -> Self:
        """The config of an encoder with random weights, as v3's."""
        return cls(
            family,
            pad_token_id=pad_token_id,
            max_positions=positions,
            position_biased_input=False,
            share_att_key=True,
            norm_rel_ebd=True,
            **{"position_buckets": max(2, positions // 2)} | sizes,
        )


def _words(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of words, or one that has | between them."""
    value = config.get(key) or ()
    parts = value.lower().split("|") if isinstance(value, str) else value
    return tuple(str(part).strip() for part in parts)


class DisentangledAttention(nnx.Module):
    """Attention to keys and to distances.

    Parameters: `qkv`, `out` and, where distances have their own kernels,
    `position_key`, `position_query`.
    """

    def __init__(self, config: DebertaConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        plain = Attention(config, dtype=dtype, rngs=rngs)
        self.qkv, self.out = plain.qkv, plain.out
        make = partial(
            linear,
            config.hidden_size,
            config.hidden_size,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        own = () if config.share_att_key else config.pos_att_type
        self.position_key = make() if "c2p" in own else None
        self.position_query = make() if "p2c" in own else None

    def __call__(
        self,
        hidden_TD: jax.Array,
        texts: Texts,
        seen: tuple[jax.Array, ...],
        *,
        keys_T: jax.Array | None,
        distances_PD: jax.Array,
    ) -> jax.Array:
        """Mixes the hidden states of each text; returns [T, D]."""
        config = self.config
        key_PAC, query_PAC = self._of_distances(distances_PD)
        mixed_TD = attend_to_distances(
            self.qkv(hidden_TD),
            texts,
            seen,
            key_PAC=key_PAC,
            query_PAC=query_PAC,
            index_of=lambda length: rows(length, config),
            rate=config.attention_dropout,
            keys_T=keys_T,
        )
        return self.out(mixed_TD)

    def _of_distances(self, distances_PD: jax.Array) -> list[jax.Array | None]:
        """The keys and the queries of distances, [P, A, C] each; None if not used."""
        config = self.config
        if config.share_att_key:
            query_PD, key_PD, _ = self.qkv(distances_PD)
            both = {"c2p": key_PD, "p2c": query_PD}
        else:
            own = {"c2p": self.position_key, "p2c": self.position_query}
            both = {term: x(distances_PD) for term, x in own.items() if x is not None}
        heads = (len(distances_PD), config.num_heads, -1)
        used = config.pos_att_type
        return [both[t].reshape(heads) if t in used else None for t in _TERMS]


def rows(length: int, config: DebertaConfig) -> np.ndarray:
    """The row of the table for the distance of each query and key, [L, L]."""
    if config.position_buckets > 0:
        distances = log_buckets(length, config.position_buckets, config.farthest)
    else:
        distances = np.arange(length)[:, None] - np.arange(length)[None]
    return np.clip(distances + config.span, 0, 2 * config.span - 1)


class Layer(bert.Layer):
    """A layer of BERT with this attention."""

    attention_kind = DisentangledAttention


class Distances(nnx.Module):
    """The embeddings of distances: `embedding` [P, D] and maybe `norm`."""

    def __init__(self, config: DebertaConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.dtype = dtype
        shape = (2 * config.span, config.hidden_size)
        normal = nnx.initializers.normal(config.initializer_range)
        self.embedding = nnx.Param(normal(rngs.params(), shape))
        size, eps = config.hidden_size, config.layer_norm_eps
        self.norm = LayerNorm(size, eps, rngs=rngs) if config.norm_rel_ebd else None

    def __call__(self) -> jax.Array:
        """All of them, [P, D]."""
        found_PD = self.embedding[...]
        found_PD = found_PD if self.norm is None else self.norm(found_PD)
        return found_PD.astype(self.dtype)


class Convolution(nnx.Module):
    """Neighbours of the embeddings, added to the first layer's output and normalized.

    Parameters: `kernel` [tokens, D, D], `bias` [D], `norm/{scale,bias}`.
    """

    def __init__(self, config: DebertaConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        size = config.hidden_size
        normal = nnx.initializers.normal(config.initializer_range)
        shape = (config.conv_kernel_size, size, size)
        self.kernel = nnx.Param(normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(size))
        self.norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, embedded_TD, hidden_TD, texts: Texts, keys_T) -> jax.Array:
        """The states for the second layer, [T, D]."""
        parts = zip(texts.split(embedded_TD), texts.mask, strict=True)
        found_TD = texts.join(self._neighbours(*part) for part in parts)
        found_TD = dropout(found_TD, self.config.hidden_dropout, keys_T)
        act = _ACTIVATIONS[self.config.conv_act]
        return self.norm(hidden_TD + act(found_TD))

    def _neighbours(self, embedded_BLD, mask_BL) -> jax.Array:
        beside = self.config.conv_kernel_size // 2
        found_BLD = jax.lax.conv_general_dilated(
            jnp.where(mask_BL[..., None], embedded_BLD, 0),
            self.kernel[...].astype(self.dtype),
            window_strides=(1,),
            padding=((beside, beside),),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return found_BLD + self.bias[...].astype(self.dtype)[None, None]


class DebertaEncoder(bert.BertEncoder):
    """DeBERTa v2 or v3.

    Parameter tree: that of `BertEncoder`, where `embeddings/{position,token_type}` may
    be missing; `distances/embedding` [P, D], maybe `distances/norm/{scale,bias}`,
    `layers/attention/{position_key,position_query}/{kernel,bias}` and
    `conv/{kernel,bias}`, `conv/norm/{scale,bias}`.
    """

    config: DebertaConfig
    rules = (
        Rule("distances/embedding", (None, None)),
        Rule("attention/position_(key|query)/kernel", (None, MODEL), heads=True),
        Rule("attention/position_(key|query)/bias", (MODEL,), heads=True),
        Rule("conv/kernel", (None, None, None)),
        Rule("conv/bias", (None,)),
    )
    fused_attention = False  # cuDNN takes no products with distances
    layer_kind = Layer

    def __init__(
        self, config: DebertaConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.distances = Distances(config, dtype=dtype, rngs=rngs)
        there = config.conv_kernel_size > 0
        self.conv = Convolution(config, dtype=dtype, rngs=rngs) if there else None

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings, [T, D]; types count where the config has some."""
        there = self.config.type_vocab_size > 0
        return super().embed(texts, types if there else None, keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""
        distances_PD = self.distances()

        def call(layer, hidden_TD, index, place):
            keys_T = subkeys(batch.keys_T, index + 1)
            next_TD = layer(hidden_TD, batch, keys_T=keys_T, distances_PD=distances_PD)
            if self.conv is None:
                return next_TD
            # In a loop, all layers are one program.
            conv = partial(self.conv, texts=batch.texts, keys_T=subkeys(keys_T, 4))
            first = index == 0
            return jax.lax.cond(first, conv, lambda _, x: x, hidden_TD, next_TD)

        return self.run_layers(call, self.layers, hidden_TD, batch)


class Classifier(FirstToken):
    """As in `DebertaV2ForSequenceClassification` of Hugging Face transformers."""

    activation = staticmethod(gelu)


_LAYER = {
    "attention/query": "attention.self.query_proj",
    "attention/key": "attention.self.key_proj",
    "attention/value": "attention.self.value_proj",
    "attention/position_key": "attention.self.pos_key_proj",
    "attention/position_query": "attention.self.pos_query_proj",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_HEAD = bert.bert_masked_lm("cls.predictions")
# Microsoft's files, and those of a config.json with "legacy": false: the same
# computation under other names, its decoder always the word table.
_LATER_HEAD = names.masked_lm(
    "lm_predictions.lm_head.dense",
    "lm_predictions.lm_head.LayerNorm",
    "lm_predictions.lm_head.decoder",
    "lm_predictions.lm_head",
)

DEBERTA = Backbone(
    DebertaConfig,
    DebertaEncoder,
    names.Names(
        prefixes=("deberta.", ""),
        encoder=bert.encoder_names(
            "encoder.layer.{i}",
            _LAYER,
            word="word_embeddings",
            position="position_embeddings",
            token_type="token_type_embeddings",
        )
        | {
            "distances/embedding": "encoder.rel_embeddings.weight",
            "distances/norm/scale": "encoder.LayerNorm.weight",
            "distances/norm/bias": "encoder.LayerNorm.bias",
            "conv/kernel": "encoder.conv.conv.weight",
            "conv/bias": "encoder.conv.conv.bias",
            "conv/norm/scale": "encoder.conv.LayerNorm.weight",
            "conv/norm/bias": "encoder.conv.LayerNorm.bias",
        },
        masked_lm=_HEAD,
        classifier=names.classifier("pooler.dense", "classifier"),
        bias_copy="cls.predictions.decoder.bias",
        aliases={theirs: _HEAD[ours] for ours, theirs in _LATER_HEAD.items()},
        unused={r"mask_predictions\..*": "head that tells replaced tokens"},
        may_lack=(
            r"encoder/(embeddings/(position|token_type)|distances/norm|conv)/.*"
            r"|encoder/layers/\d+/attention/position_(key|query)/.*"
        ),
    ),
    transformers="DebertaV2",
    classifier=Classifier,
    pairs_have_types=True,
)
