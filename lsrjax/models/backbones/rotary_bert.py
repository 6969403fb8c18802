"""GTE, Jina v3 and Nomic: post-norm like BERT, with RoPE in place of a position table.

The computation is that of `GteModel` (Zhang et al., 2024, arXiv:2407.19669),
`JinaEmbeddingsV3Model` (Sturua et al., 2024, arXiv:2409.10173) and `NomicBertModel`
(Nussbaum et al., 2024, arXiv:2402.01613) in Hugging Face transformers. They differ in
the feed-forward block and in what has a bias: GTE's is gated with GELU, Jina's is
BERT's, Nomic's is gated with SiLU and nothing but the norms has a bias.

Published checkpoints are of the authors' own code; their config.json and names of
tensors are read as well, and tensors go out under these names, as transformers writes
them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.attention import Attention, Rotary, rotary_tables
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.classifiers import FirstToken
from lsrjax.models.backbones.rotary_config import (
    GteConfig,
    JinaConfig,
    NomicConfig,
    RotaryConfig,
)
from lsrjax.models.layers import (
    ACTIVATIONS,
    DType,
    LayerNorm,
    MLMTransform,
    Products,
    dropout,
    linear,
    subkeys,
)
from lsrjax.models.texts import Texts


class Embeddings(nnx.Module):
    """Sum of word and token type embeddings, normalized."""

    def __init__(self, config: RotaryConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.word = encoder.table(config, rngs, config.vocab_size)
        if config.type_vocab_size:
            self.token_type = encoder.table(config, rngs, config.type_vocab_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        texts: Texts,
        types: tuple[jax.Array, ...] | None,
        keys_T: jax.Array | None,
    ) -> jax.Array:
        """Embeds token ids, of type 0 if `types` is None; returns [T, D]."""
        embedded_TD = self.word(texts.join(texts.ids))
        if self.config.type_vocab_size:
            if types is not None:
                embedded_TD += self.token_type(texts.join(types))
            else:
                embedded_TD += self.token_type.embedding[...][0][None]
        embedded_TD = sharding.constrain(embedded_TD, sharding.DATA, None)
        embedded_TD = self.norm(embedded_TD).astype(self.dtype)
        return dropout(embedded_TD, self.config.hidden_dropout, keys_T)


class Layer(nnx.Module):
    """Attention and feed-forward block, each normalized after its residual sum."""

    def __init__(self, config: RotaryConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        made: dict[str, Any] = {
            "initializer_range": config.initializer_range,
            "dtype": dtype,
            "rngs": rngs,
        }
        norm = partial(LayerNorm, size, config.layer_norm_eps, rngs=rngs)
        self.attention = Attention(
            config, use_bias=config.attention_bias, dtype=dtype, rngs=rngs
        )
        self.attention_norm = norm()
        if config.gated:
            self.glu = Products(2, size, inner, use_bias=config.up_bias, **made)
        else:
            self.up = linear(size, inner, use_bias=config.up_bias, **made)
        self.down = linear(inner, size, use_bias=config.down_bias, **made)
        self.output_norm = norm()

    def __call__(
        self,
        hidden_TD: jax.Array,
        batch: encoder.Batch,
        rotary: list[Rotary],
        keys_T: jax.Array | None,
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        rate = self.config.hidden_dropout
        mixed_TD = self.attention(
            hidden_TD,
            batch.texts,
            batch.seen,
            rotary=rotary,
            keys_T=subkeys(keys_T, 0),
        )
        mixed_TD = dropout(mixed_TD, rate, subkeys(keys_T, 1))
        hidden_TD = self.attention_norm(hidden_TD + mixed_TD)
        fed_TI = self._inner(hidden_TD)
        if self.config.drops_inside:
            fed_TI = dropout(fed_TI, rate, subkeys(keys_T, 2))
        fed_TD = dropout(self.down(fed_TI), rate, subkeys(keys_T, 3))
        return self.output_norm(hidden_TD + fed_TD)

    def _inner(self, hidden_TD: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.config.hidden_act]
        if not self.config.gated:
            return activation(self.up(hidden_TD))
        up_TI, gate_TI = self.glu(hidden_TD)
        return activation(gate_TI) * up_TI


class RotaryEncoder(encoder.Encoder):
    """GTE, Jina v3 or Nomic.

    Parameter tree: `embeddings/{word,token_type}/embedding`,
    `embeddings/norm/{scale,bias}` and, with a leading axis over the layers,
    `layers/attention/qkv/kernel` [D, 3, D], `layers/attention/out/kernel`,
    `layers/{attention_norm,output_norm}/{scale,bias}`, `layers/glu/kernel` [D, 2, I],
    up and gate, or in Jina's `layers/up/kernel`, `layers/down/kernel`; and a `bias`
    beside each kernel, where the family has it.
    """

    token_types = True
    config: RotaryConfig

    def __init__(
        self, config: RotaryConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.layers = encoder.stack(
            lambda: Layer(config, dtype=dtype, rngs=rngs), config.num_layers
        )

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        return self.embeddings(texts, types, keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""
        config = self.config
        width = config.hidden_size // config.num_heads
        rotary = [
            rotary_tables(ids_BL.shape[1], width, config.theta, config.stretch)
            for ids_BL in batch.texts.ids
        ]

        def call(layer, hidden_TD, index, place):
            return layer(hidden_TD, batch, rotary, subkeys(batch.keys_T, index + 1))

        return self.run_layers(call, self.layers, hidden_TD, batch)


def _transform(config: RotaryConfig, *, dtype: DType, rngs: nnx.Rngs) -> MLMTransform:
    return MLMTransform(
        config.hidden_size,
        config.layer_norm_eps,
        activation=config.hidden_act,
        dtype=dtype,
        rngs=rngs,
    )


def _names(layers: str, norm: str, parts: Mapping[str, str], biases: str = ""):
    """Of an encoder's tensors.

    Args:
      norm: the name of the embeddings' norm.
      parts: from our module of a layer to theirs.
      biases: our modules that have one; norms have.
    """
    found = {
        names.WORD: "embeddings.word_embeddings.weight",
        "embeddings/token_type/embedding": "embeddings.token_type_embeddings.weight",
        "embeddings/norm/scale": f"{norm}.weight",
        "embeddings/norm/bias": f"{norm}.bias",
    }
    of_layer = {}
    for ours, theirs in parts.items():
        is_norm = ours.endswith("norm")
        of_layer[f"{ours}/{'scale' if is_norm else 'kernel'}"] = f"{theirs}.weight"
        if is_norm or ours in biases.split():
            of_layer[f"{ours}/bias"] = f"{theirs}.bias"
    return found | names.of_layers(layers, of_layer)


# gte-base-en-v1.5 has no table of types.
_NO_TYPES = "encoder/embeddings/token_type/embedding"

GTE = Backbone(
    GteConfig,
    RotaryEncoder,
    names.Names(
        prefixes=("gte.", ""),
        other_prefix="new.",
        encoder=_names(
            "encoder.layer",
            "embeddings.LayerNorm",
            {
                "attention/qkv": "attention.qkv_proj",
                "attention/out": "attention.o_proj",
                "attention_norm": "attn_ln",
                "glu": "mlp.up_gate_proj",
                "down": "mlp.down_proj",
                "output_norm": "mlp_ln",
            },
            biases="attention/qkv attention/out down",
        ),
        masked_lm=names.masked_lm(
            "lm_head.dense", "lm_head.norm", "lm_head.decoder", "lm_head.decoder"
        ),
        classifier=names.classifier("gte.pooler.dense", "classifier"),
        may_lack=_NO_TYPES,
        unused={r"classifier\.(weight|bias)": "weights of tokens, as bge-m3 has them"},
    ),
    transformers="Gte",
    classifier=FirstToken,
)
JINA_V3 = Backbone(
    JinaConfig,
    RotaryEncoder,
    names.Names(
        prefixes=("roberta.", ""),
        encoder=_names(
            "encoder.layers",
            "emb_ln",
            {
                "attention/qkv": "mixer.Wqkv",
                "attention/out": "mixer.out_proj",
                "attention_norm": "norm1",
                "up": "mlp.fc1",
                "down": "mlp.fc2",
                "output_norm": "norm2",
            },
            biases="attention/qkv attention/out up down",
        ),
        masked_lm=names.masked_lm(
            "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head"
        ),
        classifier=names.classifier("classifier.dense", "classifier.out_proj"),
        bias_copy="lm_head.decoder.bias",
    ),
    transformers="JinaEmbeddingsV3",
    classifier=FirstToken,
    architectures="XLMRobertaFlash",
    pooler=True,
)
NOMIC = Backbone(
    NomicConfig,
    RotaryEncoder,
    names.Names(
        prefixes=("nomic_bert.", ""),
        other_prefix="bert.",
        encoder=_names(
            "encoder.layers",
            "emb_ln",
            {
                "attention/qkv": "attn.Wqkv",
                "attention/out": "attn.out_proj",
                "attention_norm": "norm1",
                "glu/up": "mlp.fc11",
                "glu/gate": "mlp.fc12",
                "down": "mlp.fc2",
                "output_norm": "norm2",
            },
        ),
        masked_lm=names.masked_lm(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.layer_norm",
            "cls.predictions.decoder",
            "cls.predictions",
        ),
        classifier=names.classifier("nomic_bert.pooler.dense", "classifier"),
        bias_copy="cls.predictions.decoder.bias",
        # The head of Nomic's own code has none.
        zeros=r"cls\.predictions\.(transform\.dense\.)?bias",
    ),
    transformers="NomicBert",
    classifier=FirstToken,
    transform=_transform,
    pairs_have_types=True,
)
